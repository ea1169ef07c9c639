"""Drift over many steps: of a whole plan and of every site alone, by timestep.

    meter = DriftMeter(module, args)
    drift = measure(meter, probes, options)     rows for tables, JSON and plots

What one step gives, and what an error is, says `meter`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from todo_compile.drift.meter import DriftMeter, SiteError, relative_error
from todo_compile.drift.report import Drift, SiteDrift
from todo_compile.options import PlanOptions

__all__ = ["Drift", "DriftMeter", "Probe", "SiteDrift", "SiteError", "measure", "relative_error"]


@dataclass(frozen=True, slots=True)
class Probe:
    """Inputs of one measurement.

    Args:
        timestep: which they belong to.
        args: of the module.
    """

    timestep: float
    args: tuple[Any, ...]


def measure(
    meter: DriftMeter,
    probes: Sequence[Probe],
    options: PlanOptions,
    *,
    output: bool = True,
    report: Callable[[int, int], None] | None = None,
) -> Drift:
    """Drift of a plan over probes; those of equal timestep are averaged.

    Args:
        meter: of the model.
        probes: see `todo_compile.drift.probes`, or inputs recorded in a sampling loop.
        options: the plan.
        output: also measure what each site alone does to the output; False is faster.
        report: called with (probes done, probes in all).

    Raises:
        ConfigError: options that this model cannot follow.
    """
    plan = meter.plan(options)
    rewritten = [s for s in plan.sites if s.action == "rewritten"]
    timesteps = tuple(dict.fromkeys(p.timestep for p in probes))
    totals: dict[float, list[float]] = {t: [] for t in timesteps}
    errors: dict[tuple[str, float], list[SiteError]] = {}
    for done, probe in enumerate(probes):
        step = meter.dense(probe.args)
        totals[probe.timestep].append(step.total(options))
        for site in rewritten:
            own = options if any(one.factor != site.factor for one in site.beside) else None
            error = step.single(site.name, site.factor, options.sampling, output=output, plan=own)
            errors.setdefault((site.name, probe.timestep), []).append(error)
        if report is not None:
            report(done + 1, len(probes))
    rows: list[SiteDrift] = []
    for site in rewritten:
        columns = [errors[site.name, t] for t in timesteps]
        assert site.grid is not None
        rows.append(
            SiteDrift(
                site.name,
                site.module,
                site.level,
                site.grid,
                site.factor,
                site.sampling,
                site.share,
                tuple(_mean([e.local for e in column]) for column in columns),
                tuple(_mean([e.output or 0.0 for e in column]) for column in columns)
                if output
                else (),
            )
        )
    return Drift(
        timesteps,
        tuple(_mean(totals[t]) for t in timesteps),
        tuple(rows),
        len(probes) // max(len(timesteps), 1),
        options.describe(),
    )


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0
