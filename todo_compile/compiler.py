"""From a model to an engine: the whole pipeline as a table of contents.

    weights → load → capture → passes → ONNX → (verify) → engine → manifest

Everything is made in a stage beside the output and moved there at the end, so that a failure or a
kill leaves the old output or none.
"""

from __future__ import annotations

import gc
import platform
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from todo_compile.api import dtype_of
from todo_compile.config import PlanOptions
from todo_compile.errors import ConfigError
from todo_compile.progress import Progress, SilentProgress

if TYPE_CHECKING:
    from torch.export import ExportedProgram

    from todo_compile.export.files import Stage
    from todo_compile.export.library import Library
    from todo_compile.export.manifest import Manifest
    from todo_compile.export.targets import Targets
    from todo_compile.export.tensorrt import EngineInfo
    from todo_compile.models import ExampleInputs, Resolution, Source, Weights
    from todo_compile.passes.report import Report

ENGINE_SUFFIXES = (".plan", ".engine")
SUFFIXES = (*ENGINE_SUFFIXES, ".onnx")


@dataclass(frozen=True)
class CompileResult:
    """What `compile` made or found.

    Attributes:
        path: the engine or ONNX file.
        manifest: its manifest, see `todo_compile.export.manifest`.
        reused: an equal output existed and was kept.
        reasons: why it was rebuilt, where an output existed.
        report: what was done to every attention site; None if reused.
    """

    path: Path
    manifest: Manifest
    reused: bool
    reasons: tuple[str, ...] = ()
    report: Report | None = field(default=None, repr=False)


def compile(
    model: str,
    *,
    res: str | int,
    out: str | Path,
    weights: str = "auto",
    batch: int = 2,
    precision: str = "fp16",
    opset: int | None = None,
    options: PlanOptions | None = None,
    target: str | None = None,
    library: str = "auto",
    timing_cache: str | Path | None = None,
    weight_streaming: bool = False,
    verify: bool = False,
    force: bool = False,
    dump: str | Path | None = None,
    progress: Progress | None = None,
) -> CompileResult:
    """Compile a model for one resolution: rewrite its attention and write an engine or ONNX file.

    Args:
        model: registry name (``sd15``), local diffusers folder, or hub id.
        res: side in pixels, or ``"WIDTHxHEIGHT"``.
        out: ``FILE.plan`` or ``FILE.engine`` for TensorRT, ``FILE.onnx`` for ONNX.
        weights: ``auto``, ``random[:SEED]``, or a path.
        batch: of the denoising model (2 = one image with classifier-free guidance).
        precision: ``fp16``, ``bf16`` or ``fp32``.
        opset: 18 to 23; None takes 23, which keeps attention as one operator.
        options: how factors are chosen.
        target: GPU architectures (``"sm89,sm120"``) or ``"current"``.
        library: ``tensorrt``, ``tensorrt_rtx`` or ``auto``.
        timing_cache: file for TensorRT's timing cache.
        weight_streaming: let the engine keep weights in host memory.
        verify: run the ONNX file in onnxruntime against the rewritten graph.
        force: rebuild even if an equal output exists.
        dump: folder for the graph before and after every pass.
        progress: receives steps and remarks; None is silent.

    Raises:
        TodoError: whatever the user can mend; nothing is written then.
    """
    job = _prepare(
        model, res, out, weights, batch, precision, opset, options, target, library,
        timing_cache, weight_streaming, verify, dump, progress,
    )  # fmt: skip
    from todo_compile.export.files import check_target, sweep
    from todo_compile.export.manifest import find_reusable, read

    check_target(job.out)
    sweep(job.out)
    found = find_reusable(job.out, job.request)
    if found.reusable and not force and not verify:
        job.progress.info(f"{job.out} is up to date: everything that matters is equal; kept.")
        return CompileResult(job.out, read(job.out), reused=True)
    reasons = tuple(found.reasons) or (("--force was given",) if found.reusable else ())
    if job.out.exists() and reasons:
        job.progress.info("Rebuilding: " + "; ".join(reasons))
    return _build(job, reasons)


@dataclass(frozen=True)
class _Job:
    """A validated request; nothing heavy has happened yet."""

    source: Source
    resolution: Resolution
    weights: Weights
    weights_hash: str
    out: Path
    batch: int
    precision: str
    opset: int
    options: PlanOptions
    library: Library | None
    targets: Targets | None
    timing_cache: Path | None
    weight_streaming: bool
    verify: bool
    dump: Path | None
    progress: Progress
    request: dict[str, Any]


def _prepare(
    model: str,
    res: str | int,
    out: str | Path,
    weights: str,
    batch: int,
    precision: str,
    opset: int | None,
    options: PlanOptions | None,
    target: str | None,
    library: str,
    timing_cache: str | Path | None,
    weight_streaming: bool,
    verify: bool,
    dump: str | Path | None,
    progress: Progress | None,
) -> _Job:
    """Check everything that can be checked before any work, cheapest first."""
    from todo_compile import models
    from todo_compile.export.library import choose_library, current_gpu
    from todo_compile.export.targets import parse_targets, resolve_targets

    progress = progress or SilentProgress()
    options = options or PlanOptions()
    path = Path(out)
    if path.suffix not in SUFFIXES:
        raise ConfigError(
            f"The suffix of {path.name!r} says nothing about the format.",
            remedy="End --out in .plan or .engine (TensorRT) or .onnx (ONNX).",
        )
    if opset is not None and not 18 <= opset <= 23:
        raise ConfigError(f"Opset {opset} is not supported.", remedy="Choose 18 to 23.")
    dtype = dtype_of(precision)
    resolution = models.Resolution.parse(res)
    wanted = parse_targets(target)
    source = models.resolve(str(model))
    models.input_specs(source, resolution, batch=batch, dtype=dtype)  # the model can take them
    engine = path.suffix in ENGINE_SUFFIXES
    gpu = current_gpu() if engine else None
    chosen = choose_library(library, gpu=gpu) if engine else None
    targets = resolve_targets(wanted, chosen, gpu) if chosen is not None else None
    if targets is not None:
        progress.info(f"target         {', '.join(targets.names)} ({targets.reason})")
    found = models.find_weights(source, models.WeightsChoice.parse(weights), dtype=dtype)
    progress.info(f"weights        {found.description}")
    digest = _weights_hash(found, progress)
    request: dict[str, Any] = {
        "model": source.identifier,
        "architecture": found.architecture,
        "component": source.component,
        "weights": digest,
        "resolution": str(resolution),
        "batch": batch,
        "precision": precision,
        "opset": opset or 23,
        "plan": {**options.describe(), "native_kv_tokens": source.native.kv_tokens},
        "format": "tensorrt" if engine else "onnx",
        "library": f"{chosen.name} {chosen.version}" if chosen is not None else None,
        "targets": list(targets.names) if targets is not None else [],
        "weight_streaming": weight_streaming,
        "versions": versions(),
        "passes": passes_hash(),
    }
    return _Job(
        source, resolution, found, digest, path, batch, precision, opset or 23, options, chosen,
        targets, Path(timing_cache) if timing_cache else None, weight_streaming, verify,
        Path(dump) if dump else None, progress, request,
    )  # fmt: skip


def _weights_hash(weights: Weights, progress: Progress) -> str:
    """Identity of the weights; only files take time to read."""
    from todo_compile import models

    if weights.kind == "random":
        return models.weights_hash(weights)
    with progress.step("weights hash"):
        return models.weights_hash(weights)


def _build(job: _Job, reasons: tuple[str, ...]) -> CompileResult:
    """Make the output in a stage and publish it."""
    from todo_compile.export import manifest as manifests
    from todo_compile.export.files import staged
    from todo_compile.export.onnx import data_name, export_onnx

    engine = job.library is not None
    with staged(job.out) as stage:
        program, report, example = _rewritten(job)
        onnx = stage.folder / ("model.onnx" if engine else job.out.name)
        info = export_onnx(
            program,
            onnx,
            opset=job.opset,
            input_names=example.input_names,
            output_names=example.output_names,
            progress=job.progress,
        )
        verification = None
        if job.verify:
            from todo_compile.verification import verify

            verification = verify(job, program, report, onnx, example)
        inputs = manifests.tensors(example.specs)
        outputs = _outputs(program, example.output_names)
        del program, example
        _release_memory()
        built = None
        if engine:
            built = _engine(job, stage, onnx)
            files: tuple[str, ...] = (job.out.name,)
        else:
            files = info.files  # weights first: whoever finds the model finds what it refers to
            for name in files:
                stage.publish(name)
            if data_name(job.out) not in files:
                stage.retire(data_name(job.out))
        with job.progress.step("manifest"):
            entries = [manifests.file_entry(stage.folder / name) for name in files]
        document = manifests.Manifest(
            created=manifests.now(),
            request=job.request,
            versions=versions(),
            model=_model_facts(job),
            sites=[_site_facts(s) for s in report.to_dict()["sites"]],
            totals=report.to_dict()["totals"],
            files=entries,
            inputs=manifests.tensors(built.inputs) if built else inputs,
            outputs=manifests.tensors(built.outputs) if built else outputs,
            library=f"{built.library} {built.version}" if built else None,
            targets=list(built.targets) if built else [],
            memory=manifests.MemoryUse(
                activation=built.memory.activation,
                scratch=built.memory.scratch,
                weights=built.memory.weights,
            )
            if built
            else None,
            onnx={"opset": info.opset, "ops": info.ops},
            verification=verification,
            seconds=dict(job.progress.seconds),
            peak_rss_bytes=built.peak_rss_bytes if built else None,
        )
        manifests.write(document, stage.publish(manifests.manifest_path(job.out).name))
    return CompileResult(job.out, document, False, reasons, report)


def _outputs(program: ExportedProgram, names: tuple[str, ...]) -> list[Any]:
    """Shapes and dtypes of a graph's outputs."""
    from todo_compile.export.manifest import Tensor

    output = next(n for n in reversed(program.graph.nodes) if n.op == "output")
    values = [v.meta["val"] for v in output.args[0]]
    return [
        Tensor(name=name, shape=tuple(value.shape), dtype=str(value.dtype).removeprefix("torch."))
        for name, value in zip(names, values, strict=True)
    ]


def _rewritten(job: _Job) -> tuple[ExportedProgram, Report, ExampleInputs]:
    """Load, capture and rewrite."""
    from todo_compile import models
    from todo_compile.capture import capture
    from todo_compile.passes.pipeline import rewrite_graph

    with job.progress.step("load model") as step:
        loaded = models.load(
            job.source,
            job.weights,
            dtype=dtype_of(job.precision),
            hashed=False,
            report=step.update,
        )
        step.note(f"{loaded.parameters / 1e6:,.0f} M parameters")
    example = models.example_inputs(loaded, job.resolution, batch=job.batch)
    with job.progress.step("capture"):
        program = capture(example.wrapper, example.args)
    with job.progress.step("passes") as step:
        report = rewrite_graph(
            program.graph_module,
            job.options,
            native_kv_tokens=job.source.native.kv_tokens,
            dump=job.dump,
            explicit_casts=True,
        )
        program.validate()
        step.note(report.summary())
    if report.rewritten == 0 and job.options.factors != ():
        miss = report.nearest_miss()
        job.progress.warn(
            "no attention site was rewritten" + (f"; nearest miss: {miss}" if miss else "")
        )
    return program, report, example


def _engine(job: _Job, stage: Stage, onnx: Path) -> EngineInfo:
    from todo_compile.export.tensorrt import EngineOptions, build_engine

    assert job.library is not None and job.targets is not None
    return build_engine(
        onnx,
        stage.publish(job.out.name),
        library=job.library,
        targets=job.targets,
        log=job.out.with_name(f"{job.out.name}.log"),
        progress=job.progress,
        options=EngineOptions(weight_streaming=job.weight_streaming, timing_cache=job.timing_cache),
    )


def _release_memory() -> None:
    """Give the model's memory back before the builder's process takes its own."""
    gc.collect()
    if platform.system() == "Linux":
        import ctypes

        try:
            ctypes.CDLL("libc.so.6").malloc_trim(0)
        except (OSError, AttributeError):
            return  # another libc (musl) has no malloc_trim, and needs none


def _model_facts(job: _Job) -> dict[str, Any]:
    return {
        "name": job.source.identifier,
        "class": job.source.class_name,
        "component": job.source.component,
        "weights": job.weights.description,
        "weights_hash": job.weights_hash,
        "random_weights": job.weights.kind == "random",
        "config": dict(job.source.config),
        "resolution": str(job.resolution),
        "batch": job.batch,
        "precision": job.precision,
    }


def _site_facts(site: dict[str, Any]) -> dict[str, Any]:
    kept = (
        "module", "kind", "grid", "level", "heads", "head_dim", "query_tokens", "key_tokens",
        "key_tokens_after", "factor", "action", "reason",
    )  # fmt: skip
    return {key: site[key] for key in kept}


def versions() -> dict[str, str]:
    """Versions of everything whose change can change an output."""
    found = {"python": platform.python_version()}
    for name in ("todo-compile", "torch", "diffusers", "onnx", "onnxscript", "onnx_ir"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def passes_hash() -> str:
    """Hash of the passes' source: an output made by other passes is stale."""
    import hashlib

    digest = hashlib.sha256()
    root = Path(__file__).parent
    for path in sorted([*(root / "passes").glob("*.py"), *(root / "export").glob("*.py")]):
        digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()[:16]
