"""The command: parses, calls the Python API, prints. Nothing else lives here."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from typer.core import TyperGroup

from todo_compile.cli_generate import generate_command
from todo_compile.config import PRESETS, SAMPLINGS, PlanOptions
from todo_compile.errors import ConfigError, TodoError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from todo_compile.bundles import BundleResult
    from todo_compile.compiler import CompileResult
    from todo_compile.console import ConsoleProgress

stderr = Console(stderr=True)


class _DefaultCompile(TyperGroup):
    """``todo-compile --model … --out …`` means ``todo-compile compile …``."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if args and args[0].startswith("-") and args[0] not in _GROUP_OPTIONS:
            args = ["compile", *args]
        return super().parse_args(ctx, args)


_GROUP_OPTIONS = ("--help", "-h", "--version")

app = typer.Typer(
    cls=_DefaultCompile,
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help=(
        "Make diffusion models cheap at high resolution, at compile time.\n\n"
        "Self-attention keeps every query; its keys and values are downsampled (ToDo, arXiv "
        "2402.13573), as a rewrite of the model's graph. Without a command, [bold]compile[/bold] "
        "is meant."
    ),
    epilog=(
        "Examples:\n\n"
        "todo-compile plan --model sd15 --res 2048\n\n"
        "todo-compile --model sd15 --weights random --res 2048 --out engine.plan\n\n"
        "todo-compile --model ./my-model --res 1920x1080 --out unet.onnx --verify\n\n"
        "todo-compile --model ./my-model --res 2048 --out bundle/ --format onnx"
    ),
)

Model = Annotated[
    str,
    typer.Option(
        "--model",
        "-m",
        help="sd15, sd21, sdxl (see `models`), a diffusers folder, or a hub id.",
        rich_help_panel="What",
    ),
]
Res = Annotated[
    str,
    typer.Option("--res", "-r", help="Pixels: 2048, or WIDTHxHEIGHT.", rich_help_panel="What"),
]
Batch = Annotated[
    int | None,
    typer.Option(
        help="UNet batch. Classifier-free guidance runs the prompt and the empty prompt "
        "together: one image needs 2. [default: 2; VAE decoder and text encoder: 1]",
        rich_help_panel="What",
    ),
]
Precision = Annotated[
    str | None,
    typer.Option(
        help="fp16, bf16 or fp32. [default: fp16; SDXL's own VAE: fp32]", rich_help_panel="What"
    ),
]
Component = Annotated[
    str | None,
    typer.Option(
        help="unet (whatever denoises), vae-decoder, text-encoder, text-encoder-2, or all (into a "
        "folder). [default: unet; for a folder: all]",
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
        "between 0 and 1). [default: nearest]",
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
        "--verbose", "-v", count=True, help="Statistics of every pass.", rich_help_panel="Output"
    ),
]


@app.callback(invoke_without_command=True)
def _main(  # pyright: ignore[reportUnusedFunction]
    ctx: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    if version:
        from todo_compile import __version__

        print(__version__)
        raise typer.Exit
    if ctx.invoked_subcommand is None:
        print(ctx.get_help())


@app.command("compile")
def compile_command(
    model: Model,
    res: Res,
    out: Annotated[
        str,
        typer.Option(
            "--out",
            "-o",
            help="FILE.plan or .engine: TensorRT; FILE.onnx: ONNX. A manifest, FILE.….json, is "
            "written beside it. FOLDER/: a bundle with all components.",
            rich_help_panel="Output",
        ),
    ],
    weights: Annotated[
        str,
        typer.Option(
            help="auto (folder, hub cache, hub), random\\[:SEED] (for sizing, not for pictures), "
            "or a path to safetensors.",
            rich_help_panel="What",
        ),
    ] = "auto",
    component: Component = None,
    kind: Annotated[
        str | None,
        typer.Option(
            "--format",
            help="Of a bundle: tensorrt or onnx. [default: tensorrt]",
            rich_help_panel="Output",
        ),
    ] = None,
    batch: Batch = None,
    precision: Precision = None,
    vae_precision: Annotated[
        str | None,
        typer.Option(
            "--vae-precision",
            help="Of a bundle's VAE decoder. [default: as --precision]",
            rich_help_panel="What",
        ),
    ] = None,
    kv_tokens: KvTokens = None,
    factors: Factors = None,
    sampling: SamplingOption = None,
    preset: Preset = None,
    vae_factors: Annotated[
        str | None,
        typer.Option(
            "--vae-factors",
            help="Of a bundle's VAE decoder: 4, or off. [default: bounded by what it saw in "
            "training]",
            rich_help_panel="Downsampling",
        ),
    ] = None,
    lora: Annotated[
        list[str] | None,
        typer.Option(
            "--lora",
            help="FILE.safetensors\\[:SCALE], fused into the weights; may be given several times.",
            rich_help_panel="What",
        ),
    ] = None,
    dense_after: Annotated[
        float | None,
        typer.Option(
            "--dense-after",
            help="Into a bundle: a dense twin too, for the steps after this share, e.g. 0.7.",
            rich_help_panel="Downsampling",
        ),
    ] = None,
    opset: Annotated[
        int | None,
        typer.Option(
            help="ONNX opset, 18 to 23. 23 keeps attention whole and needs 4x less scratch memory "
            "in TensorRT. [default: 23]",
            rich_help_panel="Engine",
        ),
    ] = None,
    target: Annotated[
        str | None,
        typer.Option(
            help="GPU architectures, e.g. sm89,sm120, or current. [default: the GPU in this "
            "machine; without one sm89]",
            rich_help_panel="Engine",
        ),
    ] = None,
    library: Annotated[
        str,
        typer.Option(help="tensorrt, tensorrt_rtx or auto.", rich_help_panel="Engine"),
    ] = "auto",
    timing_cache: Annotated[
        Path | None,
        typer.Option(help="TensorRT's timing cache: read and written.", rich_help_panel="Engine"),
    ] = None,
    weight_streaming: Annotated[
        bool,
        typer.Option(
            "--weight-streaming",
            help="Let the engine keep weights in host memory.",
            rich_help_panel="Engine",
        ),
    ] = False,
    verify: Annotated[
        bool,
        typer.Option(
            "--verify",
            help="Run the ONNX file in onnxruntime against the rewritten graph.",
            rich_help_panel="Output",
        ),
    ] = False,
    force: Annotated[
        bool,
        typer.Option(
            "--force", help="Rebuild even if an equal output exists.", rich_help_panel="Output"
        ),
    ] = False,
    dump: Dump = None,
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = 0,
) -> None:
    """Compile a model for one resolution to a TensorRT engine, an ONNX file, or a bundle of them.

    An existing output is kept if everything that matters is equal, else it is rebuilt and the
    differences are named. A failure leaves the old output or none.
    """
    from todo_compile.bundles import is_folder_output

    progress = make_progress(quiet, verbose)
    options = _options(kv_tokens, factors, sampling, preset)
    settings: dict[str, Any] = {
        "weights": weights,
        "precision": precision,
        "options": options,
        "opset": opset,
        "target": target,
        "library": library,
        "timing_cache": timing_cache,
        "weight_streaming": weight_streaming,
        "verify": verify,
        "force": force,
        "dump": dump,
        "loras": lora or [],
        "progress": progress,
    }
    if is_folder_output(Path(out), out):
        from todo_compile.bundles import compile_bundle
        from todo_compile.models.components import parse_choice

        found = compile_bundle(
            model,
            res=res,
            out=out,
            kind=kind or "tensorrt",
            component=parse_choice(component or "all"),
            batch=2 if batch is None else batch,
            vae_precision=vae_precision,
            dense_after=dense_after,
            vae_options=None
            if vae_factors is None
            else PlanOptions.create(factors=vae_factors, sampling=options.sampling),
            **settings,
        )
        _print_bundle(found, progress, json=json, quiet=quiet, verbose=verbose)
        return
    _refuse_bundle_options(
        out,
        {
            "--format": kind,
            "--vae-precision": vae_precision,
            "--vae-factors": vae_factors,
            "--dense-after": None if dense_after is None else str(dense_after),
        },
    )
    from todo_compile.compiler import compile as run

    result = run(
        model, res=res, out=out, component=_one_component(component), batch=batch, **settings
    )
    _print_output(result, progress, json=json, quiet=quiet, verbose=verbose)


def _print_output(
    result: CompileResult, progress: ConsoleProgress, *, json: bool, quiet: bool, verbose: int
) -> None:
    from todo_compile.console import print_json, totals_table

    if json:
        print_json(
            {
                "path": str(result.path),
                "reused": result.reused,
                "rebuilt_because": list(result.reasons),
                "manifest": result.manifest.model_dump(mode="json"),
            }
        )
        return
    if quiet:
        return
    if result.report is not None:
        if verbose:
            _print_passes(result.report)
        progress.console.print(totals_table(result.report))
    for line in result.manifest.summary():
        progress.console.print(line, highlight=False, markup=False)
    progress.console.print(f"{'kept' if result.reused else 'wrote'} {result.path}", highlight=False)


def _print_bundle(
    found: BundleResult, progress: ConsoleProgress, *, json: bool, quiet: bool, verbose: int
) -> None:
    from todo_compile.console import print_json

    if json:
        print_json(
            {
                "path": str(found.folder),
                "reused": found.reused,
                "bundle": found.bundle.model_dump(mode="json"),
                "components": {
                    name: {"reused": r.reused, "rebuilt_because": list(r.reasons)}
                    for name, r in found.results.items()
                },
            }
        )
        return
    if quiet:
        return
    for name, result in found.results.items():
        if result.report is not None and verbose:
            _print_passes(result.report)
        said = "kept" if result.reused else "built"
        progress.console.print(f"\n{name} ({said})", style="bold", highlight=False)
        for line in result.manifest.summary():
            progress.console.print(f"  {line}", highlight=False, markup=False)
    progress.console.print()
    for line in found.bundle.summary():
        progress.console.print(line, highlight=False, markup=False)
    progress.console.print(f"{'kept' if found.reused else 'wrote'} {found.folder}", highlight=False)


def _refuse_bundle_options(out: str, given: dict[str, str | None]) -> None:
    for option, value in given.items():
        if value is not None:
            raise ConfigError(
                f"{option} is for bundles, and {out} is a file.",
                remedy="End --out in a slash for a bundle, or leave the option out.",
            )


@app.command("plan")
def plan_command(
    model: Model,
    res: Res,
    component: Component = None,
    batch: Batch = None,
    precision: Precision = None,
    kv_tokens: KvTokens = None,
    factors: Factors = None,
    sampling: SamplingOption = None,
    preset: Preset = None,
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
    from todo_compile.api import plan as run
    from todo_compile.console import print_json, sites_table, totals_table

    options = _options(kv_tokens, factors, sampling, preset)
    report = run(
        model,
        res=res,
        component=_one_component(component),
        batch=batch,
        precision=precision or "fp16",
        options=options,
        dump=dump,
    )
    if plot is not None:
        from todo_compile.plots import plot_plan

        plot_plan(report, plot, f"{model} at {res}: {report.summary()}")
    if json:
        print_json(report.to_dict())
        return
    out = Console(width=None if sys.stdout.isatty() else 160)
    out.print(sites_table(report, every=every))
    out.print()
    out.print(totals_table(report))
    out.print()
    out.print(report.summary(), highlight=False)
    if verbose:
        _print_passes(report)
    if report.rewritten == 0 and (miss := report.nearest_miss()):
        out.print(f"nearest miss: {miss}", highlight=False, markup=False)


@app.command("inspect")
def inspect_command(
    file: Annotated[Path, typer.Argument(help="An engine, an ONNX file, a manifest, or a bundle.")],
    layers: Annotated[
        bool, typer.Option("--layers", help="The engine's layers, where a GPU is at hand.")
    ] = False,
    json: Json = False,
) -> None:
    """Print an output's manifest, check its files, and list operators or layers."""
    from todo_compile.console import print_json
    from todo_compile.export.bundle import BUNDLE_JSON, is_bundle
    from todo_compile.export.inspect import inspect

    if is_bundle(file) or file.name == BUNDLE_JSON:
        _inspect_bundle(file, json=json)
        return
    found = inspect(file, layers=layers)
    if json:
        print_json(found.to_dict())
        return
    out = Console(width=None if sys.stdout.isatty() else 160)
    for line in found.lines():
        out.print(line, highlight=False, markup=False)


def _inspect_bundle(path: Path, *, json: bool) -> None:
    from todo_compile.console import print_json
    from todo_compile.export.bundle import BUNDLE_JSON, check_bundle, read_bundle

    folder = path.parent if path.name == BUNDLE_JSON else path
    bundle = read_bundle(folder)
    damage = check_bundle(bundle, folder)
    if json:
        print_json({"bundle": bundle.model_dump(mode="json"), "damage": damage})
        return
    out = Console(width=None if sys.stdout.isatty() else 160)
    for line in (*bundle.summary(), f"intact         {'; '.join(damage) or 'yes'}"):
        out.print(line, highlight=False, markup=False)


app.command("generate")(generate_command)


@app.command("models")
def models_command(json: Json = False) -> None:
    """List the built-in models."""
    from rich.table import Table

    from todo_compile.console import print_json
    from todo_compile.models import REGISTRY

    rows = [
        {
            "name": entry.name,
            "hub_id": entry.hub_id,
            "native_pixels": "x".join(map(str, entry.native_pixels)),
            "native_kv_tokens": entry.native_kv_tokens,
            "parameters": entry.parameters,
            "licence": entry.licence,
            "description": entry.description,
        }
        for entry in REGISTRY.values()
    ]
    if json:
        print_json(rows)
        return
    table = Table(box=None, header_style="bold", pad_edge=False)
    for header in ("name", "trained at", "key tokens", "parameters", "hub id", "licence"):
        table.add_column(header, no_wrap=True)
    for row in rows:
        table.add_row(
            str(row["name"]),
            str(row["native_pixels"]),
            f"{row['native_kv_tokens']:,}",
            f"{int(row['parameters']) / 1e6:,.0f} M",
            str(row["hub_id"] or "in this package"),
            str(row["licence"]),
        )
    Console(width=None if sys.stdout.isatty() else 160).print(table)


def _options(
    kv_tokens: int | None, factors: str | None, sampling: str | None, preset: str | None
) -> PlanOptions:
    return PlanOptions.create(
        kv_tokens=kv_tokens, factors=factors, sampling=sampling, preset=preset
    )


def _one_component(text: str | None) -> str:
    """The component that one output holds, in the API's spelling."""
    from todo_compile.models.components import parse_choice

    choice = "unet" if text is None else parse_choice(text)
    if choice == "all":
        raise ConfigError(
            "All components make several outputs.",
            remedy="Name a folder: --out bundle/ (end it in a slash), or choose one component.",
        )
    return choice


def make_progress(quiet: bool, verbose: int) -> ConsoleProgress:
    """Steps on standard error."""
    from todo_compile.console import ConsoleProgress

    if quiet and verbose:
        raise ConfigError("--quiet and --verbose exclude each other.")
    return ConsoleProgress(stderr, -1 if quiet else verbose)


def _print_passes(report: Any) -> None:
    for one in report.passes:
        detail = ", ".join(f"{k} {v}" for k, v in one.detail.items() if v)
        stderr.print(
            f"  {one.name:<8} {one.count:6} in {one.seconds * 1e3:6.1f} ms  {detail}",
            highlight=False,
        )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status.

    Mistakes of the user end with a message and a remedy, without a traceback.
    """
    # Before torch is loaded: huge pages for big tensors, since first touching gigabytes of memory
    # costs seconds. A user's own choice stands.
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    try:
        code = app(args=list(arguments) if arguments is not None else None, standalone_mode=False)
    except TodoError as error:
        stderr.print(f"error: {error.message}", style="red", highlight=False, markup=False)
        if error.remedy:
            stderr.print(error.remedy, highlight=False, markup=False)
        return error.exit_code
    except (KeyboardInterrupt, typer.Abort):
        code = 130
    except Exception as error:
        # click's own errors (unknown option, missing value) know how to show themselves.
        show = getattr(error, "show", None)
        if show is None:
            raise
        show()
        return int(getattr(error, "exit_code", 2))
    if code == 130:  # typer turns Ctrl-C into this status by itself
        stderr.print("interrupted; nothing was written", style="red", highlight=False)
    return code if isinstance(code, int) else 0


def run() -> None:
    """Entry point of the ``todo-compile`` script."""
    sys.exit(main())


import todo_compile.cli_drift  # noqa: E402, F401  # pyright: ignore[reportUnusedImport] # registers itself

if __name__ == "__main__":
    # `python -m` runs this file under another name; commands are registered on the module's app.
    sys.modules["todo_compile.cli"].run()
