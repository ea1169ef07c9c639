"""The manager of the passes: order, checks, statistics, dumps, and what happens when one fails.

    sites → grids → plan → pool → hoist → lower → casts → refresh        (`steps.PASSES`)

`rewrite_graph` runs them on a graph of either dialect, in place. A check that fails, or a pass that
raises, costs the sites behind the failing node their rewrite and nobody else: the graph is put back
as it was, and the passes run again without these sites.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

import torch
from torch.fx import GraphModule, Node

from todo_compile.errors import ConfigError
from todo_compile.options import PlanOptions, TokenGrid
from todo_compile.passes.base import Check, Outcome, Pass, State, Wishes
from todo_compile.passes.dump import Dumper
from todo_compile.passes.graph import GraphContext, NodeError
from todo_compile.passes.grid.axes import Axes
from todo_compile.passes.plan import cost
from todo_compile.passes.plan.choose import Decision
from todo_compile.passes.plan.classify import SiteGrid
from todo_compile.passes.plan.levels import LevelsOf
from todo_compile.passes.report import (
    FurtherImage,
    ImageKeys,
    PassReport,
    Report,
    SiteReport,
    Totals,
)
from todo_compile.passes.rewrite.pooling import Pooling
from todo_compile.passes.steps import PASSES, sites_behind

log = logging.getLogger("todo_compile")

_CHANGING = frozenset(("pool", "hoist", "lower", "casts", "refresh"))
"""Passes that edit the graph; those before them only look."""


def rewrite_graph(
    module: GraphModule,
    options: PlanOptions | None = None,
    *,
    native_kv_tokens: int | None = None,
    token_grids: Mapping[int, TokenGrid] | None = None,
    patch_grid: tuple[int, int] | None = None,
    image_axes: Mapping[str, tuple[int, int]] | None = None,
    dump: Path | None = None,
    explicit_casts: bool = False,
    specialise: bool = False,
    keep_dynamic: frozenset[Any] = frozenset(),
    batch: int | None = None,
    levels: LevelsOf | None = None,
    seeds: Mapping[Node, Axes] | None = None,
    constants: Mapping[str, torch.Tensor] | None = None,
    without_rules: frozenset[str] = frozenset(),
) -> Report:
    """Find, plan and rewrite the attention of a graph, in place.

    Args:
        module: exported ATen graph or the graph that Dynamo gives to a backend, with fake values.
        options: how factors are chosen.
        native_kv_tokens: the default bound: tokens that the model's highest attention level saw in
            training, of one frame of a video.
        token_grids: number of tokens → (rows, columns) or (frames, rows, columns), for image tokens
            that arrive packed.
        patch_grid: (rows, columns) of packed tokens, believed of a whole denoiser's own only.
        image_axes: input by name → its (row, column) axes, where the caller knows them.
        dump: folder for the graph before and after every pass.
        explicit_casts: also write out implicit type promotion, for ONNX and TensorRT.
        specialise: fix dynamic image sides and numbers of packed tokens to the sizes at hand where
            attention can then be rewritten; the caller's compiler must guard on them (Dynamo does).
        keep_dynamic: symbols that `specialise` leaves alone.
        batch: where it is dynamic, the one that figures are reported for; None for one item.
        levels: which levels the model has beside those of this graph; None: it is all of it.
        seeds: axes of inputs, for a graph that another calls.
        constants: weights and buffers among the inputs, by the name of their node: what a mask
            made of them hides is read off their values.
        without_rules: names of hoisting rules that are switched off.

    Returns:
        What was done to every site.

    Raises:
        ConfigError: options that this graph cannot follow.
        PassError: a pass broke the graph (a bug); the graph must not be used.
    """
    wishes = Wishes(
        options or PlanOptions(),
        native_kv_tokens,
        explicit_casts,
        specialise,
        levels,
        seeds,
        without_rules,
    )
    failed: dict[str, str] = {}
    while True:
        context = GraphContext(
            module,
            token_grids=token_grids,
            patch_grid=patch_grid,
            image_axes=image_axes,
            batch=batch,
            keep_dynamic=keep_dynamic,
            constants=constants,
        )
        run = _Run(State(context, wishes, failed), Dumper(dump) if dump is not None else None)
        before = context.snapshot()
        try:
            run.all(PASSES)
        except _Failed as failure:
            context.restore(before)
            failed |= failure.sites
            continue
        context.commit()
        report = _report(run)
        if run.state.pools or any(p.name == "casts" and p.count for p in run.reports):
            module.recompile()
        run.finish(report)
        return report


class _Failed(Exception):
    """A check failed, and these sites are behind it → why they stay dense."""

    def __init__(self, sites: Mapping[str, str]) -> None:
        super().__init__(", ".join(sites))
        self.sites = sites


class _Run:
    """One attempt at all passes."""

    def __init__(self, state: State, dumper: Dumper | None) -> None:
        self.state, self._dumper = state, dumper
        self.reports: list[PassReport] = []
        self._dump("captured")

    def all(self, passes: tuple[Pass, ...]) -> None:
        """Run the passes in order; each is checked, timed and dumped."""
        for one in passes:
            start = time.perf_counter()
            outcome = self._guarded(one)
            seconds = time.perf_counter() - start
            if outcome is not None:
                self.reports.append(PassReport(one.name, outcome.count, seconds, outcome.detail))
                self._dump(one.name)

    def finish(self, report: Report) -> None:
        """Write the report beside the graphs."""
        if self._dumper is not None:
            self._dumper.write_report(report)

    def _guarded(self, one: Pass) -> Outcome | None:
        """A pass with its conditions.

        Raises:
            _Failed: it broke something, and some sites can be left dense for it.
        """
        try:
            self._check(one.requires)
            outcome = one.apply(self.state)
            self._check(one.ensures)
        except ConfigError:
            raise
        except Exception as error:
            if one.name not in _CHANGING or not self.state.pooled:
                raise
            raise self._failure(one, error) from error
        return outcome

    def _check(self, conditions: tuple[Check, ...]) -> None:
        # Without a rewrite nothing has changed that could be wrong.
        for condition in conditions if self.state.pooled else ():
            condition(self.state)

    def _failure(self, one: Pass, error: Exception) -> _Failed:
        behind: set[str] = set(self.state.context.sites)
        if isinstance(error, NodeError):
            behind = sites_behind(self.state, error.node)
        behind = behind or {d.site.name for d in self.state.pooled}
        log.debug("pass %r failed; left dense: %s", one.name, ", ".join(behind), exc_info=error)
        said = str(error).splitlines()[0] if str(error) else type(error).__name__
        reason = (
            f"its rewrite failed a check after the pass {one.name!r} ({said}), so it stays dense: "
            "please report this with --dump"
        )
        return _Failed(dict.fromkeys(behind, reason))

    def _dump(self, name: str) -> None:
        if self._dumper is not None:
            self._dumper.write(name, self.state.context)


def _report(run: _Run) -> Report:
    state = run.state
    context, dense = state.context, state.dense_flops
    after = cost.graph_flops(context)
    rows = [
        _row(state, decision, before)
        for decision, before in zip(state.decisions, state.dense_costs, strict=True)
    ]
    rows += [
        SiteReport(
            name=miss.node.name,
            module=context.module_path(miss.node),
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
        for miss in state.misses
    ]
    totals = Totals(
        flops=dense,
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
        tuple(run.reports),
        totals,
        state.wishes.options.describe(),
        len(context.graph.nodes),
        per_item=context.is_dynamic and context.batch is None,
    )


def _upright(decision: Decision) -> list[Pooling]:
    """The poolings of all images with rows and columns as in the picture, whatever their order."""
    return [
        pooling.transposed() if image.column_major else pooling
        for pooling, image in zip(decision.poolings, decision.grid.images, strict=False)
    ]


def _image(pooling: Pooling, image: SiteGrid, keeps_mass: bool) -> ImageKeys:
    """An image's keys, rows and columns as in the picture."""
    return ImageKeys(
        pooling.offset,
        image.column_major,
        pooling.sampling,
        (pooling.row_phase, pooling.column_phase),
        keeps_mass,
    )


def _beside(decision: Decision, found: Sequence[Pooling]) -> tuple[FurtherImage, ...]:
    """All images but the first."""
    return tuple(
        FurtherImage(
            (grid.rows, grid.columns),
            grid.frames,
            (1, 1) if one is None else (one.row_factor, one.column_factor),
            None if one is None else _image(one, grid, decision.keeps_mass),
        )
        for grid, one in list(zip_longest(decision.grid.images, found))[1:]
    )


def _sampling(decision: Decision, found: Sequence[Pooling]) -> str:
    """The sampling with the phase of the image's rows and columns, and whether mass is kept."""
    said = next((pooling.description for pooling in found if pooling.pools), "")
    return f"{said}, mass kept" if decision.keeps_mass else said


def _row(state: State, decision: Decision, before: cost.SiteCost | None) -> SiteReport:
    site, context, graph_flops = decision.site, state.context, state.dense_flops
    after = cost.site_cost(context, site)
    found = _upright(decision)
    first = found[0] if found else None
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
        factor=(first.row_factor, first.column_factor) if first else (1, 1),
        image=_image(first, decision.grid, decision.keeps_mass) if first else None,
        frames=decision.grid.frames,
        beside=_beside(decision, found),
        action=decision.action,
        reason="; ".join(filter(None, (decision.reason, decision.grid.evidence))),
        flops=before.flops if before else 0,
        flops_after=after.flops if after else 0,
        share=before.flops / graph_flops if before and graph_flops else 0.0,
        score_elements=before.score_elements if before else 0,
        score_elements_after=after.score_elements if after else 0,
        attention_bytes=before.operand_bytes if before else 0,
        attention_bytes_after=after.operand_bytes if after else 0,
        sampling=_sampling(decision, found),
        stops=tuple(state.stops.get(site.name, ())),
    )
