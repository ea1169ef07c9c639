"""A torch pipeline whose denoiser went through the passes; no file is written: for a quick look."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from todo_compile import models
from todo_compile.errors import EngineError
from todo_compile.precision import dtype_of
from todo_compile.runtime.switching import PhasedDenoiser
from todo_compile.runtime.variants import CapturedComponent

if TYPE_CHECKING:
    from todo_compile.bundle.plan import TunedPlan
    from todo_compile.models import Resolution, Source, WeightsChoice
    from todo_compile.options import PlanOptions
    from todo_compile.passes.report import Report


def torch_device(device: str | None) -> torch.device:
    """Where torch shall run: ``cpu``, ``cuda`` or ``cuda:N``; None for a GPU where there is one.

    Raises:
        EngineError: torch has no such device.
    """
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    kind, _, index = device.partition(":")
    if kind == "cpu" and not index:
        return torch.device("cpu")
    if kind != "cuda" or not (index.isdigit() or device == "cuda"):
        raise EngineError(f"Unknown device {device!r}.", remedy="Known: cpu, cuda, cuda:N.")
    if int(index or 0) >= torch.cuda.device_count():
        raise EngineError(
            f"torch finds {torch.cuda.device_count()} NVIDIA GPUs in this machine, no {device}.",
            remedy="Take --device cpu, or install a CUDA build of torch and the driver.",
        )
    return torch.device(device)


def rewrite_pipeline(
    pipeline: Any,
    source: Source,
    resolution: Resolution,
    *,
    batch: int,
    options: PlanOptions | None,
) -> Report:
    """Put a pipeline's denoiser through the passes, in place; torch runs it.

    Args:
        pipeline: from `torch_pipeline`.
        source: of its denoising model.
        resolution: of the pictures to come.
        batch: of the denoiser.
        options: how factors are chosen.

    Returns:
        What was done to every attention site.

    Raises:
        TodoError: the model cannot be captured, or does not take the options.
    """
    captured = CapturedComponent(pipeline, source, resolution, batch=batch)
    component, report = captured.variant(options)
    setattr(pipeline, source.component, component)
    return report


def plan_pipeline(
    pipeline: Any, source: Source, resolution: Resolution, *, batch: int, plan: TunedPlan
) -> tuple[Report, ...]:
    """Put a pipeline's denoiser under a tuned plan, in place: one graph a phase, one set of
    weights, switched by the pipeline's own schedule.

    Args:
        pipeline: from `torch_pipeline`.
        source: of its denoising model.
        resolution: of the pictures to come.
        batch: of the denoiser.
        plan: tuned for these weights and this size.

    Returns:
        For each phase what was done to every attention site.

    Raises:
        ConfigError: the plan was tuned for something else.
        TodoError: the model cannot be captured.
    """
    from todo_compile.capture.inputs import check_scheduled

    check_plan(plan, source, resolution, dtype=pipeline.dtype)
    if len(plan.phases) > 1:
        check_scheduled(source, resolution, "A plan of several phases")
    captured = CapturedComponent(pipeline, source, resolution, batch=batch)
    made = [captured.variant(options) for options in plan.options]
    denoiser = PhasedDenoiser([part for part, _ in made], plan.starts)
    setattr(pipeline, source.component, denoiser)
    denoiser.follow(pipeline)
    return tuple(report for _, report in made)


def check_plan(
    plan: TunedPlan, source: Source, resolution: Resolution, *, dtype: torch.dtype
) -> None:
    """Refuse a plan that was tuned for another model, other weights or another size.

    Raises:
        ConfigError: says what differs.
    """
    plan.check(component=source.component, resolution=str(resolution))
    check_weights(plan, source, models.WeightsChoice.parse("auto"), dtype)


def check_weights(
    plan: TunedPlan, source: Source, choice: WeightsChoice, dtype: torch.dtype
) -> None:
    """Refuse other weights than the plan was tuned for.

    A folder may hold the same weights twice, full and in fp16, and a plan that was tuned on one of
    the files serves the other: its precision says which one it was. Hashes are read once a process.

    Raises:
        ConfigError: says so.
    """
    digest = models.weights_hash(models.find_weights(source, choice, dtype=dtype))
    precision = plan.settings.get("precision")
    if digest != plan.weights and precision in ("fp16", "bf16", "fp32"):
        other = models.find_weights(source, choice, dtype=dtype_of(precision))
        if models.weights_hash(other) == plan.weights:
            return
    plan.check(component=source.component, weights=digest)
