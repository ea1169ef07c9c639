"""One heat: all variants of a workload in one runtime, in turn in one process."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import todo_compile
from race_parts.alone import ready
from race_parts.clock import Sample, load_average, quartiles, sample
from race_parts.figures import ours, ratios
from race_parts.runtimes import RUNTIMES, Prepared
from race_parts.variants import BOUND, DENSE, Planned, Variant, planned
from race_parts.workloads import Workload
from todo_compile.passes.report import Report


@dataclass(frozen=True)
class Rules:
    """How a heat is run.

    Attributes:
        rounds: each runs every variant once, in an order that turns; 0 takes the first run of each
            for the measurement, for machines that take minutes for one.
        warmup: calls of each after the first, not timed.
        deadline: of `time.monotonic`: no round but the first is begun after it.
        alone: time each plan's pooled attentions by themselves too, see `race_parts.alone`.
    """

    rounds: int = 3
    warmup: int = 1
    deadline: float = float("inf")
    alone: bool = False


@dataclass
class _Lane:
    """A variant and what was measured of it."""

    variant: Variant
    prepared: Prepared
    attentions: Callable[[], Tensor] | None = None
    samples: list[Sample] = field(default_factory=list[Sample])
    alone: list[Sample] = field(default_factory=list[Sample])


@torch.no_grad()
def run(
    work: Workload,
    variants: Sequence[Variant],
    runtime: str,
    rules: Rules,
    keep: Callable[[dict[str, Any]], object] = lambda _: None,
    say: Callable[[str], object] = print,
) -> dict[str, Any]:
    """Prepare and time the variants; the row of results.

    Args:
        keep: given the row after every round: a long run may be stopped.

    Raises:
        SystemExit: a variant is not what its name says (nothing rewritten, dense's own output,
            not finite).
    """
    torch.compiler.reset()
    todo_compile.clear_reports()
    plans = planned(work, variants)
    lanes: dict[str, _Lane] = {}
    loads = [load_average()]
    device = work.inputs[0].device.type
    row: dict[str, Any] = {}

    def now() -> dict[str, Any]:
        return _row(work, runtime, lanes, plans, loads)

    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        for one in variants:
            if one.name in plans.idle:
                continue
            prepared = RUNTIMES[runtime](work, one, Path(folder))
            _check(one, prepared, plans.reports.get(one.name), lanes)
            lane = lanes[one.name] = _Lane(one, prepared)
            if rules.alone and plans.attentions.get(one.name):
                lane.attentions = ready(plans.attentions[one.name], device)
            say(
                f"  {one.name}: ready in {prepared.prepare_seconds:.1f} s, "
                f"first run {prepared.first.cost:.4g} s"
            )
        for lane in lanes.values():
            if rules.rounds == 0:
                lane.samples.append(lane.prepared.first)
            for _ in range(rules.warmup if rules.rounds else 0):
                lane.prepared.call()
        row = now()
        keep(row)
        for index in range(rules.rounds):
            if index and time.monotonic() > rules.deadline:
                break
            loads.append(load_average())
            for lane in list(lanes.values())[:: 1 if index % 2 == 0 else -1]:
                lane.samples.append(_sample(lane, device))
                if lane.attentions is not None:
                    lane.alone.append(sample(lane.attentions, device))
            row = now()
            keep(row)
            latest = ", ".join(f"{n} {lane.samples[-1].cost:.4g}" for n, lane in lanes.items())
            say(f"  round {index + 1}: {latest}")
    return row


def _sample(lane: _Lane, device: str) -> Sample:
    """One period of a variant, as if it were one call."""
    count = lane.variant.calls

    def period() -> None:
        for _ in range(count):
            lane.prepared.call()

    taken = sample(period, device)
    processor = taken.processor_seconds
    return Sample(
        taken.seconds / count, None if processor is None else processor / count, taken.peak_bytes
    )


def _check(one: Variant, prepared: Prepared, plan: Report | None, lanes: dict[str, _Lane]) -> None:
    """A variant must be what its name says."""
    output = prepared.output = prepared.output.float().cpu()
    if not torch.isfinite(output).all():
        raise SystemExit(f"{one.name}: the output is not finite")
    if one.name == DENSE:
        return
    if one.plan is not None:
        report = prepared.report
        if plan is None or report is None or report.counts != plan.counts:
            got = None if report is None else report.summary()
            raise SystemExit(f"{one.name}: the runtime's plan is another than the graph's ({got})")
        if one.name == BOUND and not _cut_to_one(report):
            raise SystemExit("bound: a rewritten site reads more than one key of the image")
    if one.calls > 1:
        return  # its first call is dense
    if (dense := lanes.get(DENSE)) and torch.equal(dense.prepared.output, output):
        raise SystemExit(f"{one.name}: gives exactly what dense gives")


def _cut_to_one(report: Report) -> bool:
    done = [s for s in report.sites if s.action == "rewritten"]
    return all(
        s.grid is not None and all(f >= n for f, n in zip(s.factor, s.grid, strict=True))
        for s in done
    )


def _distance(output: Tensor, dense: Tensor) -> float:
    return float((output - dense).norm() / dense.norm())


def _row(
    work: Workload,
    runtime: str,
    lanes: dict[str, _Lane],
    plans: Planned,
    loads: Sequence[float | None],
) -> dict[str, Any]:
    samples = {name: lane.samples for name, lane in lanes.items() if lane.samples}
    return {
        "workload": work.name,
        "px": work.px,
        "batch": work.batch,
        "precision": work.precision,
        "about": work.about,
        "runtime": runtime,
        "device": work.inputs[0].device.type,
        "threads": torch.get_num_threads(),
        "variants": {
            name: _facts(lane, plans.reports.get(name), lanes) for name, lane in lanes.items()
        },
        "dense_over": ratios(samples) if samples else {},
        "ours": ours(samples, {name: lane.alone for name, lane in lanes.items() if lane.alone}),
        "idle": plans.idle,
        "load_average": list(loads),
    }


def _facts(lane: _Lane, plan: Report | None, lanes: dict[str, _Lane]) -> dict[str, Any]:
    """What is known of one variant."""
    every = [lane.prepared.first, *lane.samples]
    peaks = [s.peak_bytes for s in every if s.peak_bytes is not None]
    processor = [s.processor_seconds for s in lane.samples if s.processor_seconds is not None]
    facts: dict[str, Any] = {
        "seconds": quartiles([s.seconds for s in lane.samples]) if lane.samples else None,
        "processor_seconds": quartiles(processor) if processor else None,
        "samples": [(s.seconds, s.processor_seconds) for s in lane.samples],
        "peak_bytes": max(peaks) if peaks else None,
        "prepare_seconds": lane.prepared.prepare_seconds,
    }
    if (dense := lanes.get(DENSE)) is not None and dense is not lane:
        facts["distance_to_dense"] = _distance(lane.prepared.output, dense.prepared.output)
    if plan is not None:
        facts["sites"] = plan.counts
        facts["flops"] = {"dense": plan.totals.flops, "rewritten": plan.totals.flops_after}
        facts["factors"] = sorted(
            {(s.level, s.factor) for s in plan.sites if s.action == "rewritten"}
        )
    return facts
