"""The denoisers of a bundle: one for each phase of the schedule, by a tuned plan or --dense-after.

All are made from one model: what was checked for the first holds for the others too. Phases that
are the same are one output.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from todo_compile.build.model_job import plan_identity
from todo_compile.build.planned import Planned
from todo_compile.errors import ConfigError
from todo_compile.models.components import OTHERS
from todo_compile.options import PlanOptions

if TYPE_CHECKING:
    from todo_compile.build.model_job import ModelJob
    from todo_compile.build.request import BuildRequest
    from todo_compile.bundle.plan import TunedPlan

DENSE = ".dense"
"""Ends the name of an output for a dense phase after the first."""


@dataclass(frozen=True)
class DenoiserPhase:
    """A part of the schedule.

    Attributes:
        start: share of the steps before it.
        ending: of its output's name; "" for the first phase, and for others that equal it.
        planned: what a tuned plan asks of its output; None without a plan.
    """

    start: float
    ending: str = ""
    planned: Planned | None = None


def phases_of(request: BuildRequest, first: str) -> list[DenoiserPhase]:
    """The phases that a bundle's request asks for; one without a plan and without --dense-after.

    Args:
        request: of a bundle.
        first: the bundle's first component.

    Raises:
        ConfigError: the bundle has no denoising model, or the share of the steps is none.
    """
    tuned, after = request.tuned, request.dense_after
    option = "--plan" if tuned is not None else "--dense-after"
    if after is not None and not 0 < after < 1:
        raise ConfigError(
            f"{after:g} is not a share of the steps between 0 and 1.",
            remedy="--dense-after 0.7: dense for the last 30 % of the steps.",
        )
    if first in OTHERS and (tuned is not None or after is not None):
        raise ConfigError(
            f"{option} is for the denoising model, which this bundle lacks.",
            remedy="Leave it out, or build all components.",
        )
    if tuned is not None:
        return _by_plan(tuned)
    return [DenoiserPhase(0.0)] if after is None else [DenoiserPhase(0.0), _dense(after)]


def phase_job(job: ModelJob, phase: DenoiserPhase) -> ModelJob:
    """The job for a later phase.

    Args:
        job: for the first one.
        phase: with an ending.
    """
    if phase.planned is not None:
        options = phase.planned.options
    else:
        options = replace(job.options, factors=(), kv_tokens=None, sites=())
    stem, dump = job.out.stem, job.request.dump
    name = f"{stem}{phase.ending}"
    return replace(
        job,
        out=job.out.with_name(f"{name}{job.out.suffix}"),
        options=options,
        planned=phase.planned,
        request=job.request.model_copy(
            update={"dump": dump and dump.with_name(name), "options": options}
        ),
        identity={**job.identity, "plan": plan_identity(job.source, options, phase.planned)},
    )


def _dense(start: float) -> DenoiserPhase:
    return DenoiserPhase(start, DENSE)


def _by_plan(plan: TunedPlan) -> list[DenoiserPhase]:
    numbers: dict[PlanOptions, list[int]] = {}
    for number, options in enumerate(plan.options, 1):
        numbers.setdefault(_same(options), []).append(number)
    found: list[DenoiserPhase] = []
    for phase in plan.phases:
        same = numbers[_same(phase.options)]
        ending = "" if same[0] == 1 else DENSE if phase.dense else f".phase{same[0]}"
        found.append(DenoiserPhase(phase.start, ending, Planned(plan, tuple(same))))
    return found


def _same(options: PlanOptions) -> PlanOptions:
    """The options without sites that are named to stay dense: an unnamed one stays dense too."""
    return replace(options, sites=tuple(one for one in options.sites if one[1][:2] != (1, 1)))
