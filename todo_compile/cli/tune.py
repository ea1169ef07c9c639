"""``todo-compile tune``: the plan that fits a budget, measured by drawing."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from todo_compile.cli.options import (
    Json,
    Model,
    Quiet,
    Res,
    Verbose,
    make_progress,
    one_resolution,
)
from todo_compile.cli.screen import stderr, stdout

if TYPE_CHECKING:
    from todo_compile.bundle.plan import TunedPlan
    from todo_compile.bundle.plan_parts import Point


def tune_command(
    model: Model,
    res: Res,
    budget: Annotated[
        str,
        typer.Option(
            help="drift=1e-3: most mean squared error of the pictures (values 0 to 1) against the "
            "dense ones, held by the upper end of its interval; psnr=30 says it in dB. "
            "speedup=1.5: least speed, in FLOPs of the denoiser over all steps.",
            rich_help_panel="What",
        ),
    ],
    out: Annotated[
        Path,
        typer.Option("--out", "-o", help="The plan: FILE.json.", rich_help_panel="Output"),
    ],
    candidates: Annotated[
        list[str] | None,
        typer.Option(
            help="What a site may get: SAMPLING:FACTORS, may be given several times. "
            "\\[default: nearest:2,3,4,8; quick: nearest:2,4,8]",
            rich_help_panel="Choice",
        ),
    ] = None,
    phases: Annotated[
        int,
        typer.Option(help="Most parts of the schedule that may differ.", rich_help_panel="Choice"),
    ] = 3,
    dense_last: Annotated[
        bool,
        typer.Option(
            "--dense-last",
            help="The last phase is dense.",
            rich_help_panel="Choice",
        ),
    ] = False,
    disable: Annotated[
        list[str] | None,
        typer.Option(
            help="Sites that stay dense, a glob: 'mid*'; may be given several times.",
            rich_help_panel="Choice",
        ),
    ] = None,
    prompts: Annotated[
        Path | None,
        typer.Option(
            help="What to draw, one a line; half of them are held out for verifying. \\[default: "
            "prompts.txt beside the model, or general ones]",
            rich_help_panel="Measure",
        ),
    ] = None,
    scores: Annotated[
        Path | None,
        typer.Option(
            help="File for what was measured: a run that was stopped goes on, another budget for "
            "the same weights, size and settings needs no new scores.",
            rich_help_panel="Measure",
        ),
    ] = None,
    weights: Annotated[
        str,
        typer.Option(
            help="auto: those of the pipeline. random\\[:SEED], of a registered model: what a run "
            "takes in time and memory; the plan means nothing for pictures, and says so.",
            rich_help_panel="What",
        ),
    ] = "auto",
    steps: Annotated[int, typer.Option(help="Denoising steps.", rich_help_panel="Measure")] = 8,
    guidance: Annotated[
        float, typer.Option(help="Classifier-free guidance.", rich_help_panel="Measure")
    ] = 3.0,
    scheduler: Annotated[
        str | None,
        typer.Option(
            help="ddim, euler, dpm++, … \\[default: the model's own]", rich_help_panel="Measure"
        ),
    ] = None,
    batch: Annotated[
        int | None,
        typer.Option(
            help="Pictures at once. \\[default: 4 below 1024 latent cells, else 1]",
            metavar="N",
            rich_help_panel="Measure",
        ),
    ] = None,
    fit: Annotated[
        int | None,
        typer.Option(
            help="Pairs of prompt and seed that scores are measured with. \\[default: 8; quick: 4]",
            metavar="N",
            rich_help_panel="Measure",
        ),
    ] = None,
    pairs: Annotated[
        int | None,
        typer.Option(
            help="Held-out pairs of prompt and seed. \\[default: 16; quick: 6]",
            rich_help_panel="Measure",
        ),
    ] = None,
    parts: Annotated[
        int | None,
        typer.Option(
            help="Most parts of the schedule that scores tell apart. \\[default: 8; quick: 4]",
            metavar="N",
            rich_help_panel="Measure",
        ),
    ] = None,
    precision: Annotated[
        str, typer.Option(help="fp32, bf16 or fp16.", rich_help_panel="Measure")
    ] = "fp32",
    device: Annotated[
        str | None,
        typer.Option(
            help="cpu, cuda or cuda:N. \\[default: a GPU where there is one]",
            rich_help_panel="Measure",
        ),
    ] = None,
    quick_look: Annotated[
        bool,
        typer.Option(
            "--quick", help="Fewer pairs and plans: a first look.", rich_help_panel="Measure"
        ),
    ] = False,
    plot: Annotated[
        Path | None,
        typer.Option(help="Write drift against speed as a picture.", rich_help_panel="Output"),
    ] = None,
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = 0,
) -> None:
    """Choose factors for every site and part of the schedule within a budget, and vouch for them.

    Scores are measured, the choice is solved exactly, and plans are drawn on held-out prompts and
    seeds, dense against tuned. Uniform plans are drawn too: none is both faster and closer than
    the plan that is written.
    """
    from todo_compile.bundle.files import check_target
    from todo_compile.cli.answers import print_json
    from todo_compile.tuning.run import tune

    check_target(out)
    if plot is not None:
        from todo_compile.cli.plots import check_plot

        check_plot(plot, "tune.png")
    progress = make_progress(quiet, verbose)
    plan = tune(
        model,
        res=one_resolution(res),
        budget=budget,
        candidates=candidates,
        phases=phases,
        dense_last=dense_last,
        disable=disable or (),
        prompts=prompts,
        scores=scores,
        steps=steps,
        guidance=guidance,
        scheduler=scheduler,
        batch=batch,
        fit=fit,
        pairs=pairs,
        parts=parts,
        weights=weights,
        precision=precision,
        device=device,
        quick=quick_look,
        progress=progress,
    )
    plan.save(out)
    if json:
        print_json(plan.model_dump(mode="json"))
    elif not quiet:
        print_plan(plan)
        stderr.print(f"wrote {out}")
    if plot is not None:  # last: the plan is written even if the disk is full
        from todo_compile.cli.plots import plot_tuned

        plot_tuned(plan, plot, f"{plan.model} at {plan.resolution}, {plan.budget}")


def print_plan(plan: TunedPlan) -> None:
    """What was drawn, the chosen plan, and remarks."""
    out = stdout()
    out.print(points_table(plan))
    out.print()
    out.print(phases_table(plan))
    out.print()
    for text in said(plan):
        out.print(text)


def points_table(plan: TunedPlan) -> Table:
    """One row a plan that was drawn, by speed; the chosen one is marked."""
    table = Table(box=None, header_style="bold", pad_edge=False)
    for header in ("", "plan", "speed", "predicted", "drift", "95 % interval", "PSNR"):
        table.add_column(header, justify="left" if header in ("", "plan") else "right")
    rows = [*plan.uniform, *(p for p in plan.curve if p != plan.chosen)]
    if plan.chosen not in rows:
        rows.append(plan.chosen)
    for point in sorted(rows, key=lambda p: p.speedup):
        table.add_row("→" if point == plan.chosen else "", *_cells(point))
    return table


def _cells(point: Point) -> list[str]:
    found = point.measured
    predicted = "" if point.predicted is None else f"{point.predicted:.1e}"
    cells = [point.name, f"{point.speedup:.3f}×", predicted]
    if found is None:
        return [*cells, "", "", ""]
    psnr = "" if found.psnr is None else f"{found.psnr:.1f} dB"
    drift = found.drift
    return [*cells, f"{drift.mean:.1e}", f"{drift.low:.1e} … {drift.high:.1e}", psnr]


def phases_table(plan: TunedPlan) -> Table:
    """One row a site, one column a phase of the chosen plan."""
    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column("site")
    table.add_column("grid", justify="right")
    ends = (*plan.starts[1:], 1.0)
    for start, end in zip(plan.starts, ends, strict=True):
        table.add_column(f"{start:.0%} – {end:.0%}")
    for site in plan.sites:
        chosen = [phase.sites.get(site.name, "dense") for phase in plan.phases]
        table.add_row(site.name, f"{site.rows}×{site.columns}", *chosen)
    return table


def said(plan: TunedPlan) -> list[str]:
    """A few lines for people."""
    lines: list[str] = []
    found: Any = plan.chosen.measured
    if found is not None:
        lines.append(
            f"{plan.speedup:.3f}× ({plan.cost}); drift {found.drift.mean:.2e} "
            f"({found.drift.low:.1e} … {found.drift.high:.1e}) on {found.pairs} held-out pairs of "
            f"{found.prompts} prompts."
        )
    return [*lines, *plan.notes]
