"""``todo-compile drift``: how far a plan moves the model's output, in total and by site."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from todo_compile import packages
from todo_compile.cli.options import (
    Factors,
    Json,
    KvTokens,
    Model,
    Preset,
    Quiet,
    Res,
    SamplingOption,
    Verbose,
    make_progress,
    one_resolution,
)
from todo_compile.cli.screen import stdout

if TYPE_CHECKING:
    from todo_compile.drift.measure import Drift


def drift_command(
    model: Model,
    res: Res,
    weights: Annotated[
        str,
        typer.Option(
            help="auto (folder, hub cache, hub), random\\[:SEED], or a path to safetensors.",
            rich_help_panel="What",
        ),
    ] = "auto",
    batch: Annotated[int, typer.Option(help="Latents a call.", rich_help_panel="What")] = 1,
    precision: Annotated[
        str, typer.Option(help="fp32, bf16 or fp16.", rich_help_panel="What")
    ] = "fp32",
    kv_tokens: KvTokens = None,
    factors: Factors = None,
    sampling: SamplingOption = None,
    preset: Preset = None,
    steps: Annotated[
        int, typer.Option(help="Timesteps, evenly over the schedule.", rich_help_panel="Measure")
    ] = 5,
    seeds: Annotated[
        int,
        typer.Option(
            help="Latents for each timestep, each with random text conditions of its own.",
            rich_help_panel="Measure",
        ),
    ] = 2,
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

    The latents are noised fields that resemble pictures. Text conditions are seeded random
    numbers, no prompts: `generate --compare` and benchmarks/fidelity.py draw real ones.
    """
    packages.need("models", "Measuring drift")
    from todo_compile import models
    from todo_compile.capture.inputs import example_inputs
    from todo_compile.drift.measure import DriftMeter, measure
    from todo_compile.drift.probes import make_probes
    from todo_compile.options import PlanOptions
    from todo_compile.precision import dtype_of

    if plot is not None:
        from todo_compile.cli.plots import check_plot

        check_plot(plot, "drift.png")  # before minutes of measuring
    size = one_resolution(res)
    options = PlanOptions.create(
        kv_tokens=kv_tokens, factors=factors, sampling=sampling, preset=preset
    )
    progress = make_progress(quiet, verbose)
    source = models.resolve(model)
    resolution, dtype = models.Resolution.parse(size), dtype_of(precision)
    with progress.step("model"):
        found = models.find_weights(source, models.WeightsChoice.parse(weights), dtype=dtype)
        loaded = models.load(source, found, dtype=dtype, hashed=json)
    if found.kind == "random":
        progress.warn("random weights: drift says nothing about pictures.")
    probes = make_probes(loaded, resolution, steps=steps, seeds=seeds, batch=batch)
    wrapper = example_inputs(loaded, resolution, batch=batch).wrapper
    with progress.step("capture"):
        meter = DriftMeter(wrapper, probes[0].args, native_kv_tokens=source.native.kv_tokens)
    with progress.step("measure") as step:
        drift = measure(meter, probes, options, output=not local, report=step.update)
    if json:
        from todo_compile.cli.answers import DriftAnswer

        facts: dict[str, Any] = {
            "model": source.identifier,
            "res": size,
            "weights": found.description,
            "weights_hash": loaded.weights_hash,
            "random_weights": found.kind == "random",
            "precision": precision,
            "batch": batch,
            "conditions": "random",
            "local": local,
        }
        DriftAnswer(**facts, **drift.to_dict()).print()
    else:
        _print_table(drift, local)
    # Last: what is measured is shown even if the disk is full.
    if plot is not None:
        from todo_compile.cli.plots import plot_drift

        plot_drift(drift, plot, f"{model} at {size}, {drift.options['sampling']}")


def _print_table(drift: Drift, local: bool) -> None:
    from todo_compile.cli.tables import drift_table

    out = stdout()
    out.print(drift_table(drift, out.width))
    what = "the attention alone (local)" if local else "the output, that site alone rewritten"
    out.print(f"Relative error of {what}; {drift.samples} latents a timestep.")
    if not drift.sites:
        out.print("No site is rewritten under this plan: nothing drifts.")
