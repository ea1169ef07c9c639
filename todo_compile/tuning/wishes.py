"""What a user asks of `tune`: budgets, candidates and sites as text, checked."""

from __future__ import annotations

import fnmatch
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from todo_compile.errors import ConfigError
from todo_compile.options import Factor, SiteChoice, check_sampling, parse_factors

Kind = Literal["drift", "speedup"]
DENSE: Factor = (1, 1)
DEFAULT_CANDIDATES = "nearest:2,3,4,8"
QUICK_CANDIDATES = "nearest:2,4,8"
_BUDGETS = "Give drift=1e-3 (mean squared error of the pictures, values 0 to 1) or speedup=2.5."
_CANDIDATES = "Give a sampling and its factors: nearest:2,3,4,8 or average:2,4x2 (WIDTHxHEIGHT)."


@dataclass(frozen=True, slots=True)
class Budget:
    """What bounds a plan; the other of the two is made as good as can be.

    Args:
        kind: ``drift``: mean squared error of pictures to the dense ones from the same seeds, pixel
            values from 0 to 1. ``speedup``: FLOPs of the dense denoiser over the plan's, all steps.
        value: the most drift, or the least speedup.
    """

    kind: Kind
    value: float

    @classmethod
    def parse(cls, text: str) -> Budget:
        """``drift=1e-3``, ``speedup=2.5``; ``mse=`` is another word for drift, ``psnr=30`` the same
        in decibels.

        Raises:
            ConfigError: it is something else, or out of range.
        """
        found = re.fullmatch(r"\s*(drift|mse|psnr|speedup)\s*=\s*([-+.\deE]+)\s*", text)
        try:
            value = float(found[2]) if found is not None else math.nan
        except ValueError:
            value = math.nan
        if found is None or not math.isfinite(value):
            raise ConfigError(f"{text!r:.60} is no budget.", remedy=_BUDGETS)
        if found[1] == "speedup":
            if value < 1:
                raise ConfigError(
                    f"A speedup of {value:g} is none.", remedy="Give a number from 1 up."
                )
            return cls("speedup", value)
        drift = 10 ** (-value / 10) if found[1] == "psnr" else value
        if not 0 < drift < 1:
            raise ConfigError(
                f"A drift of {drift:g} is no bound.",
                remedy="It is a mean squared error of pixel values from 0 to 1: more than 0 (for 0 "
                "compile with --factors off) and less than 1.",
            )
        return cls("drift", drift)

    def __str__(self) -> str:
        return f"{self.kind}={self.value:.6g}"


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


def disabled(names: Sequence[str], patterns: Sequence[str]) -> frozenset[str]:
    """The sites that shall stay dense.

    Args:
        names: of all sites.
        patterns: globs, matched against the whole name: ``mid*``.

    Raises:
        ConfigError: a pattern matches none, or all are matched.
    """
    found: set[str] = set()
    for pattern in patterns:
        matched = fnmatch.filter(names, pattern)
        if not matched:
            raise ConfigError(
                f"--disable {pattern!r} matches no site.",
                remedy=f"The sites are: {', '.join(names)}.",
            )
        found |= set(matched)
    if names and len(found) == len(names):
        raise ConfigError(
            "Every site is disabled: nothing is left to choose.",
            remedy="Leave a pattern out; --factors off compiles a dense model.",
        )
    return frozenset(found)
