"""Prove a build on its own weights: the rewritten graph, then the file against it, on the CPU.

Every rewritten site is compared with subsampling at the site (`site_proof`), then the exported file
runs against the rewritten graph: ONNX in onnxruntime, a package in torch.

onnxruntime's CPU provider materialises QKᵀ, so high resolutions do not fit into memory. Then the
same model is captured, rewritten and exported once more at the largest resolution that fits, with
the factors that each level got, and that is verified: the same weights through the same passes.
"""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from todo_compile import models, packages
from todo_compile.batches import largest
from todo_compile.build.model_job import ModelJob
from todo_compile.build.planning import plan_source
from todo_compile.build.translation import translate
from todo_compile.errors import ConfigError, ExportError, first_line
from todo_compile.precision import dtype_of
from todo_compile.progress import SilentProgress

if TYPE_CHECKING:
    from torch import Tensor
    from torch.export import ExportedProgram
    from torch.fx import GraphModule

    from todo_compile.build.job import Job
    from todo_compile.build.site_proof import SiteProof
    from todo_compile.capture.inputs import ExampleInputs
    from todo_compile.models import Resolution
    from todo_compile.options import PlanOptions
    from todo_compile.passes.report import Report

# Relative L2 error of a whole UNet, measured at 1e-6 (fp32) and 2e-3 (fp16) on sd15 at 512 px.
TOLERANCES = {"fp32": 1e-4, "fp16": 2e-2, "bf16": 1e-1}
# Largest error of a site relative to its largest element: what rounds is one projection and one
# attention. Tokens of another place differ by about 1.
SITE_TOLERANCES = {"fp32": 1e-4, "fp16": 2e-2, "bf16": 1.6e-1}


@dataclass(frozen=True)
class Errors:
    """Differences between two outputs.

    Attributes:
        max_abs, mean_abs: absolute differences.
        relative_l2: ‖a − b‖ / ‖b‖.
        cosine: cosine similarity of the flattened outputs.
    """

    max_abs: float
    mean_abs: float
    relative_l2: float
    cosine: float


def compare(actual: Tensor, expected: Tensor) -> Errors:
    """Errors of `actual` against `expected`, in fp64."""
    a, b = actual.double().flatten(), expected.double().flatten()
    difference = (a - b).abs()
    norm = float(b.norm())
    return Errors(
        max_abs=float(difference.max()),
        mean_abs=float(difference.mean()),
        relative_l2=float((a - b).norm()) / norm if norm else float(difference.max()),
        cosine=float(a @ b / (a.norm() * b.norm())) if norm else 1.0,
    )


def run_onnx(path: Path, inputs: Mapping[str, Tensor]) -> list[Tensor]:
    """Outputs of an ONNX file in onnxruntime on the CPU.

    Raises:
        MissingPackageError: onnxruntime is absent.
        ExportError: onnxruntime refuses the file, or fails.
    """
    ort = packages.load("onnxruntime", "--verify")
    import torch

    options = ort.SessionOptions()
    options.log_severity_level = 3
    try:
        session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        feeds = {name: value.numpy() for name, value in inputs.items()}
        outputs: Sequence[Any] = session.run(None, feeds)
    except Exception as error:  # onnxruntime's errors have no common base but Exception
        raise ExportError(
            f"onnxruntime cannot run {path.name}: {first_line(error)}",
            remedy="bf16 has few CPU kernels: verify with --precision fp32. Else report it.",
        ) from error
    return [torch.from_numpy(o) for o in outputs]


def run_package(path: Path, inputs: Mapping[str, Tensor]) -> list[Tensor]:
    """Outputs of an AOTInductor package.

    Raises:
        ExportError: torch cannot load or run it.
    """
    from todo_compile._torch import load_ahead

    try:
        found: Any = load_ahead(str(path))(*inputs.values())
    except RuntimeError as error:
        raise ExportError(
            f"torch cannot run {path.name}: {first_line(error)}", remedy="Report it."
        ) from error
    return list(found) if isinstance(found, (tuple, list)) else [found]


def score_bytes(report: Report) -> int:
    """Bytes of the largest QKᵀ in fp32, in which the CPU provider computes it, before and after
    the softmax."""
    return 2 * 4 * report.totals.score_elements_after


def available_bytes() -> int:
    """Memory that is free for use; half of a modest machine's where the system does not say."""
    try:
        for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass  # not Linux
    return 4 * 2**30


def verify(
    job: Job,
    program: ExportedProgram,
    dense: GraphModule,
    report: Report,
    file: Path,
    example: ExampleInputs,
) -> dict[str, Any]:
    """Verify a job's graph and file; returns what the manifest records.

    Args:
        job: what was built.
        program: rewritten, with its weights.
        dense: `site_proof.dense_copy` of the program from before the passes.
        report: of the passes.
        file: the exported program: ONNX, or a package.
        example: inputs to run it with.

    Raises:
        PassError: a site differs from subsampling at the site.
        ExportError: the outputs differ by more than the precision explains, or bf16, which the
            CPU provider cannot run.
    """
    if job.precision == "bf16" and job.format != "pt2":
        raise ExportError(
            "onnxruntime's CPU provider has no bf16 kernels, so bf16 cannot be verified here.",
            remedy="Verify with --precision fp32, which has the same graph, or leave out --verify.",
        )
    # The report's figures are those of the largest batch.
    budget = available_bytes() // 2
    if score_bytes(report) <= budget:
        job.progress.info(f"verify         at {size_of(job)}, {expected_time(report)}")
        sites = _sites(job, program, dense, report, example)
        return _checked(job, program, file, example, size_of(job), sites)
    if not isinstance(job, ModelJob):
        raise ExportError(
            f"There is not enough free memory to verify this on the CPU: "
            f"{score_bytes(report) / 2**30:.1f} GB for attention scores.",
            remedy="Close other programs, give smaller example inputs, or leave out --verify.",
        )
    options = pinned(job.options, report)
    smaller, planned = _largest_that_fits(job, options, budget)
    job.progress.warn(
        f"{job.resolution} needs {score_bytes(report) / 2**30:.1f} GB for attention scores on the "
        f"CPU; verifying the same weights, passes and factors at {smaller} instead, "
        f"{expected_time(planned)}"
    )
    return _at(job, smaller, options, file.parent)


def size_of(job: Job) -> str:
    """What a job's output is for, for people."""
    return str(job.resolution) if isinstance(job, ModelJob) else "its example inputs"


def pinned(options: PlanOptions, report: Report) -> PlanOptions:
    """`options` with the factor that every site got: a smaller grid would be planned gentler."""
    sites = tuple((s.name, s.factor) for s in report.sites if s.action == "rewritten")
    return replace(options, kv_tokens=None, factors=(), sites=sites)


def expected_time(report: Report) -> str:
    """About how long verifying takes here: each site dense, then the graph in two runtimes.

    A product of two matrices tells what the processor does in a second; a model reaches a third of
    it in our measurements, so the words are rough on purpose.
    """
    import torch

    side = 768
    matrix = torch.ones(side, side)
    start = time.perf_counter()
    for _ in range(3):
        torch.mm(matrix, matrix)
    rate = 3 * 2 * side**3 / (time.perf_counter() - start) / 3
    seconds = (report.totals.flops + 2 * report.totals.flops_after) / rate
    return "less than a minute" if seconds < 45 else f"about {math.ceil(seconds / 60)} min"


def _largest_that_fits(
    job: ModelJob, options: PlanOptions, budget: int
) -> tuple[Resolution, Report]:
    """Largest scaled-down resolution whose scores fit, with its plan, from the plan alone.

    Raises:
        ExportError: none fits.
    """
    from todo_compile.capture.inputs import side_multiple

    multiple = 8 * side_multiple(job.source)

    def sides(eighths: int) -> tuple[int, ...]:
        whole = (job.resolution.width, job.resolution.height)
        return tuple(max(multiple, s * eighths // 8 // multiple * multiple) for s in whole)

    for width, height in dict.fromkeys(map(sides, range(7, 0, -1))):
        smaller = models.Resolution(width, height)
        try:
            report = plan_source(
                job.source, smaller, batch=job.batch, precision=job.precision, options=options
            )
        except ConfigError:
            break  # a grid smaller than its factor, and so are all that follow
        if score_bytes(report) <= budget:
            return smaller, report
    raise ExportError(
        f"There is not enough free memory to verify {job.resolution} on the CPU, nor any smaller "
        "size with the same factors.",
        remedy="Close other programs, or leave out --verify.",
    )


def _at(job: ModelJob, resolution: Resolution, options: PlanOptions, stage: Path) -> dict[str, Any]:
    """Capture, rewrite and export once more at `resolution`, and verify that."""
    from todo_compile.build.site_proof import dense_copy
    from todo_compile.capture.inputs import example_inputs
    from todo_compile.capture.trace import capture, constants_of, outputs_of
    from todo_compile.passes.pipeline import rewrite_graph

    dtype = dtype_of(job.precision)
    loaded = models.load(job.source, job.weights, dtype=dtype, hashed=False, loras=job.loras)
    example = example_inputs(loaded, resolution, batch=job.batch)
    program = capture(example.wrapper, example.args, batches=example.batches, texts=example.texts)
    example = example.giving(len(outputs_of(program)))
    dense = dense_copy(program)
    report = rewrite_graph(
        program.graph_module,
        options,
        native_kv_tokens=job.source.native.kv_tokens,
        token_grids=dict(example.token_grids),
        image_axes=example.image_axes,
        constants=constants_of(program),
        explicit_casts=True,
        batch=largest(job.batch),
    )
    sites = _sites(job, program, dense, report, example)
    with tempfile.TemporaryDirectory(prefix="verify-", dir=stage) as folder:
        suffix = ".pt2" if job.format == "pt2" else ".onnx"
        file = Path(folder) / f"model{suffix}"
        translate(job, program, file, example, SilentProgress())
        return _checked(job, program, file, example, str(resolution), sites)


def _sites(
    job: Job, program: ExportedProgram, dense: GraphModule, report: Report, example: ExampleInputs
) -> tuple[SiteProof, ...]:
    """Prove every rewritten site, and say which one is worst.

    Raises:
        PassError: a site differs from subsampling at the site.
    """
    from todo_compile.build.site_proof import prove_sites

    if not report.rewritten:
        return ()
    with job.progress.step("prove sites") as step:
        found = prove_sites(
            program,
            dense,
            report,
            example.args,
            tolerance=SITE_TOLERANCES[job.precision],
            budget=available_bytes() // 2,
        )
        step.note(worst_site(found))
    for one in found:
        if one.error is None:
            job.progress.warn(
                f"{one.module or one.name} was not proved: compared is {one.compared}"
            )
    return found


def worst_site(proofs: Sequence[SiteProof]) -> str:
    """The largest error among sites, for people."""
    known = [(one.error, one.module or one.name) for one in proofs if one.error is not None]
    several = "s" if len(known) != 1 else ""
    counted = f"{len(known)} site{several} against subsampling at the site"
    return f"{counted}: worst {max(known)[0]:.1e} ({max(known)[1]})" if known else counted


def _checked(
    job: Job,
    program: ExportedProgram,
    file: Path,
    example: ExampleInputs,
    resolution: str,
    sites: Sequence[SiteProof],
) -> dict[str, Any]:
    with job.progress.step("verify") as step:
        module = program.module()
        found = [one for args in example.ends for one in _errors(module, file, example, args)]
        ran = "the package" if job.format == "pt2" else "onnxruntime"
        # The worst output speaks for all; NaN is worse than any number.
        of = "".join(f", {one.many} {one.least} and {one.most}" for one in example.ranges)
        errors = max(found, key=lambda e: (math.isnan(e.relative_l2), e.relative_l2))
        summary = (
            f"{ran} against torch at {resolution}{of}: max {errors.max_abs:.2e}, "
            f"mean {errors.mean_abs:.2e}, relative L2 {errors.relative_l2:.2e}"
        )
        step.note(summary)
    tolerance = TOLERANCES[job.precision]
    if not errors.relative_l2 <= tolerance:  # also for NaN
        raise ExportError(
            f"The file does not reproduce the graph: {summary} (allowed {tolerance:g}).",
            remedy="Nothing was written. Try another --precision (or --opset), and report it.",
        )
    return {
        "resolution": resolution,
        "summary": summary,
        "tolerance": tolerance,
        **asdict(errors),
        "sites_summary": worst_site(sites) if sites else None,
        "sites": [asdict(one) for one in sites],
    }


def _errors(
    module: Any, file: Path, example: ExampleInputs, args: Sequence[Tensor]
) -> list[Errors]:
    """Errors of each output for one call."""
    import torch

    with torch.no_grad():
        expected = module(*args)
    if not isinstance(expected, (tuple, list)):
        expected = (expected,)
    run = run_package if file.suffix == ".pt2" else run_onnx
    feeds = dict(zip(example.input_names, args, strict=True))
    return [compare(*pair) for pair in zip(run(file, feeds), expected, strict=True)]
