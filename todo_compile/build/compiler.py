"""From a model to an engine: the whole pipeline as a table of contents.

    weights → load → capture → passes → ONNX → (prove sites, verify) → engine → manifest
                                      → AOTInductor package (prove sites, verify) → manifest

Everything is made in a stage beside the output and moved there at the end, so that a failure or a
kill leaves the old output or none.
"""

from __future__ import annotations

import gc
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from todo_compile.batches import largest
from todo_compile.build.gate import as_model, beyond_memory, gate_of, judge, why_not_onnxruntime
from todo_compile.build.manifest_entries import as_built, manifest_site, output_tensors
from todo_compile.build.translation import translate
from todo_compile.build.verification import verify
from todo_compile.bundle import entries
from todo_compile.bundle import manifest as manifests
from todo_compile.bundle.files import check_target, staged, sweep
from todo_compile.bundle.manifest import find_reusable, read
from todo_compile.bundle.tensors import tensors
from todo_compile.collection import paused_collection
from todo_compile.errors import BundleError, ConfigError
from todo_compile.export._sharing import share_weights
from todo_compile.export.context import context_name, write_context
from todo_compile.export.onnx import data_name
from todo_compile.export.tensorrt import EngineOptions, build_engine
from todo_compile.runtime.files import Output

if TYPE_CHECKING:
    from torch.export import ExportedProgram
    from torch.fx import GraphModule

    from todo_compile.build.job import Job
    from todo_compile.bundle.files import Stage
    from todo_compile.bundle.manifest import Manifest
    from todo_compile.bundle.tensors import Tensor
    from todo_compile.bundle.verdict import Verdict
    from todo_compile.capture.inputs import ExampleInputs
    from todo_compile.export.tensorrt import EngineInfo
    from todo_compile.passes.report import Report


@dataclass(frozen=True)
class CompileResult:
    """What a job made or found.

    Attributes:
        path: the engine, ONNX file or package.
        manifest: its manifest, see `todo_compile.bundle.manifest`.
        reused: an equal output existed and was kept.
        reasons: why it was rebuilt, where an output existed.
        report: what was done to every attention site; None if reused.
    """

    path: Path
    manifest: Manifest
    reused: bool
    reasons: tuple[str, ...] = ()
    report: Report | None = field(default=None, repr=False)


def run(job: Job) -> CompileResult:
    """Build the output of a job, or keep an equal one; see `Job.build`."""
    force, verify = job.request.force, job.request.verify
    check_target(job.out)
    sweep(job.out)
    found = find_reusable(job.out, job.identity)
    gate = gate_of(job)
    if found.reusable and not force and not verify:
        old = read(job.out)
        if gate is None or (old.gate is not None and old.gate.gate == str(gate)):
            job.progress.info(f"{job.out} is up to date: everything that matters is equal; kept.")
            return CompileResult(job.out, old, reused=True)
        found = replace(found, reasons=("it was not judged by this gate",))
    reasons = found.reasons or (asked_for(force=force, verify=verify) if found.reusable else ())
    if job.out.exists() and reasons:
        job.progress.info("Rebuilding: " + "; ".join(reasons))
    return build(job, reasons)


def asked_for(*, force: bool, verify: bool) -> tuple[str, ...]:
    """Why an equal output is built again: what the caller asked for."""
    if force:
        return ("--force was given",)
    return ("--verify was given, and what is verified is built anew",) if verify else ()


def build(
    job: Job,
    reasons: tuple[str, ...] = (),
    *,
    since: Mapping[str, float] | None = None,
    weights_of: Path | None = None,
    shared: bool = False,
) -> CompileResult:
    """Make the output of a job in a stage and publish it.

    Args:
        job: a resolved request.
        reasons: why it is built although an output existed; passed on.
        since: seconds that the job's progress had measured for earlier outputs.
        weights_of: an ONNX file beside the output. Weights that are equal are not stored again: the
            output refers to that file's.
        shared: other ONNX files share its weights, or it theirs; they go to a file of their own.
    """
    engine = job.format == "tensorrt"
    verdict = _judged_in_torch(job)
    with staged(job.out) as stage:
        with paused_collection():
            program, dense, report, example = _rewritten(job)
        file = stage.folder / ("model.onnx" if engine else job.out.name)
        info = translate(job, program, file, example, job.progress, shared=shared)
        verification = None
        if job.request.verify:
            assert dense is not None
            verification = verify(job, program, dense, report, file, example)
        inputs = tensors(example.specs, example.batches, example.texts)
        outputs = output_tensors(job, program, example.output_names)
        del program, dense, example
        _release_memory()
        built = None
        lent: tuple[Path, ...] = ()
        if engine:
            built = _engine(job, stage, file, inputs)
            files: tuple[str, ...] = (job.out.name, *_context(stage, built))
            for name in info.files:
                stage.discard(name)
        else:
            files = info.files  # weights first: whoever finds the model finds what it refers to
            lent = _share(weights_of, file) if weights_of is not None and len(files) > 1 else ()
            files = _there(stage, files, may_lack=data_name(job.out) if lent else None)
            for name in files:
                stage.publish(name)
            if data_name(job.out) not in files:
                stage.retire(data_name(job.out))
        stage.complete(files)
        with job.progress.step("manifest"):
            written = [stage.folder / name for name in files]
        document = manifests.Manifest(
            created=entries.now(),
            request=job.identity,
            versions=job.identity["versions"],
            model=job.manifest_model(),
            sites=[manifest_site(s) for s in report.to_dict()["sites"]],
            totals=report.to_dict()["totals"],
            plan=None if job.planned is None else job.planned.manifest_plan,
            files=[entries.file_entry(path) for path in (*written, *lent)],
            inputs=as_built(built.inputs, inputs) if built else inputs,
            outputs=as_built(built.outputs, outputs) if built else outputs,
            library=f"{job.library.name} {job.library.version}" if job.library else None,
            targets=list(job.targets.names) if job.targets else [],
            memory=manifests.MemoryUse(
                activation=built.memory.activation,
                scratch=built.memory.scratch,
                weights=built.memory.weights,
            )
            if built
            else None,
            onnx=info.manifest_onnx,
            gate=verdict,
            verification=verification,
            seconds=_passed(since or {}, job.progress.seconds),
            peak_rss_bytes=built.peak_rss_bytes if built else None,
        )
        if verdict is None:
            document = _judged(job, file, document)
        entries.write(document, stage.publish(manifests.manifest_path(job.out).name))
    return CompileResult(job.out, document, False, reasons, report)


def _judged_in_torch(job: Job) -> Verdict | None:
    """The verdict of a job's gate, before the work, where onnxruntime could not run its output.

    Raises:
        GateError: the gate is not kept.
    """
    gate = gate_of(job)
    if gate is None or not (why := why_not_onnxruntime([job])):
        return None
    return judge(gate, [(0.0, as_model(job))], None, job.progress, why=why)


def _judged(job: Job, file: Path, document: Manifest) -> Manifest:
    """The manifest with the verdict on the file, which lies in the stage.

    Raises:
        GateError: the gate is not kept.
    """
    gate = gate_of(job)
    if gate is None:
        return document
    why = beyond_memory([document])
    outputs = None if why else {job.out.name: Output(file, document)}
    verdict = judge(gate, [(0.0, as_model(job))], outputs, job.progress, why=why)
    return document.model_copy(update={"gate": verdict})


def _passed(before: Mapping[str, float], now: Mapping[str, float]) -> dict[str, float]:
    """Seconds of the steps that ran between two readings."""
    return {k: v - before.get(k, 0.0) for k, v in now.items() if v != before.get(k)}


def _share(other: Path, onnx: Path) -> tuple[Path, ...]:
    """Let `onnx` use the weights of another file; returns what it refers to besides its own."""
    data = other.with_name(data_name(other))
    return (data,) if data.exists() and share_weights(onnx, other) else ()


def _there(stage: Stage, names: Sequence[str], *, may_lack: str | None) -> tuple[str, ...]:
    """The files that were made; weights that another output has all of are not among them.

    Raises:
        BundleError: another one has disappeared.
    """
    there = tuple(name for name in names if (stage.folder / name).exists())
    if gone := set(names) - {*there, may_lack}:
        raise BundleError(
            f"{min(gone)} has disappeared since it was made; what stood before stands.",
            remedy="Run the command again, and see what removes files there.",
        )
    return there


def _rewritten(
    job: Job,
) -> tuple[ExportedProgram, GraphModule | None, Report, ExampleInputs]:
    """Load, capture and rewrite; where it shall be verified, with the graph from before."""
    from todo_compile.build.site_proof import dense_copy
    from todo_compile.capture.trace import constants_of
    from todo_compile.passes.pipeline import rewrite_graph

    program, example = job.capture()
    dense = dense_copy(program) if job.request.verify else None
    with job.progress.step("passes") as step:
        report = rewrite_graph(
            program.graph_module,
            job.options,
            native_kv_tokens=job.native_kv_tokens,
            token_grids={**example.token_grids, **job.token_grids},
            image_axes=example.image_axes,
            constants=constants_of(program),
            dump=job.request.dump,
            explicit_casts=True,
            batch=largest(job.batch),
        )
        program.validate()
        step.note(report.summary())
    if job.planned is not None:
        job.planned.check_report(report)
    _check_texts(example, report)
    if why := report.why_none():
        job.progress.warn(why)
    return program, dense, report, example


def _check_texts(example: ExampleInputs, report: Report) -> None:
    """Refuse a range of texts that would cost the model its downsampling.

    Raises:
        ConfigError: text and picture are keys of one attention, and the plan needs their numbers.
    """
    from todo_compile.passes.plan.classify import TEXT_UNKNOWN

    texts = next((one for one in example.texts if one is not None), None)
    joint = [site for site in report.sites if site.reason.startswith(TEXT_UNKNOWN)]
    if texts is not None and joint:
        raise ConfigError(
            f"{joint[0].module or joint[0].name} attends to text and picture in one sequence, "
            f"where a downsampled picture needs the text's length, so no output is for {texts} "
            "tokens.",
            remedy=f"Give one length: --text-tokens {texts.most}.",
        )


def _engine(job: Job, stage: Stage, onnx: Path, inputs: Sequence[Tensor]) -> EngineInfo:
    assert job.library is not None and job.targets is not None
    return build_engine(
        onnx,
        stage.publish(job.out.name),
        library=job.library,
        targets=job.targets,
        log=job.out.with_name(f"{job.out.name}.log"),
        progress=job.progress,
        options=EngineOptions(
            weight_streaming=job.request.weight_streaming,
            timing_cache=job.request.timing_cache,
            profile={one.name: one.profile for one in inputs if -1 in one.shape},
        ),
    )


def _context(stage: Stage, built: EngineInfo) -> tuple[str, ...]:
    """The file by which onnxruntime's provider for RTX loads the engine, where there is such."""
    name = context_name(built.path.name)
    if built.library != "tensorrt_rtx" or ".." in built.path.name:  # which the provider refuses
        stage.retire(name)
        return ()
    write_context(built, stage.publish(name))
    return (name,)


def _release_memory() -> None:
    """Give the model's memory back before the builder's process takes its own."""
    gc.collect()
    if platform.system() == "Linux":
        import ctypes

        try:
            ctypes.CDLL("libc.so.6").malloc_trim(0)
        except (OSError, AttributeError):
            return  # another libc (musl) has no malloc_trim, and needs none
