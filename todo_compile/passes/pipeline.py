"""The passes in order, with statistics, dumps and checks: the compiler's table of contents.

    sites → grids → plan → pool → hoist → lower → clean → refresh

`rewrite_graph` runs them on a graph of either dialect, in place.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch.fx import GraphModule, Node

from todo_compile.errors import PassError
from todo_compile.options import PlanOptions
from todo_compile.passes.dump import Dumper
from todo_compile.passes.find.attention import AttentionSite, NearMiss
from todo_compile.passes.find.casts import promote_concatenations
from todo_compile.passes.find.sites import find_sites
from todo_compile.passes.graph import BUG, GraphContext
from todo_compile.passes.grid.axes import Axes
from todo_compile.passes.grid.grids import GridMap
from todo_compile.passes.grid.packed import dynamic_packed
from todo_compile.passes.plan import cost
from todo_compile.passes.plan.choose import Decision, make_plan
from todo_compile.passes.plan.classify import attention_areas, dynamic_sides
from todo_compile.passes.plan.levels import LevelsOf
from todo_compile.passes.report import PassReport, Report, SiteReport, Totals
from todo_compile.passes.rewrite.hoist import hoist_pools
from todo_compile.passes.rewrite.lower import lower_pools
from todo_compile.passes.rewrite.pool import insert_pools


@dataclass(slots=True)
class _Run:
    """State between passes."""

    context: GraphContext
    options: PlanOptions
    dumper: Dumper | None
    sites: list[AttentionSite] = field(default_factory=list[AttentionSite])
    misses: list[NearMiss] = field(default_factory=list[NearMiss])
    decisions: list[Decision] = field(default_factory=list[Decision])
    passes: list[PassReport] = field(default_factory=list[PassReport])
    stops: dict[Node, str] = field(default_factory=dict[Node, str])

    @contextmanager
    def timed(self, name: str) -> Generator[Callable[[int, dict[str, int]], None]]:
        """Time a pass; it reports its count through the yielded function."""
        outcome: tuple[int, dict[str, int]] = (0, {})

        def report(count: int, detail: dict[str, int]) -> None:
            nonlocal outcome
            outcome = (count, detail)

        start = time.perf_counter()
        yield report
        seconds = time.perf_counter() - start
        self.passes.append(PassReport(name, outcome[0], seconds, outcome[1]))
        if self.dumper is not None:
            self.dumper.write(name, self.context)


def rewrite_graph(
    module: GraphModule,
    options: PlanOptions | None = None,
    *,
    native_kv_tokens: int | None = None,
    token_grids: dict[int, tuple[int, int]] | None = None,
    dump: Path | None = None,
    explicit_casts: bool = False,
    specialise: bool = False,
    keep_dynamic: frozenset[Any] = frozenset(),
    batch: int | None = None,
    levels: LevelsOf | None = None,
    seeds: Mapping[Node, Axes] | None = None,
) -> Report:
    """Find, plan and rewrite the attention of a graph, in place.

    Args:
        module: exported ATen graph or the graph that Dynamo gives to a backend, with fake values.
        options: how factors are chosen.
        native_kv_tokens: the default bound: tokens that the model's highest attention level saw in
            training.
        token_grids: number of tokens → (rows, columns) for image tokens that arrive packed.
        dump: folder for the graph before and after every pass.
        explicit_casts: also write out implicit type promotion, for ONNX and TensorRT.
        specialise: fix dynamic image sides and numbers of packed tokens to the sizes at hand where
            attention can then be rewritten; the caller's compiler must guard on them (Dynamo does).
        keep_dynamic: symbols that `specialise` leaves alone.
        batch: where it is dynamic, the one that figures are reported for; None for one item.
        levels: which levels the model has beside those of this graph; None: it is all of it.
        seeds: axes of inputs, for a graph that another calls.

    Returns:
        What was done to every site.

    Raises:
        ConfigError: options that this graph cannot follow.
        PassError: a pass broke the graph (a bug); the graph must not be used.
    """
    options = options or PlanOptions()
    context = GraphContext(module, token_grids=token_grids, batch=batch, keep_dynamic=keep_dynamic)
    run = _Run(context, options, Dumper(dump) if dump is not None else None)
    if run.dumper is not None:
        run.dumper.write("captured", context)

    with run.timed("sites") as done:
        run.sites, run.misses = find_sites(context)
        done(len(run.sites), {"near misses": len(run.misses)})
    with run.timed("grids") as done:
        for tokens in dynamic_packed(context) if specialise else ():
            context.specialise(tokens)
        grids = GridMap(context, seeds=seeds)
        if specialise and (sides := _dynamic_sides(grids, run.sites)):
            for side in sides:
                context.specialise(side)
            run.sites, run.misses = find_sites(context)
            grids = GridMap(context, seeds=seeds)
        done(len(grids.axes), {})
    if levels is None:
        run.misses += _inside_calls(grids)
    with run.timed("plan") as done:
        run.decisions = make_plan(
            context,
            grids,
            run.sites,
            options,
            native_kv_tokens=native_kv_tokens,
            levels=None if levels is None else levels(_areas(grids, run.sites)),
        )
        done(sum(d.pooling is not None for d in run.decisions), {})
    dense = _measure(run)
    with run.timed("pool") as done:
        pools = insert_pools(context, run.decisions)
        done(len(pools), {})
    with run.timed("hoist") as done:
        if options.hoist:
            hoisted = hoist_pools(context, pools)
            run.stops = hoisted.stops
            done(sum(hoisted.moves.values()), {**hoisted.moves, "merged": hoisted.merged})
    with run.timed("lower") as done:
        done(lower_pools(context), {})
    casts = 0
    if explicit_casts:
        with run.timed("casts") as done:
            casts = promote_concatenations(context)
            done(casts, {})
    with run.timed("refresh") as done:
        done(context.refresh(), {})
        if pools or casts:
            _check_planned(run)
            context.graph.lint()
            module.recompile()
    report = _report(run, dense)
    if run.dumper is not None:
        run.dumper.write_report(report)
    return report


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


@dataclass(frozen=True, slots=True)
class _Dense:
    flops: int
    sites: list[cost.SiteCost | None]


def _measure(run: _Run) -> _Dense:
    return _Dense(
        cost.graph_flops(run.context), [cost.site_cost(run.context, s) for s in run.sites]
    )


def _check_planned(run: _Run) -> None:
    """Every site that the plan rewrites must now read exactly the planned number of keys."""
    for decision in run.decisions:
        if decision.pooling is None:
            continue
        site, context = decision.site, run.context
        _, key, value = site.operands_now()
        for node, operand in ((key, site.key), (value, site.value)):
            shape = context.shape(node)
            planned = decision.pooling.length_after(decision.keys)
            if shape is None or shape[operand.tokens] != planned:
                raise PassError(
                    f"site {site.name} was planned for {planned} keys but reads {shape}",
                    remedy=BUG,
                )


def _report(run: _Run, dense: _Dense) -> Report:
    after = cost.graph_flops(run.context)
    if after > dense.flops:
        raise PassError("the rewritten graph needs more operations than the dense one")
    rows = [
        _row(run, decision, before, dense.flops)
        for decision, before in zip(run.decisions, dense.sites, strict=True)
    ]
    rows += [
        SiteReport(
            name=miss.node.name,
            module=run.context.module_path(miss.node),
            kind="unknown",
            spelling="not understood",
            grid=None,
            level=0,
            heads=0,
            head_dim=0,
            query_tokens=0,
            key_tokens=0,
            key_tokens_after=0,
            factor=(1, 1),
            action="refused",
            reason=miss.reason,
            flops=0,
            flops_after=0,
            share=0.0,
        )
        for miss in run.misses
    ]
    totals = Totals(
        flops=dense.flops,
        flops_after=after,
        attention_flops=sum(r.flops for r in rows),
        attention_flops_after=sum(r.flops_after for r in rows),
        attention_bytes=sum(r.attention_bytes for r in rows),
        attention_bytes_after=sum(r.attention_bytes_after for r in rows),
        score_elements=max((r.score_elements for r in rows), default=0),
        score_elements_after=max((r.score_elements_after for r in rows), default=0),
        tensor_limit=cost.TENSOR_LIMIT,
    )
    return Report(
        tuple(rows),
        tuple(run.passes),
        totals,
        run.options.describe(),
        len(run.context.graph.nodes),
        per_item=run.context.is_dynamic and run.context.batch is None,
    )


def _factor(decision: Decision) -> tuple[int, int]:
    """(row, column) factor of the image, whatever order its tokens are in."""
    if decision.pooling is None:
        return 1, 1
    pair = decision.pooling.row_factor, decision.pooling.column_factor
    return (pair[1], pair[0]) if decision.grid.column_major else pair


def _sampling(decision: Decision) -> str:
    """The sampling with the phase of the image's rows and columns, and whether mass is kept."""
    if decision.pooling is None:
        return ""
    turned = decision.grid.column_major
    said = (decision.pooling.transposed() if turned else decision.pooling).description
    return f"{said}, mass kept" if decision.keeps_mass else said


def _row(
    run: _Run, decision: Decision, before: cost.SiteCost | None, graph_flops: int
) -> SiteReport:
    site, context = decision.site, run.context
    after = cost.site_cost(context, site)
    return SiteReport(
        name=site.name,
        module=context.module_path(site.anchor),
        kind=decision.grid.kind,
        spelling=site.spelling,
        grid=(decision.grid.rows, decision.grid.columns) if decision.grid.rows else None,
        level=decision.level,
        heads=before.batch if before else 0,
        head_dim=before.head_dim if before else 0,
        query_tokens=before.query_tokens if before else 0,
        key_tokens=before.key_tokens if before else 0,
        key_tokens_after=after.key_tokens if after else 0,
        factor=_factor(decision),
        action=decision.action,
        reason=decision.reason,
        flops=before.flops if before else 0,
        flops_after=after.flops if after else 0,
        share=before.flops / graph_flops if before and graph_flops else 0.0,
        score_elements=before.score_elements if before else 0,
        score_elements_after=after.score_elements if after else 0,
        attention_bytes=before.operand_bytes if before else 0,
        attention_bytes_after=after.operand_bytes if after else 0,
        sampling=_sampling(decision),
    )
