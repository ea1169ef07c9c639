"""Tuned plans on Dynamo's graphs: whether a graph is of the model and size of the plan, and phases.

A graph knows neither weights nor pixels. It has the paths of its modules and the grids of their
attention, and a plan has the same: what differs is refused.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from todo_compile._torch import set_compiled_call
from todo_compile.bundle.plan import TunedPlan
from todo_compile.capture.recording.times import Times
from todo_compile.errors import ConfigError, InputError
from todo_compile.passes.report import Report
from todo_compile.runtime.switching import PhasedDenoiser


def check_graph(plan: TunedPlan, reports: Sequence[Report]) -> None:
    """Refuse a graph that is not of the model and size that a plan was tuned for.

    Args:
        reports: of the graph and of those that it calls.

    Raises:
        ConfigError: it has none of the plan's sites, or one of another grid.
    """
    remedy = "Tune a plan for this model and size, or leave the plan out."
    own = [
        s for r in reports for s in r.sites if s.kind in ("self", "joint") and s.grid is not None
    ]
    found = 0
    for site in plan.sites:
        path = site.name.partition("#")[0]
        mine = [s for s in own if s.module == path or s.module.endswith(f".{path}")]
        found += bool(mine)
        for other in mine:
            if other.grid != (site.rows, site.columns):
                assert other.grid is not None
                raise ConfigError(
                    f"The plan was tuned for {plan.resolution}, where {site.name} has "
                    f"{site.columns}×{site.rows} tokens; here it has {other.grid[1]}×"
                    f"{other.grid[0]}.",
                    remedy=remedy,
                )
    if own and not found:
        raise ConfigError(
            f"None of the {len(plan.sites)} sites of the plan is in this graph; it was tuned for "
            f"{plan.model}.",
            remedy=remedy,
        )
    if own and found < len(plan.sites):
        warnings.warn(
            f"{len(plan.sites) - found} of the {len(plan.sites)} sites of the plan are not in this "
            "graph: it is a part of the model, or of another.",
            stacklevel=3,
        )


def compile_phases(
    module: nn.Module, pipe: Any, plan: TunedPlan, options: dict[str, Any], **settings: Any
) -> None:
    """Let calls of a pipeline's denoiser run the phase of a plan that the schedule is in.

    Args:
        module: the denoiser.
        pipe: whose scheduler counts.
        plan: of several phases.
        options: of the backend, without the plan.
        settings: of `torch.compile`.
    """
    compile_one: Any = torch.compile  # its annotations know no options but Inductor's
    calls: list[Callable[..., Any]] = [
        compile_one(
            module._call_impl,  # pyright: ignore[reportPrivateUsage]
            backend="todo_inductor",
            options={**options, "plan": plan, "phase": index},
            **settings,
        )
        for index in range(len(plan.phases))
    ]
    schedule = PhasedDenoiser([nn.Identity() for _ in calls], plan.starts)
    schedule.follow(pipe)

    own = Times.of(plan.settings.get("time")) or Times("timestep", 1.0, 0.0)

    def call(*args: Any, **kwargs: Any) -> Any:
        timestep = kwargs.get(own.name, args[1] if len(args) > 1 else None)
        if timestep is None:
            raise InputError(
                f"{type(module).__name__} was called without a timestep, which says what phase of "
                "the plan runs.",
                remedy="Give it as timestep=….",
            )
        return calls[schedule.index(*own.scheduled(timestep))](*args, **kwargs)

    set_compiled_call(module, call)
