"""Inputs to measure drift with, of denoisers whose inputs are read off their pipeline.

The pipeline draws with its own loop and scheduler, made of stand-ins except for the denoiser, which
is the real one: its calls are the probes. So times, noise and conditions are of the kind that this
pipeline has, whatever that is; texts are seeded numbers.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, cast

import torch

from todo_compile.capture.inputs import ExampleInputs, recorder_of
from todo_compile.capture.recording.call import flatten
from todo_compile.capture.recording.modules import Recorded, Result
from todo_compile.capture.recording.times import time_of
from todo_compile.drift.measure import Probe
from todo_compile.errors import ConfigError, ModelError

if TYPE_CHECKING:
    from todo_compile.models import LoadedModel, Resolution


def recorded_probes(
    model: LoadedModel,
    example: ExampleInputs,
    resolution: Resolution,
    *,
    steps: int = 5,
    seeds: int = 2,
) -> list[Probe]:
    """The denoiser's inputs at each of `steps` steps, for `seeds` pictures.

    Of several calls with one time (the prompt's and the empty prompt's) the first counts. A
    pipeline that starts from a picture takes fewer steps.

    Args:
        model: with its weights.
        example: of it, for the batch that its pipeline has.
        resolution: in pixels.
        steps: of the scheduler.
        seeds: pictures, each with noise of its own.

    Raises:
        ConfigError: no steps or seeds.
        ModelError: the pipeline stops, or calls its denoiser otherwise from step to step.
    """
    if steps < 1 or seeds < 1:
        raise ConfigError("Drift needs at least one timestep and one seed.")
    probes: list[Probe] = []
    first = ""
    for seed in range(seeds):
        times: list[float] = []

        def answer(arguments: Mapping[str, Any], times: list[float] = times) -> Any:
            nonlocal first
            flat = flatten(arguments)
            first = first or flat.text
            shapes = [tuple(tensor.shape) for tensor in flat.tensors]
            if flat.text != first or shapes != [tuple(spec.shape) for spec in example.specs]:
                raise ModelError(
                    f"{model.source.pipeline} calls its denoiser in several ways, so there is no "
                    "one graph whose drift could be measured.",
                    remedy="Compare pictures: `todo-compile generate --bundle … --compare`.",
                )
            args = tuple(
                tensor.to(spec.dtype)
                for tensor, spec in zip(flat.tensors, example.specs, strict=True)
            )
            found = time_of(flat.by_name)
            time = float(len(times)) if found is None else float(found[1].reshape(-1)[0])
            if time not in times:
                times.append(time)
                probes.append(Probe(time, args))
                if len(times) == steps:
                    raise Recorded(arguments)
            made = example.wrapper(*args)
            several = isinstance(made, tuple)
            return Result((list(cast("tuple[torch.Tensor, ...]", made)) if several else made,))

        recorder_of(model.source).sample(
            resolution, answer, steps=steps, seed=seed, dtype=model.dtype
        )
    return probes
