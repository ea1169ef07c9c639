"""Graphs inside Dynamo's graph: what gradient checkpointing captures.

    x (B, H·W, C) ─ checkpoint(body, x, …)        body:  x (B, N, C) ─ attention ─ …

Their axes come from the dataflow outside, see `passes.grid.bodies`; their levels are the whole
graph's.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch.fx import GraphModule, Node

from todo_compile.options import PlanOptions, TokenGrid
from todo_compile.passes.autocast import inside_call
from todo_compile.passes.graph import GraphContext
from todo_compile.passes.grid.axes import Axes, Dim, Unifier
from todo_compile.passes.grid.grids import Call, GridMap
from todo_compile.passes.pipeline import rewrite_graph
from todo_compile.passes.plan.levels import Levels
from todo_compile.passes.report import Report


def rewrite_nested(
    module: GraphModule,
    options: PlanOptions,
    token_grids: dict[int, TokenGrid],
    levels: Levels,
    seeds: Mapping[Node, Axes] | None = None,
    patch_grid: tuple[int, int] | None = None,
) -> tuple[Report, ...]:
    """Rewrite every graph that `module` calls, in place.

    Args:
        module: Dynamo's graph, rewritten itself, or a graph that it calls.
        options: as for the outer graph.
        token_grids: grids that the caller named.
        levels: of the whole graph.
        seeds: axes of the inputs of `module`.
        patch_grid: as for the outer graph; a graph that it calls is no whole denoiser.

    Raises:
        ConfigError: options that a graph cannot follow.
        PassError: a pass broke a graph.
    """
    context = GraphContext(module, token_grids=token_grids, patch_grid=patch_grid)
    grids = GridMap(context, seeds=seeds)
    calls: dict[int, list[Call]] = {}
    for call in grids.calls:
        calls.setdefault(id(call.body), []).append(call)
    reports: list[Report] = []
    for same_body in calls.values():
        body, inner = same_body[0].body, _common_seeds(grids.unifier, same_body)
        with inside_call(module.graph, same_body[0].node):
            reports.append(
                rewrite_graph(
                    body, options, token_grids=token_grids, levels=lambda _: levels, seeds=inner
                )
            )
            reports += rewrite_nested(body, options, token_grids, levels, inner)
    return tuple(reports)


def _common_seeds(unifier: Unifier, calls: list[Call]) -> dict[Node, Axes] | None:
    """Axes of a body's inputs; nothing is known of them if it is called with different ones."""
    signatures = {_signature(unifier, call) for call in calls}
    if len(signatures) > 1:
        return {}
    return calls[0].seeds


def _signature(unifier: Unifier, call: Call) -> Any:
    """Equal for calls whose inputs lie on equal grids and share their ranges in the same way."""
    if call.seeds is None:
        return None
    numbers: dict[int, int] = {}

    def number(ident: int) -> int:
        return numbers.setdefault(unifier.find(ident), len(numbers)) if ident else -1

    def describe(dim: Dim) -> Any:
        return tuple(
            (a.size, a.role, number(a.ident), number(a.origin), tuple(map(describe, a.segments)))
            for a in dim
        )

    return tuple((node.name, tuple(map(describe, axes))) for node, axes in call.seeds.items())
