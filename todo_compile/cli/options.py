"""Options that several commands share, and what they make of them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from todo_compile.build.request import BuildRequest
from todo_compile.cli.screen import stderr
from todo_compile.errors import ConfigError

if TYPE_CHECKING:
    from todo_compile.cli.console import ConsoleProgress

_FIELDS = BuildRequest.described()


def option(name: str, help: str | None = None) -> Any:
    """The command's option for a field of `BuildRequest`, in the field's words or in others."""
    described = _FIELDS[name]
    long = f"--{name.replace('_', '-')}"
    return typer.Option(
        *(long, described.short) if described.short else (long,),
        help=(help or described.help).replace("[", "\\["),
        metavar=described.metavar,
        rich_help_panel=described.panel,
    )


Model = Annotated[str, option("model")]
MaybeModel = Annotated[str | None, option("model")]
Module = Annotated[str | None, option("module")]
Res = Annotated[list[str], option("res", "Pixels: 2048, or WIDTHxHEIGHT.")]
MaybeRes = Annotated[list[str] | None, option("res", "Pixels: 2048, or WIDTHxHEIGHT.")]
Batch = Annotated[str | None, option("batch")]
TextTokens = Annotated[str | None, option("text_tokens")]
Frames = Annotated[int | None, option("frames")]
IpAdapter = Annotated[str | None, option("ip_adapter")]
Precision = Annotated[str | None, option("precision")]
Component = Annotated[str | None, option("component")]
KvTokens = Annotated[int | None, option("kv_tokens")]
Factors = Annotated[str | None, option("factors")]
SamplingOption = Annotated[str | None, option("sampling")]
Preset = Annotated[str | None, option("preset")]
Masks = Annotated[str | None, option("masks")]
Dump = Annotated[Path | None, option("dump")]

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
        show_default=False,
        help="Statistics of every pass, and where poolings stopped.",
        rich_help_panel="Output",
    ),
]


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
