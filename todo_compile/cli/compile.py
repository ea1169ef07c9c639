"""``todo-compile compile``, also meant where no command is named: build an output or a bundle."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from todo_compile.cli.options import (
    Batch,
    Component,
    Dump,
    Factors,
    Json,
    KvTokens,
    Model,
    Precision,
    Preset,
    Quiet,
    SamplingOption,
    Verbose,
    make_progress,
    print_passes,
)

if TYPE_CHECKING:
    from todo_compile.build.assembly import BundleResult
    from todo_compile.build.compiler import CompileResult
    from todo_compile.cli.console import ConsoleProgress


def compile_command(
    model: Model,
    res: Annotated[
        list[str],
        typer.Option(
            "--res",
            "-r",
            help="Pixels: 2048, or WIDTHxHEIGHT. A bundle takes several: --res 1024 --res "
            "2048x1152; what runs is chosen by the picture's size.",
            rich_help_panel="What",
        ),
    ],
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
            help="Of a bundle: tensorrt or onnx. \\[default: tensorrt]",
            rich_help_panel="Output",
        ),
    ] = None,
    batch: Batch = None,
    precision: Precision = None,
    vae_precision: Annotated[
        str | None,
        typer.Option(
            "--vae-precision",
            help="Of a bundle's VAE decoder. \\[default: as --precision]",
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
            help="Of a bundle's VAE decoder: 4, or off. \\[default: bounded by what it saw in "
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
    controlnet: Annotated[
        bool,
        typer.Option(
            "--controlnet",
            help="Let the UNet take a ControlNet's residuals, as further inputs: for any number of "
            "ControlNets, which run in torch.",
            rich_help_panel="What",
        ),
    ] = False,
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
            "in TensorRT. \\[default: 23]",
            rich_help_panel="Engine",
        ),
    ] = None,
    target: Annotated[
        str | None,
        typer.Option(
            help="GPU architectures, e.g. sm89,sm120, or current. \\[default: the GPU in this "
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
            help="Prove it on these weights: every rewritten site against subsampling at the site, "
            "and the ONNX file in onnxruntime against the rewritten graph. Builds anew.",
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
    """Compile a model for a resolution to a TensorRT engine, an ONNX file, or a bundle of them.

    An existing output is kept if everything that matters is equal, else it is rebuilt and the
    differences are named. A failure leaves the old output or none.
    """
    from todo_compile.build.compiler import CompileResult
    from todo_compile.build.request import Request

    progress = make_progress(quiet, verbose)
    request = Request(
        model=model,
        res=tuple(res),
        out=out,
        weights=weights,
        component=component,
        kind=kind,
        batch=batch,
        precision=precision,
        vae_precision=vae_precision,
        kv_tokens=kv_tokens,
        factors=factors,
        sampling=sampling,
        preset=preset,
        vae_factors=vae_factors,
        lora=tuple(lora or ()),
        controlnet=controlnet,
        dense_after=dense_after,
        opset=opset,
        target=target,
        library=library,
        timing_cache=timing_cache,
        weight_streaming=weight_streaming,
        verify=verify,
        force=force,
        dump=dump,
    )
    result = request.run(progress)
    if isinstance(result, CompileResult):
        _print_output(result, progress, json=json, quiet=quiet, verbose=verbose)
    else:
        _print_bundle(result, progress, json=json, quiet=quiet, verbose=verbose)


def _print_output(
    result: CompileResult, progress: ConsoleProgress, *, json: bool, quiet: bool, verbose: int
) -> None:
    from todo_compile.cli.console import print_json
    from todo_compile.cli.tables import totals_table

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
            print_passes(result.report)
        progress.console.print(totals_table(result.report))
    for line in (*result.manifest.summary(), *_proofs(result, verbose)):
        progress.console.print(line)
    progress.console.print(f"{'kept' if result.reused else 'wrote'} {result.path}")


def _proofs(result: CompileResult, verbose: int) -> list[str]:
    """What ``--verify`` found of every site, at ``-v``."""
    sites = (result.manifest.verification or {}).get("sites", []) if verbose else []
    return [
        f"  proved       {s['module'] or s['name']}: "
        + ("not" if s["error"] is None else f"{s['error']:.1e}")
        + f" ({s['compared']})"
        for s in sites
    ]


def _print_bundle(
    found: BundleResult, progress: ConsoleProgress, *, json: bool, quiet: bool, verbose: int
) -> None:
    from todo_compile.cli.console import print_json

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
            print_passes(result.report)
        said = "kept" if result.reused else "built"
        progress.console.print(f"\n{name} ({said})", style="bold")
        for line in (*result.manifest.summary(), *_proofs(result, verbose)):
            progress.console.print(f"  {line}")
    progress.console.print()
    for line in found.bundle.summary():
        progress.console.print(line)
    progress.console.print(f"{'kept' if found.reused else 'wrote'} {found.folder}")
