"""Options that several commands share, and what they make of them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from todo_compile.cli.screen import stderr
from todo_compile.errors import ConfigError
from todo_compile.options import PRESETS, SAMPLINGS, PlanOptions

if TYPE_CHECKING:
    from todo_compile.cli.console import ConsoleProgress

Model = Annotated[
    str,
    typer.Option(
        "--model",
        "-m",
        help="sd15, sd21, sdxl (see `models`), a diffusers folder, a hub id, or a checkpoint "
        "(FILE.safetensors).",
        rich_help_panel="What",
    ),
]

Res = Annotated[
    list[str],
    typer.Option("--res", "-r", help="Pixels: 2048, or WIDTHxHEIGHT.", rich_help_panel="What"),
]

Batch = Annotated[
    str | None,
    typer.Option(
        help="UNet batch. Classifier-free guidance runs the prompt and the empty prompt "
        "together: one image needs 2. A range takes every batch in it: 1..4 (1..2..4 tunes the "
        "engine for 2, else for the most). \\[default: 2; VAE decoder and text encoder: 1]",
        metavar="N|MIN..MAX",
        rich_help_panel="What",
    ),
]

Precision = Annotated[
    str | None,
    typer.Option(
        help="fp16, bf16 or fp32. \\[default: fp16; SDXL's own VAE: fp32]", rich_help_panel="What"
    ),
]

Component = Annotated[
    str | None,
    typer.Option(
        help="unet (whatever denoises), vae-decoder, text-encoder, text-encoder-2, or all (into a "
        "folder). \\[default: unet; for a folder: all]",
        rich_help_panel="What",
    ),
]

KvTokens = Annotated[
    int | None,
    typer.Option(
        "--kv-tokens",
        help="Most key/value tokens a site keeps. Default: what the model saw in training at its "
        "highest attention level (SD1.5, SDXL: 4096).",
        rich_help_panel="Downsampling",
    ),
]

Factors = Annotated[
    str | None,
    typer.Option(
        help="Factor a level, largest grid first: 4,2,1; WIDTHxHEIGHT pairs: 4x2,2; or off.",
        rich_help_panel="Downsampling",
    ),
]

SamplingOption = Annotated[
    str | None,
    typer.Option(
        "--sampling",
        help=f"Which token stands for a cell: {', '.join(SAMPLINGS)} (blend takes any weight "
        "between 0 and 1). \\[default: nearest]",
        rich_help_panel="Downsampling",
    ),
]

Preset = Annotated[
    str | None,
    typer.Option(
        help=f"Published settings by name: {', '.join(PRESETS)}.", rich_help_panel="Downsampling"
    ),
]

Dump = Annotated[
    Path | None,
    typer.Option(
        help="Write the graph before and after every pass to this folder.",
        rich_help_panel="Output",
    ),
]

Json = Annotated[
    bool, typer.Option("--json", help="JSON on standard output.", rich_help_panel="Output")
]

Quiet = Annotated[
    bool, typer.Option("--quiet", "-q", help="Only warnings.", rich_help_panel="Output")
]

Verbose = Annotated[
    int,
    typer.Option(
        "--verbose",
        "-v",
        count=True,
        help="Statistics of every pass, and where poolings stopped.",
        rich_help_panel="Output",
    ),
]


def plan_options(
    kv_tokens: int | None, factors: str | None, sampling: str | None, preset: str | None
) -> PlanOptions:
    """How factors are chosen."""
    return PlanOptions.create(
        kv_tokens=kv_tokens, factors=factors, sampling=sampling, preset=preset
    )


def make_progress(quiet: bool, verbose: int) -> ConsoleProgress:
    """Steps on standard error."""
    from todo_compile.cli.console import ConsoleProgress

    if quiet and verbose:
        raise ConfigError("--quiet and --verbose exclude each other.")
    return ConsoleProgress(stderr, -1 if quiet else verbose)


def print_passes(report: Any) -> None:
    """Count and time of every pass, and what kept poolings below projections; on standard error."""
    from todo_compile.cli.tables import stops_table

    for one in report.passes:
        detail = ", ".join(f"{k} {v}" for k, v in one.detail.items() if v)
        stderr.print(
            f"  {one.name:<8} {one.count:6} in {one.seconds * 1e3:6.1f} ms  {detail}",
        )
    if (stops := stops_table(report, stderr.width)) is not None:
        stderr.print(stops)


def one_resolution(res: Sequence[str]) -> str:
    """The one ``--res`` of a command that takes no more; the last of several would win silently.

    Raises:
        ConfigError: there are several.
    """
    if len(res) > 1:
        raise ConfigError(
            f"{len(res)} resolutions were given, and this looks at one.",
            remedy="Run it once for each.",
        )
    return res[0]
