"""Where a variant runs: torch eagerly, Inductor, AOTInductor, onnxruntime, TensorRT.

Each takes a workload and a variant and gives a call. Bundles' runtimes are reached as users reach
them, by `todo_compile.compile` and `todo_compile.load`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import todo_compile
from race_parts.clock import Sample, sample
from race_parts.variants import Variant
from race_parts.workloads import Workload
from todo_compile._torch import inductor, inductor_mode
from todo_compile.dynamo.backend import todo_inductor
from todo_compile.passes.report import Report


@dataclass
class Prepared:
    """A variant that is ready to run.

    Attributes:
        call: one call; on a GPU it may return before it is done.
        output: of the first call.
        first: the first call's time and memory, compiling left out.
        prepare_seconds: compiling, exporting, loading.
        report: what the compiler did; None where it was not asked.
    """

    call: Callable[[], Tensor]
    output: Tensor
    first: Sample
    prepare_seconds: float
    report: Report | None = None


def _prepared(
    call: Callable[[], Tensor], since: float, device: str, report: Report | None = None
) -> Prepared:
    seconds = time.perf_counter() - since
    results: list[Tensor] = []
    first = sample(lambda: results.append(call()), device)
    return Prepared(call, results[0], first, seconds, report)


def eager(work: Workload, variant: Variant, folder: Path) -> Prepared:
    """Torch without a compiler: the module, or the graph that `rewrite` makes of it."""
    del folder
    start, module, report = time.perf_counter(), variant.module(work), None
    if variant.plan is not None:
        module, report = todo_compile.rewrite(
            module, work.inputs, options=variant.options, token_grids=dict(work.token_grids)
        )
    return _prepared(lambda: module(*work.inputs), start, work.inputs[0].device.type, report)


class _Watched:
    """A backend that times the first run of what it compiles apart from compiling."""

    def __init__(self, work: Workload, variant: Variant, mode: str | None) -> None:
        self.patches: dict[str, Any] = inductor_mode(mode) if mode else {}
        self.options: dict[str, Any] | None = None
        if variant.plan is not None:
            grids = {"token_grids": dict(work.token_grids)} if work.token_grids else {}
            self.options = {**variant.plan, **grids, **self.patches}
        self.device = work.inputs[0].device.type
        self.first: Sample | None = None

    def __call__(self, graph: Any, inputs: Sequence[Any]) -> Callable[..., Any]:
        if self.options is not None:
            call = todo_inductor(graph, inputs, options=self.options)
        else:
            call = inductor(graph, inputs, self.patches)

        def run(*arguments: Any) -> Any:
            if self.first is not None:
                return call(*arguments)
            results: list[Any] = []
            self.first = sample(lambda: results.append(call(*arguments)), self.device)
            return results[0]

        return run


def compiled(mode: str | None = None) -> Callable[[Workload, Variant, Path], Prepared]:
    """Inductor on both sides, in one of its modes."""

    def prepare(work: Workload, variant: Variant, folder: Path) -> Prepared:
        del folder
        start, backend = time.perf_counter(), _Watched(work, variant, mode)
        before = len(todo_compile.reports())
        module = variant.module(work)
        run = torch.compile(module, backend=backend, dynamic=False, fullgraph=True)
        output = run(*work.inputs).clone()
        if backend.first is None:
            raise RuntimeError("Inductor compiled nothing")
        seconds = time.perf_counter() - start - backend.first.seconds
        new = todo_compile.reports()[before:]
        if len(new) != (variant.plan is not None):
            raise RuntimeError(f"{variant.name}: {len(new)} graphs were rewritten")
        made = new[0] if new else None
        return Prepared(lambda: run(*work.inputs), output, backend.first, seconds, made)

    return prepare


def bundled(suffix: str, device: str | None) -> Callable[[Workload, Variant, Path], Prepared]:
    """A file of the compiler's, loaded as users load it; the variants share nothing."""

    def prepare(work: Workload, variant: Variant, folder: Path) -> Prepared:
        start = time.perf_counter()
        path = folder / f"{variant.name}{suffix}"
        result: Any = todo_compile.compile(
            variant.module(work),
            work.inputs,
            out=path,
            options=variant.options,
            token_grids=dict(work.token_grids) or None,
        )
        threads = torch.get_num_threads() if (suffix, device) == (".onnx", "cpu") else None
        loaded = todo_compile.load(path, device=device, threads=threads, verify="size")
        report = result.report if variant.plan is not None else None
        where = work.inputs[0].device.type
        return _prepared(lambda: loaded(*work.inputs), start, where, report)

    return prepare


def unfused(provider: str) -> Callable[[Workload, Variant, Path], Prepared]:
    """The ONNX file as it is, in one of onnxruntime's providers, without `load`."""

    def prepare(work: Workload, variant: Variant, folder: Path) -> Prepared:
        import onnxruntime

        start = time.perf_counter()
        path = folder / f"{variant.name}.onnx"
        result: Any = todo_compile.compile(
            variant.module(work), work.inputs, out=path, options=variant.options
        )
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        session: Any = onnxruntime.InferenceSession(str(path), options, providers=[provider])
        names = [one.name for one in session.get_inputs()]
        feeds = {name: value.numpy() for name, value in zip(names, work.inputs, strict=True)}
        report = result.report if variant.plan is not None else None

        def call() -> Tensor:
            return torch.from_numpy(session.run(None, feeds)[0])

        return _prepared(call, start, "cpu", report)

    return prepare


RUNTIMES: dict[str, Callable[[Workload, Variant, Path], Prepared]] = {
    "eager": eager,
    "inductor": compiled(),
    "inductor-graphs": compiled("reduce-overhead"),
    "onnxruntime": bundled(".onnx", "cpu"),
    "onnxruntime-cuda": bundled(".onnx", "cuda"),
    "onnxruntime-plain": unfused("CPUExecutionProvider"),
    "openvino": unfused("OpenVINOExecutionProvider"),
    "aotinductor": bundled(".pt2", "cpu"),
    "tensorrt": bundled(".plan", None),
}


def unavailable(name: str, device: str) -> str | None:
    """Why a runtime cannot run on `device` here; None if it can."""
    needs_gpu = name in ("inductor-graphs", "onnxruntime-cuda", "tensorrt")
    if needs_gpu and device != "cuda":
        return "needs a GPU"
    on_cpu = ("onnxruntime", "onnxruntime-plain", "openvino", "aotinductor")
    if name in on_cpu and device != "cpu":
        return "is for the CPU"
    provider = {
        "onnxruntime": "CPUExecutionProvider",
        "onnxruntime-plain": "CPUExecutionProvider",
        "onnxruntime-cuda": "CUDAExecutionProvider",
        "openvino": "OpenVINOExecutionProvider",
    }.get(name)
    if provider is not None:
        try:
            import onnxruntime
        except ImportError:
            return "onnxruntime is not installed"
        if provider not in onnxruntime.get_available_providers():
            return f"this onnxruntime has no {provider}"
    if name == "tensorrt":
        from todo_compile.packages import installed

        if not (installed("tensorrt") or installed("tensorrt_rtx")):
            return "TensorRT is not installed"
    return None
