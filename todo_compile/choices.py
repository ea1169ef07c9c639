"""What a site may be given, as text: a sampling with a factor, ``nearest:2``, or ``dense``."""

from __future__ import annotations

from collections.abc import Sequence

from todo_compile.errors import ConfigError
from todo_compile.options import Factor, SiteChoice, check_sampling, parse_factors

DENSE: Factor = (1, 1)
_CANDIDATES = "Give a sampling and its factors: nearest:2,3,4,8 or average:2,4x2 (WIDTHxHEIGHT)."


def choice_text(choice: SiteChoice) -> str:
    """``dense``, ``nearest:2`` or ``average:4x2`` (width×height)."""
    rows, columns = choice[:2]
    if (rows, columns) == DENSE:
        return "dense"
    sampling = choice[2] if len(choice) == 3 else "nearest"
    return f"{sampling}:{columns}" + ("" if rows == columns else f"x{rows}")


def parse_choice(text: str) -> SiteChoice:
    """The inverse of `choice_text`.

    Raises:
        ConfigError: it is none.
    """
    if text == "dense":
        return DENSE
    found = parse_candidates([text])
    if len(found) != 1:
        raise ConfigError(f"{text!r:.60} is no single factor.", remedy=_CANDIDATES)
    return found[0]


def parse_candidates(texts: Sequence[str]) -> tuple[SiteChoice, ...]:
    """``["nearest:2,4", "average:2"]`` → three choices in the order given, each once.

    Raises:
        ConfigError: there is none, or one is no sampling with factors above 1.
    """
    found: dict[SiteChoice, None] = {}
    for part in (p for text in texts for p in text.split()):
        sampling, colon, factors = part.rpartition(":")
        if not colon or not factors:
            raise ConfigError(f"{part!r:.60} is no candidate.", remedy=_CANDIDATES)
        checked = check_sampling(sampling)
        for rows, columns in parse_factors(factors) or ():
            if (rows, columns) == DENSE:
                raise ConfigError(
                    f"Factor 1 of {part!r:.60} changes nothing.",
                    remedy="Every site may stay dense anyway: leave it out.",
                )
            found[rows, columns, checked] = None
    if not found:
        raise ConfigError("There are no candidates to choose from.", remedy=_CANDIDATES)
    return tuple(found)
