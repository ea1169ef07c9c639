"""Which level a grid is of: level 1 is the largest grid of self-attention in the model.

A graph may be only a part of the model (after a graph break, a block compiled by itself, the body
of a checkpoint): then its own grids are not all, and whoever gives the graph to the passes says
which others there are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from todo_compile.errors import ConfigError
from todo_compile.options import PlanOptions


@dataclass(frozen=True, slots=True)
class Levels:
    """What is known of the model's levels beyond the graph at hand.

    Args:
        areas: tokens of the grids that count as levels, beside the graph's own.
        strict: factors that cannot be followed are an error. Otherwise sites are refused for it,
            and factors of levels that are not here are left unused.
        scope: follows the number of a level in reasons (`` of this graph``).
    """

    areas: frozenset[int] = frozenset()
    strict: bool = True
    scope: str = ""

    def numbers(self, own: Iterable[int]) -> dict[int, int]:
        """Area → level, for the areas of a graph and those known beside them."""
        areas = sorted(self.areas.union(own), reverse=True)
        return {area: index + 1 for index, area in enumerate(areas)}


LevelsOf = Callable[[frozenset[int]], Levels]
"""Called with the areas of the self-attention of a graph and of the graphs that it calls."""


def check_count(options: PlanOptions, levels: Levels, count: int) -> None:
    """Check that every factor has a level.

    Raises:
        ConfigError: factors name more levels than there are.
    """
    if levels.strict and options.factors is not None and len(options.factors) > max(count, 1):
        raise ConfigError(
            f"{len(options.factors)} factors were given, but self-attention has {count} "
            f"level{'s' if count != 1 else ''} here.",
            remedy="`todo-compile plan` lists them; give at most one factor a level.",
        )
