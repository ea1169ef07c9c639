"""What the user may choose about the rewrite: frozen, validated, hashable options."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, cast, get_args

from todo_compile.errors import ConfigError

Sampling = str
"""Which token stands for a cell; `todo_compile.passes.rewrite.pooling` says what each means."""
SAMPLINGS: tuple[Sampling, ...] = (
    "nearest",
    "nearest-exact",
    "average",
    "blend:0.5",
    "staggered",
)
"""Samplings by name; ``blend:α`` takes any α between 0 and 1."""

DEFAULT_KV_TOKENS = 4096
"""Bound on key/value tokens where the model does not say what it saw in training (64×64)."""

Masks = Literal["prove", "pool"]

Factor = tuple[int, int]
"""(rows, columns) that become one."""

SiteChoice = Factor | tuple[int, int, Sampling]
"""A factor for one site, with its own sampling where that is another than the plan's."""

_FACTORS_HELP = (
    "Give one factor a level from the largest grid down, e.g. 4,2,1, a pair WIDTHxHEIGHT for "
    "different axes, e.g. 4x2,2,1, or 'off' for a dense export."
)


def check_sampling(sampling: object) -> Sampling:
    """The sampling in its one spelling (``"blend:.50"`` → ``"blend:0.5"``), so that equals compare.

    Raises:
        ConfigError: unknown, or a weight that is no number strictly between 0 and 1.
    """
    if sampling in SAMPLINGS:
        return cast("str", sampling)
    if isinstance(sampling, str) and (found := re.fullmatch(r"blend:(\d|\d?\.\d{1,4})", sampling)):
        weight = float(found[1])
        if not 0 < weight < 1:
            raise ConfigError(
                f"The weight of {sampling!r} must lie strictly between 0 and 1.",
                remedy="1 is nearest-exact and 0 is average: use their names.",
            )
        return f"blend:{weight!r}"
    raise ConfigError(
        f"Unknown sampling {sampling!r}.",
        remedy=f"Known: {', '.join(SAMPLINGS)} (blend takes any weight between 0 and 1).",
    )


def blend_weight(sampling: Sampling) -> float:
    """Weight of the cell's middle token in a checked ``blend:α``, where its mean has 1 − α."""
    return float(sampling.removeprefix("blend:"))


def _positive_or_none(bound: object) -> bool:
    """Checked at run time too: Python callers may hand over anything."""
    if bound is None:
        return True
    return isinstance(bound, int) and not isinstance(bound, bool) and bound > 0


def _is_pair(factor: object) -> bool:
    """Checked at run time too, as above."""
    return (
        isinstance(factor, (tuple, list))
        and len(factor) == 2
        and all(f is not None and _positive_or_none(f) for f in factor)
    )


def _site_choice(given: Any) -> Any:
    """A factor, or a factor and a checked sampling; whether the factor is one is asked later.

    Raises:
        ConfigError: it has another length, or an unknown sampling.
    """
    if not isinstance(given, (tuple, list)) or len(given) not in (2, 3):
        raise ConfigError(f"{given!r} is not a pair of positive factors.", remedy=_FACTORS_HELP)
    return (*given[:2], *(check_sampling(one) for one in given[2:]))


Grid = tuple[int, int] | tuple[int, int, int]
"""(rows, columns) of a picture's tokens, or (frames, rows, columns) of a video's."""

TokenGrid = Grid | tuple[Grid, ...]
"""The grid of packed tokens, or those of several pictures whose tokens follow each other."""


def grids_of(grid: TokenGrid) -> tuple[Grid, ...]:
    """The grids of all pictures, in their order."""
    several = isinstance(grid[0], tuple)
    return cast("tuple[Grid, ...]", grid if several else (grid,))


def grid_tokens(grid: TokenGrid) -> int:
    """How many tokens the pictures have together."""
    return sum(math.prod(one) for one in grids_of(grid))


def check_token_grids(given: object) -> dict[int, TokenGrid]:
    """A number of tokens → the (rows, columns) that they come from; None is an empty mapping.

    A video's are (frames, rows, columns), frame after frame. A list of such grids is for several
    pictures whose tokens follow each other, as those of a reference follow what is drawn.

    It is the caller's word: text of such a length, where no larger image goes in beside it, is
    taken for the image. Name the grids of images only.

    Raises:
        ConfigError: no mapping, or a grid that has another number of cells than tokens.
    """
    if given is None:
        return {}
    remedy = (
        "Give tokens → (rows, columns), or (frames, rows, columns), e.g. {4096: (64, 64)}; of "
        "several pictures in a row a list, e.g. {8192: [(64, 64), (64, 64)]}."
    )
    if not isinstance(given, Mapping):
        raise ConfigError(f"token_grids must be a mapping, not {given!r}.", remedy=remedy)
    checked: dict[int, TokenGrid] = {}
    for tokens, grid in cast("Mapping[Any, Any]", given).items():
        listed = isinstance(grid, (tuple, list)) and bool(grid)
        first: Any = cast("list[Any]", grid)[0] if listed else None
        several: Any = grid if isinstance(first, (tuple, list)) else (grid,)
        found = tuple(_grid(one) for one in several)
        if None in found or sum(math.prod(one) for one in found if one) != tokens:
            raise ConfigError(
                f"token_grids says that {tokens!r} tokens are a grid of {grid!r}.", remedy=remedy
            )
        checked[tokens] = cast("TokenGrid", found[0] if len(found) == 1 else found)
    return checked


def _grid(given: Any) -> Grid | None:
    """A grid of whole numbers above zero, as a tuple; None if it is none."""
    if not isinstance(given, (tuple, list)):
        return None
    sides = tuple(cast("list[Any]", given))
    whole = all(one is not None and _positive_or_none(one) for one in sides)
    return cast("Grid", sides) if len(sides) in (2, 3) and whole else None


@dataclass(frozen=True, slots=True)
class PlanOptions:
    """How key/value factors are chosen.

    Args:
        kv_tokens: most image tokens that keys and values of a site may keep (of a video: those of
            each frame); None takes what the model saw in training.
        factors: (row, column) factor of each level, largest grid first; levels beyond the end stay
            dense; ``()`` leaves everything dense; None plans by `kv_tokens`.
        sampling: which token stands for a cell, see `todo_compile.passes.rewrite.pooling`.
        sites: (site, factor) for single sites, by module path or by name in the graph as reports
            give them; they win over `kv_tokens` and `factors`. Accepts a mapping. A third entry,
            ``(2, 2, "average")``, wins over `sampling`. Of a module that attends several times
            ``path#2`` is the second attention.
        hoist: move pooling above the key and value projections (off: for comparison only).
        keep_mass: in joint attention over text and image, let pooled keys weigh as the tokens that
            they stand for (off: for comparison only).
        masks: ``prove`` rewrites a masked site only where dataflow proves that no key can be lost;
            ``pool`` pools every mask as the keys are, at the user's own risk, and the report says
            so.

    Raises:
        ConfigError: a value is out of range.
    """

    kv_tokens: int | None = None
    factors: tuple[Factor, ...] | None = None
    sampling: Sampling = "nearest"
    hoist: bool = True
    sites: tuple[tuple[str, SiteChoice], ...] = ()
    keep_mass: bool = True
    masks: Masks = "prove"

    def __post_init__(self) -> None:
        if not _positive_or_none(self.kv_tokens):
            raise ConfigError(
                f"kv_tokens must be a positive whole number, not {self.kv_tokens!r}.",
                remedy="4096 bounds keys and values to 64×64 tokens; None takes the model's own.",
            )
        if self.kv_tokens is not None and self.factors is not None:
            raise ConfigError(
                "kv_tokens and factors both say how far to downsample.",
                remedy="Give one of them: a bound (kv_tokens) or a factor a level (factors).",
            )
        object.__setattr__(self, "sampling", check_sampling(self.sampling))
        if self.masks not in get_args(Masks):
            raise ConfigError(
                f"masks must be 'prove' or 'pool', not {self.masks!r}.",
                remedy="'prove' refuses a mask that could hide keys, 'pool' takes the risk.",
            )
        for name in ("hoist", "keep_mass"):
            if not isinstance(getattr(self, name), bool):
                raise ConfigError(
                    f"{name} must be True or False, not {getattr(self, name)!r}.",
                    remedy="Leave it out: False is for comparison only.",
                )
        levels: Any = self.factors
        if levels is not None and not isinstance(levels, (tuple, list)):
            raise ConfigError(f"factors must be pairs, not {levels!r}.", remedy=_FACTORS_HELP)
        given: Any = self.sites
        if not isinstance(given, (Mapping, tuple, list)):
            raise ConfigError(
                f"sites must be a mapping from sites to factors, not {given!r}.",
                remedy="Give paths and pairs, e.g. {'mid_block.attentions.0': (2, 2)}.",
            )
        single: list[Any] = list(given.items() if isinstance(given, Mapping) else given)
        if any(not isinstance(one, (tuple, list)) or len(one) != 2 for one in single):
            raise ConfigError(f"{given!r} does not pair sites with factors.", remedy=_FACTORS_HELP)
        choices = [(str(name), _site_choice(one)) for name, one in single]
        for factor in [*(self.factors or ()), *(one[:2] for _, one in choices)]:
            if not _is_pair(factor):
                raise ConfigError(
                    f"{factor!r} is not a pair of positive factors.", remedy=_FACTORS_HELP
                )
        if self.factors is not None:  # hashable, whatever sequence came
            object.__setattr__(self, "factors", tuple((r, c) for r, c in self.factors))
        object.__setattr__(self, "sites", tuple(sorted(choices, key=lambda pair: pair[0])))

    def describe(self) -> dict[str, Any]:
        """JSON-able form, for reports and manifests."""
        described: dict[str, Any] = {
            "kv_tokens": self.kv_tokens,
            "factors": None if self.factors is None else [list(f) for f in self.factors],
            "sampling": self.sampling,
            "hoist": self.hoist,
        }
        if self.masks != "prove":
            described["masks"] = self.masks
        if not self.keep_mass:
            described["keep_mass"] = False
        if self.sites:  # absent otherwise: manifests without them stay what they were
            described["sites"] = {name: list(choice) for name, choice in self.sites}
        return described

    @staticmethod
    def create(
        *,
        kv_tokens: int | None = None,
        factors: str | int | tuple[Any, ...] | list[Any] | None = None,
        sampling: str | None = None,
        preset: str | None = None,
        masks: str | None = None,
    ) -> PlanOptions:
        """Options from what people write: ``factors="4,2,1"``, ``factors=2``, ``preset="todo-4x"``.

        Raises:
            ConfigError: as the constructor, or an unknown preset.
        """
        if preset is not None:
            if preset not in PRESETS:
                raise ConfigError(
                    f"Unknown preset {preset!r}.", remedy=f"Known: {', '.join(PRESETS)}."
                )
            if kv_tokens is not None or factors is not None or sampling is not None:
                raise ConfigError(
                    f"Preset {preset} already sets factors and sampling.",
                    remedy="Leave out --kv-tokens, --factors and --sampling, or the preset.",
                )
            chosen = PRESETS[preset]
            return chosen if masks is None else replace(chosen, masks=cast("Masks", masks))
        return PlanOptions(
            kv_tokens=kv_tokens,
            factors=parse_factors(factors),
            sampling=sampling or "nearest",
            masks=cast("Masks", masks or "prove"),
        )


PRESETS: dict[str, PlanOptions] = {
    "todo-2x": PlanOptions(factors=((2, 2),), sampling="nearest"),
    "todo-3x": PlanOptions(factors=((3, 3),), sampling="nearest"),
    "todo-4x": PlanOptions(factors=((4, 4),), sampling="nearest"),
    "todo-repo-2x": PlanOptions(factors=((2, 2),), sampling="nearest-exact"),
}
"""The paper's settings (2402.13573, section 4: the highest level only, nearest sampling; factor
2, 3, 4 = "merge ratio" 0.75, 0.89, 0.9375), and the default of its repository."""


def parse_factors(
    text: str | int | tuple[Any, ...] | list[Any] | None,
) -> tuple[Factor, ...] | None:
    """``"4,2,1"``, ``"4x2,2"`` (width×height), ``"off"``, ``2`` or ``(4, (2, 1))`` as factors.

    In tuples and in the result a pair is (rows, columns).

    Raises:
        ConfigError: not a number, not positive.
    """
    if text is None:
        return None
    if isinstance(text, int):
        parts: list[Any] = [text]
    elif isinstance(text, str):
        cleaned = text.strip().lower()
        if cleaned == "off":
            return ()
        parts = [p.strip() for p in cleaned.split(",")]
    elif isinstance(text, (tuple, list)):  # pyright: ignore[reportUnnecessaryIsInstance]
        parts = list(text)
    else:
        parts = [text]
    return tuple(_one_factor(part, text) for part in parts)


def _one_factor(part: Any, whole: Any) -> Factor:
    if isinstance(part, int) and not isinstance(part, bool) and part >= 1:
        return part, part
    if isinstance(part, (tuple, list)) and _is_pair(part):  # pyright: ignore[reportUnknownArgumentType]
        return part[0], part[1]
    if isinstance(part, str) and (
        match := re.fullmatch(r"([1-9]\d{0,4})(?:[x×]([1-9]\d{0,4}))?", part)
    ):
        columns = int(match[1])
        return (int(match[2]) if match[2] else columns), columns
    raise ConfigError(
        f"{part!r} in factors {whole!r} is not a positive factor.", remedy=_FACTORS_HELP
    )
