"""``todo-compile drift``: how far a plan moves the model's output, in total and by site."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from todo_compile import packages
from todo_compile.cli.options import (
    Factors,
    Frames,
    Json,
    KvTokens,
    MaybeModel,
    MaybeRes,
    Module,
    Preset,
    Quiet,
    SamplingOption,
    Verbose,
    make_progress,
    one_resolution,
)
from todo_compile.cli.screen import stdout
from todo_compile.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from todo_compile.drift.measure import Drift, DriftMeter, Probe
    from todo_compile.progress import Progress

_MODELS_ONLY = ("res", "weights", "batch", "frames", "precision", "steps", "seeds", "plot")


@dataclass(frozen=True)
class _Subject:
    """What is measured, with what, and what the answer says of it."""

    meter: DriftMeter
    probes: Sequence[Probe]
    facts: dict[str, Any]


def drift_command(
    model: MaybeModel = None,
    module: Module = None,
    res: MaybeRes = None,
    weights: Annotated[
        str | None,
        typer.Option(
            help="auto (folder, hub cache, hub), random\\[:SEED], or a path to safetensors. "
            "\\[default: auto]",
            rich_help_panel="What",
        ),
    ] = None,
    batch: Annotated[
        int | None,
        typer.Option(
            help="Latents a call. \\[default: 1; of pipelines other than Stable Diffusion's, "
            "PixArt and DiT: as many as they pass]",
            metavar="N",
            rich_help_panel="What",
        ),
    ] = None,
    frames: Frames = None,
    precision: Annotated[
        str | None,
        typer.Option(help="fp32, bf16 or fp16. \\[default: fp32]", rich_help_panel="What"),
    ] = None,
    kv_tokens: KvTokens = None,
    factors: Factors = None,
    sampling: SamplingOption = None,
    preset: Preset = None,
    steps: Annotated[
        int | None,
        typer.Option(
            help="Timesteps, evenly over the schedule. \\[default: 5]",
            metavar="N",
            rich_help_panel="Measure",
        ),
    ] = None,
    seeds: Annotated[
        int | None,
        typer.Option(
            help="Latents for each timestep. \\[default: 2]",
            metavar="N",
            rich_help_panel="Measure",
        ),
    ] = None,
    local: Annotated[
        bool,
        typer.Option(
            "--local",
            help="For single sites only the error of the attention itself: faster.",
            rich_help_panel="Measure",
        ),
    ] = False,
    plot: Annotated[
        Path | None, typer.Option(help="Write a picture.", rich_help_panel="Output")
    ] = None,
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = 0,
) -> None:
    """Measure how far downsampling moves the model's output, by timestep and by site.

    Stable Diffusion's UNets, PixArt and DiT get noised fields that resemble pictures, other
    pipelines run their own loop with the real denoiser. Text conditions are seeded random numbers,
    no prompts: `generate --compare` and benchmarks/fidelity.py draw real ones. A module of your own
    is measured on the example inputs that its factory returns.
    """
    if (model is None) == (module is None):
        raise ConfigError(
            "model and module both say what to measure."
            if module is not None
            else "Nothing says what to measure.",
            remedy="Give a model by name (--model), or a module of your own (--module).",
        )
    packages.need("models", "Measuring drift")
    from todo_compile.drift.measure import measure
    from todo_compile.options import PlanOptions

    given = dict(
        zip(_MODELS_ONLY, (res, weights, batch, frames, precision, steps, seeds, plot), strict=True)
    )
    if module is not None and (said := [n for n, value in given.items() if value is not None]):
        raise ConfigError(
            f"--{said[0]} is for models by name; a module is measured on its example inputs.",
            remedy="Leave it out.",
        )
    if model is not None and not res:
        raise ConfigError("res is missing.", remedy="Give --res 1024, or 2048x1152.")
    if plot is not None:
        from todo_compile.cli.plots import check_plot

        check_plot(plot, "drift.png")  # before minutes of measuring
    options = PlanOptions.create(
        kv_tokens=kv_tokens, factors=factors, sampling=sampling, preset=preset
    )
    progress = make_progress(quiet, verbose)
    if module is not None:
        subject = _given(module, progress)
    else:
        assert model is not None
        subject = _named(
            model, one_resolution(res or ()), weights or "auto", precision or "fp32", batch, frames,
            5 if steps is None else steps, 2 if seeds is None else seeds, progress, hashed=json,
        )  # fmt: skip
    with progress.step("measure") as step:
        drift = measure(
            subject.meter, subject.probes, options, output=not local, report=step.update
        )
    if json:
        from todo_compile.cli.answers import DriftAnswer

        DriftAnswer(**subject.facts, local=local, **drift.to_dict()).print()
    else:
        _print_table(drift, local, own=module is not None)
        if not drift.sites and (why := subject.meter.plan(options).why_none()):
            stdout().print(f"{why[0].upper()}{why[1:]}.")
    # Last: what is measured is shown even if the disk is full.
    if plot is not None:
        from todo_compile.cli.plots import plot_drift

        title = f"{model} at {subject.facts['res']}, {drift.options['sampling']}"
        plot_drift(drift, plot, title)


def _given(address: str, progress: Progress) -> _Subject:
    """A module of the user's own, on its example inputs."""
    from todo_compile.build.factory import check_address, make_module
    from todo_compile.build.module_job import most_of_its_weights
    from todo_compile.capture.given import capture_module
    from todo_compile.drift.measure import DriftMeter, Probe

    check_address(address)
    with progress.step("factory"):
        made, args, kwargs = make_module(address)
    with progress.step("capture"):
        given = capture_module(made, args, kwargs)
        meter = DriftMeter(given.program)
    facts: dict[str, Any] = {
        "model": address,
        "res": None,
        "weights": "those of the module",
        "weights_hash": None,
        "random_weights": False,
        "precision": most_of_its_weights(made),
        "batch": None,
        "conditions": "given",
    }
    return _Subject(meter, [Probe(0.0, given.example.args)], facts)


def _named(
    model: str,
    size: str,
    weights: str,
    precision: str,
    batch: int | None,
    frames: int | None,
    steps: int,
    seeds: int,
    progress: Progress,
    *,
    hashed: bool,
) -> _Subject:
    """A model by name, on noise as its sampling has it."""
    from todo_compile import models
    from todo_compile.capture.inputs import example_inputs, is_recorded, with_pipeline_defaults
    from todo_compile.drift.measure import DriftMeter
    from todo_compile.drift.probes import make_probes
    from todo_compile.drift.recorded import recorded_probes
    from todo_compile.precision import dtype_of

    source = with_pipeline_defaults(models.with_frames(models.resolve_component(model), frames))
    resolution, dtype = models.Resolution.parse(size), dtype_of(precision)
    own = is_recorded(source)
    rows = source.pipeline_defaults.batch if source.pipeline_defaults is not None else batch or 1
    if own and batch not in (None, rows):
        raise ConfigError(
            f"A {source.pipeline} calls its denoiser with {rows} rows, and is measured so.",
            remedy="Leave --batch out.",
        )
    with progress.step("model"):
        found = models.find_weights(source, models.WeightsChoice.parse(weights), dtype=dtype)
        loaded = models.load(source, found, dtype=dtype, hashed=hashed)
    if found.kind == "random":
        progress.warn("random weights: drift says nothing about pictures.")
    example = example_inputs(loaded, resolution, batch=rows)
    if own:
        with progress.step("sample"):
            probes = recorded_probes(loaded, example, resolution, steps=steps, seeds=seeds)
    else:
        probes = make_probes(loaded, resolution, steps=steps, seeds=seeds, batch=rows)
    with progress.step("capture"):
        meter = DriftMeter(
            example.wrapper,
            probes[0].args,
            native_kv_tokens=source.native.kv_tokens,
            token_grids=dict(example.token_grids),
            image_axes=example.image_axes,
        )
    facts: dict[str, Any] = {
        "model": source.identifier,
        "res": size,
        "weights": found.description,
        "weights_hash": loaded.weights_hash,
        "random_weights": found.kind == "random",
        "precision": precision,
        "batch": rows,
        "conditions": "random",
    }
    return _Subject(meter, probes, facts)


def _print_table(drift: Drift, local: bool, *, own: bool) -> None:
    from todo_compile.cli.tables import drift_table

    out = stdout()
    out.print(drift_table(drift, out.width, timed=not own))
    what = "the attention alone (local)" if local else "the output, that site alone rewritten"
    on = "on the example inputs" if own else f"{drift.samples} latents a timestep"
    out.print(f"Relative error of {what}; {on}.")
    if not drift.sites:
        out.print("No site is rewritten under this plan: nothing drifts.")
