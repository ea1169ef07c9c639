"""The passes: each finds, decides or changes one thing."""

from __future__ import annotations

from typing import Any

from torch.fx import Node

from todo_compile.passes import checks
from todo_compile.passes.base import Outcome, Pass, State
from todo_compile.passes.find.attention import AttentionSite, NearMiss
from todo_compile.passes.find.casts import promote_concatenations
from todo_compile.passes.find.sites import find_sites
from todo_compile.passes.grid.grids import GridMap, dynamic_packed
from todo_compile.passes.plan import cost
from todo_compile.passes.plan.choose import make_plan
from todo_compile.passes.plan.classify import attention_areas, dynamic_sides
from todo_compile.passes.report import HoistStop
from todo_compile.passes.rewrite.hoist import hoist_pools
from todo_compile.passes.rewrite.lower import lower_pools
from todo_compile.passes.rewrite.pool import insert_pools, reads_of
from todo_compile.passes.rewrite.pooling import Pooling, is_pool
from todo_compile.passes.rewrite.stops import extra_flops


class Find(Pass):
    """Find attention, however it is spelled."""

    name = "sites"

    def apply(self, state: State) -> Outcome:
        _ = state.context.memory  # of the graph as it was captured
        state.sites, state.misses = find_sites(state.context)
        return Outcome(len(state.sites), {"near misses": len(state.misses)})


class Grids(Pass):
    """Follow the image's rows and columns by dataflow."""

    name = "grids"

    def apply(self, state: State) -> Outcome:
        context, wishes = state.context, state.wishes
        for tokens in dynamic_packed(context) if wishes.specialise else ():
            context.specialise(tokens)
        grids = GridMap(context, seeds=wishes.seeds)
        if wishes.specialise and (sides := _dynamic_sides(grids, state.sites)):
            for side in sides:
                context.specialise(side)
            state.sites, state.misses = find_sites(context)
            grids = GridMap(context, seeds=wishes.seeds)
        if wishes.levels is None:
            state.misses += _inside_calls(grids)
        state.grids = grids
        return Outcome(len(grids.axes))


class Plan(Pass):
    """Choose a factor for every site, or a reason why it keeps all its keys."""

    name = "plan"

    def apply(self, state: State) -> Outcome:
        wishes, grids = state.wishes, state.grids
        assert grids is not None
        state.decisions = make_plan(
            state.context,
            grids,
            state.sites,
            wishes.options,
            native_kv_tokens=wishes.native_kv_tokens,
            levels=None if wishes.levels is None else wishes.levels(_areas(grids, state.sites)),
        )
        for decision in state.decisions:
            if (reason := state.failed.get(decision.site.name)) is not None:
                decision.action, decision.reason, decision.poolings = "refused", reason, ()
        state.dense_flops = cost.graph_flops(state.context)
        state.dense_costs = [cost.site_cost(state.context, s) for s in state.sites]
        return Outcome(len(state.pooled))


class Pool(Pass):
    """Pool keys and values at the site."""

    name = "pool"
    requires = (checks.no_pools,)
    ensures = (checks.planned_keys, checks.untouched_memory)

    def apply(self, state: State) -> Outcome:
        state.pools = insert_pools(state.context, state.decisions)
        return Outcome(len(state.pools))


class Hoist(Pass):
    """Move pooling upwards, above the projections."""

    name = "hoist"
    ensures = (checks.planned_keys, checks.untouched_memory)

    def apply(self, state: State) -> Outcome:
        if not state.wishes.options.hoist:
            return Outcome(0)
        hoisted = hoist_pools(state.context, state.pools, without=state.wishes.without_rules)
        state.pools = list(hoisted.stops)
        for pool, reason in hoisted.stops.items():
            source = Pooling.of(pool)[0]
            if is_pool(source):  # it stays where that one does
                continue
            for site, operand in reads_of(pool):
                stop = HoistStop(operand, source.name, reason, extra_flops(state.context, pool))
                state.stops.setdefault(site, []).append(stop)
        return Outcome(sum(hoisted.moves.values()), {**hoisted.moves, "merged": hoisted.merged})


class Lower(Pass):
    """Write poolings out as slices, reshapes and means."""

    name = "lower"
    ensures = (checks.planned_keys, checks.no_pools)

    def apply(self, state: State) -> Outcome:
        return Outcome(lower_pools(state.context))


class Casts(Pass):
    """Write implicit type promotion out, for ONNX and TensorRT."""

    name = "casts"

    def apply(self, state: State) -> Outcome | None:
        if not state.wishes.explicit_casts:
            return None
        return Outcome(promote_concatenations(state.context))


class Refresh(Pass):
    """Propagate shapes and dtypes under fake tensors, and hold them against what was recorded."""

    name = "refresh"
    requires = (checks.no_pools,)
    ensures = (checks.planned_keys, checks.no_more_work)

    def apply(self, state: State) -> Outcome:
        count = state.context.refresh()
        if count:
            state.context.graph.lint()
        return Outcome(count)


PASSES: tuple[Pass, ...] = (
    Find(), Grids(), Plan(), Pool(), Hoist(), Lower(), Casts(), Refresh(),
)  # fmt: skip
"""The compiler, in order."""


def _dynamic_sides(grids: GridMap, sites: list[AttentionSite]) -> list[Any]:
    """Symbolic sides of all grids, in the graphs that this one calls too: it has the symbols."""
    sides = dynamic_sides(grids.context, grids, sites)
    for call in grids.calls:
        sides += _dynamic_sides(call.grids, find_sites(call.grids.context)[0])
    return sides


def _inside_calls(grids: GridMap) -> list[NearMiss]:
    """Attention in graphs that this one calls, which nobody rewrites unless `levels` are given."""
    return [
        NearMiss(
            call.node,
            f"{count} attention {'site lies' if count == 1 else 'sites lie'} in a graph of its own "
            "(autocast, grad mode or a checkpoint inside the module): "
            'torch.compile(backend="todo_inductor") rewrites them there',
        )
        for call in grids.calls
        if (count := _count_attention(call.grids))
    ]


def _count_attention(grids: GridMap) -> int:
    inner = sum(_count_attention(call.grids) for call in grids.calls)
    return len(find_sites(grids.context)[0]) + inner


def _areas(grids: GridMap, sites: list[AttentionSite]) -> frozenset[int]:
    """Tokens of all grids of self-attention, those in the graphs that this one calls too."""
    found = attention_areas(grids.context, grids, sites)
    for call in grids.calls:
        found |= _areas(call.grids, find_sites(call.grids.context)[0])
    return found


def sites_behind(state: State, node: Node) -> set[str]:
    """Sites whose rewrite reaches `node`: those that the nearest new nodes above were made for."""
    seen: set[Node] = set()
    pending = [node]
    found: set[str] = set()
    while pending:
        current = pending.pop()
        if current in seen:
            continue
        seen.add(current)
        if sites := current.meta.get("todo_sites"):
            found.update(sites)
        else:
            pending += current.all_input_nodes
    touching = {s.name for s in state.sites if node in (s.anchor, s.output)}
    return (found or touching) & {d.site.name for d in state.pooled}
