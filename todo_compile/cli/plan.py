"""``todo-compile plan``: what compiling would do to every attention site."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from todo_compile.cli.options import (
    Dump,
    Factors,
    Frames,
    IpAdapter,
    Json,
    KvTokens,
    Masks,
    MaybeModel,
    MaybeRes,
    Module,
    Precision,
    Preset,
    SamplingOption,
    TextTokens,
    Verbose,
    one_resolution,
    option,
    print_passes,
)
from todo_compile.cli.screen import stderr, stdout


def plan_command(
    context: typer.Context,
    model: MaybeModel = None,
    module: Module = None,
    res: MaybeRes = None,
    component: Annotated[
        str | None,
        option(
            "component",
            "unet (whatever denoises), vae-decoder, text-encoder or text-encoder-2. "
            "[default: unet]",
        ),
    ] = None,
    batch: Annotated[
        str | None,
        option(
            "batch",
            "Rows of the denoising model: classifier-free guidance needs 2 for one image. A range, "
            "1..4, is planned by its most. [default: what one image needs]",
        ),
    ] = None,
    text_tokens: TextTokens = None,
    frames: Frames = None,
    ip_adapter: IpAdapter = None,
    precision: Precision = None,
    kv_tokens: KvTokens = None,
    factors: Factors = None,
    sampling: SamplingOption = None,
    preset: Preset = None,
    masks: Masks = None,
    every: Annotated[
        bool, typer.Option("--all", help="Cross-attention rows too.", rich_help_panel="Output")
    ] = False,
    plot: Annotated[
        Path | None,
        typer.Option(help="Write the plan as a picture.", rich_help_panel="Output"),
    ] = None,
    dump: Dump = None,
    json: Json = False,
    verbose: Verbose = 0,
) -> None:
    """Show what compiling would do to every attention site. Needs no weights, writes nothing."""
    from todo_compile.batches import BatchRange, parse_batch
    from todo_compile.build.planning import plan_request
    from todo_compile.build.request import BuildRequest
    from todo_compile.cli.tables import sites_table, totals_table

    size = one_resolution(res) if res else None
    sized: dict[str, Any] = {"res": tuple(res)} if res else {}
    request = BuildRequest(
        model=model, module=module, out="plan.onnx", component=component, batch=batch,
        text_tokens=text_tokens, frames=frames, ip_adapter=ip_adapter, precision=precision,
        kv_tokens=kv_tokens, factors=factors, sampling=sampling, preset=preset, masks=masks,
        dump=dump,
        **sized,
    )  # fmt: skip
    if plot is not None:
        from todo_compile.cli.plots import check_plot

        check_plot(plot, "plan.png")
    with stderr.status("planning", spinner="line"):
        report = plan_request(request, alone=bool(context.obj))
    if plot is not None:
        from todo_compile.cli.plots import plot_plan

        plot_plan(report, plot, f"{model} at {size}" if module is None else module)
    calls = None if batch is None else parse_batch(batch)
    several = isinstance(calls, BatchRange)
    if json:
        from todo_compile.cli.answers import PlanAnswer

        more: dict[str, Any] = {}
        if several:
            more = {"batch": str(calls), "figures_for_batch": calls.most}
        PlanAnswer(**report.to_dict(), **more).print()
        return
    out = stdout()
    out.print(sites_table(report, out.width, every=every))
    out.print()
    out.print(totals_table(report))
    out.print()
    out.print(report.summary())
    if several:
        out.print(f"figures are for batch {calls.most} of {calls}")
    if verbose:
        print_passes(report)
    if why := report.why_none():
        out.print(f"{why[0].upper()}{why[1:]}.")
