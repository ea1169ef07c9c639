"""Graphs inside Dynamo's graph: what gradient checkpointing captures.

    x (B, H·W, C) ─ checkpoint(body, x, …)        body:  x (B, N, C) ─ attention ─ …

A checkpointed block is a graph of its own that a node of the outer one calls. It sees packed tokens
only; their grid is proved by the dataflow outside, where the block is called.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch.fx import GraphModule, Node

from todo_compile.config import PlanOptions
from todo_compile.passes.axes import Dim
from todo_compile.passes.graph import GraphContext
from todo_compile.passes.grids import GridMap, grid_of
from todo_compile.passes.pipeline import rewrite_graph
from todo_compile.passes.report import Report

Grids = dict[int, tuple[int, int]]


def rewrite_nested(
    module: GraphModule, options: PlanOptions, token_grids: Grids
) -> tuple[Report, ...]:
    """Rewrite every graph that `module` calls, in place; levels count over all of them.

    Args:
        module: Dynamo's graph.
        options: as for the outer graph.
        token_grids: grids that the caller named.

    Raises:
        ConfigError: options that a graph cannot follow.
        PassError: a pass broke a graph.
    """
    called = _called(module)
    if not called:
        return ()
    context = GraphContext(module, token_grids=token_grids)
    grids = GridMap(context)
    sides = [
        atom.size
        for node, _ in called
        for dim in _dims(grids, node)
        for atom in grid_of(dim) or ()
        if not isinstance(atom.size, int)
    ]
    if sides:
        for side in sides:
            context.specialise(side)
        grids = GridMap(context)
    found = [(body, _grids(grids, node)) for node, body in called]
    areas = sorted({n for _, own in found for n in own}, reverse=True)
    reports: list[Report] = []
    done: set[int] = set()
    for body, own in found:
        if id(body) in done:
            continue  # one body may be called twice
        done.add(id(body))
        reports.append(
            rewrite_graph(body, _levelled(options, areas, own), token_grids={**own, **token_grids})
        )
        reports += rewrite_nested(body, options, {**own, **token_grids})
    return tuple(reports)


def _called(module: GraphModule) -> list[tuple[Node, GraphModule]]:
    """(calling node, graph that it calls), in order."""
    found: list[tuple[Node, GraphModule]] = []
    for node in module.graph.nodes:
        if node.op != "call_function":
            continue
        for argument in node.all_input_nodes:
            if argument.op == "get_attr":
                body: Any = module
                for part in str(argument.target).split("."):
                    body = getattr(body, part, None)
                if isinstance(body, GraphModule):
                    found.append((node, body))
    return found


def _dims(grids: GridMap, node: Node) -> list[Dim]:
    """The token dimensions of three-dimensional operands."""
    operands = [grids.axes.get(argument) for argument in node.all_input_nodes]
    return [axes[1] for axes in operands if axes is not None and len(axes) == 3]


def _grids(grids: GridMap, node: Node) -> Grids:
    """Number of tokens → (rows, columns) of the operands that lie on a row-major grid."""
    found: Grids = {}
    for dim in _dims(grids, node):
        pair = grid_of(dim)
        if pair is None or pair[0].role != "H":
            continue
        rows, columns = pair[0].size, pair[1].size
        if isinstance(rows, int) and isinstance(columns, int):
            found[rows * columns] = (rows, columns)
    return found


def _levelled(options: PlanOptions, areas: list[int], own: Grids) -> PlanOptions:
    """Factors given by level, for a graph that has one level of all."""
    if not options.factors or len(own) != 1:
        return options
    level = areas.index(next(iter(own)))
    chosen = options.factors[level : level + 1]
    return replace(options, factors=chosen)
