"""What a pass is, and what the manager checks before and after it.

    State ─ Find ─ Grids ─ Plan ─ Pool ─ Hoist ─ Lower ─ Casts ─ Refresh ─ State

A pass has a name, which is also the name of its dump; conditions that it `requires` and `ensures`;
and an `Outcome` that says how often it changed something. `pipeline` lists the passes in order.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import ClassVar

from torch.fx import Node

from todo_compile.options import PlanOptions
from todo_compile.passes.find.attention import AttentionSite, NearMiss
from todo_compile.passes.graph import GraphContext
from todo_compile.passes.grid.axes import Axes
from todo_compile.passes.grid.grids import GridMap
from todo_compile.passes.plan.choose import Decision
from todo_compile.passes.plan.cost import SiteCost
from todo_compile.passes.plan.levels import LevelsOf
from todo_compile.passes.report import HoistStop


@dataclass(frozen=True, slots=True)
class Wishes:
    """What the caller of the passes asked for; see `pipeline.rewrite_graph`."""

    options: PlanOptions
    native_kv_tokens: int | None = None
    explicit_casts: bool = False
    specialise: bool = False
    levels: LevelsOf | None = None
    seeds: Mapping[Node, Axes] | None = None
    without_rules: frozenset[str] = frozenset()


@dataclass(slots=True)
class State:
    """What passes know and hand on.

    Args:
        failed: sites whose rewrite failed a check in an earlier attempt → why; they stay dense.
    """

    context: GraphContext
    wishes: Wishes
    failed: Mapping[str, str] = field(default_factory=dict[str, str])
    sites: list[AttentionSite] = field(default_factory=list[AttentionSite])
    misses: list[NearMiss] = field(default_factory=list[NearMiss])
    grids: GridMap | None = None
    decisions: list[Decision] = field(default_factory=list[Decision])
    dense_flops: int = 0
    dense_costs: list[SiteCost | None] = field(default_factory=list[SiteCost | None])
    pools: list[Node] = field(default_factory=list[Node])
    stops: dict[str, list[HoistStop]] = field(default_factory=dict[str, list[HoistStop]])

    @property
    def pooled(self) -> list[Decision]:
        """Decisions that rewrite their site."""
        return [d for d in self.decisions if d.poolings]


@dataclass(frozen=True, slots=True)
class Outcome:
    """How often a pass changed or found something."""

    count: int
    detail: dict[str, int] = field(default_factory=dict[str, int])


Check = Callable[[State], None]
"""Raises a PassError where a condition does not hold."""


class Pass(ABC):
    """One step of the compiler."""

    name: ClassVar[str]
    requires: ClassVar[tuple[Check, ...]] = ()
    ensures: ClassVar[tuple[Check, ...]] = ()

    @abstractmethod
    def apply(self, state: State) -> Outcome | None:
        """Do it; None if this run has no use for it.

        Raises:
            PassError: the graph would break; the manager knows which sites are to blame.
            ConfigError: options that this graph cannot follow.
        """
