"""TensorRT engines, classic and for RTX, on torch's CUDA tensors in place.

Not yet run on hardware: written and type-checked against the real bindings, and exercised in tests
up to the first call that needs a CUDA driver.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from todo_compile import packages
from todo_compile.errors import BundleError, ConfigError, EngineError
from todo_compile.runtime.files import check_gpu, check_library
from todo_compile.runtime.session import OutputSession, check_feeds, dtype_named, sizes_of

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from todo_compile.bundle.tensors import Tensor as Spec
    from todo_compile.runtime.files import Output


class TensorRTSession(OutputSession):
    """A TensorRT engine.

    Args:
        output: checked, see `files.open_output`.
        device: ``cuda`` or ``cuda:N``; None for torch's current GPU.
        cuda_graph: record the kernels once and replay them. Inputs and outputs then pass through
            buffers that keep their addresses (copied on the GPU). A recording is for one batch: of
            an engine with a range, a call with another batch than the last one records anew.
        specialise: when TensorRT for RTX compiles kernels for the very batch of a call: ``lazy``,
            ``eager`` or ``none``; None for its default. Classic TensorRT has no such kernels.
        runtime_cache: file in which TensorRT for RTX keeps the kernels that it compiled for this
            GPU; read at the start, written after the first run. Classic TensorRT needs none.

    Raises:
        EngineError: the library is absent or another version, there is no GPU or another, or
            TensorRT refuses the engine.
        BundleError: the engine's tensors are not the manifest's.
    """

    def __init__(
        self,
        output: Output,
        *,
        device: str | None = None,
        cuda_graph: bool = False,
        specialise: str | None = None,
        runtime_cache: Path | None = None,
    ) -> None:
        super().__init__(output)
        trt = _library(output)
        self._log = _logger(trt)
        self._runtime: Any = trt.Runtime(self._log)
        with output.path.open("rb") as file:
            header = file.read(int(getattr(self._runtime, "engine_header_size", 0)))
        self._check_header(trt, header)
        self._device = _choose_gpu(output, device)
        import torch

        with torch.cuda.device(self._device):
            self._engine: Any = self._deserialise()
            _check_signature(self._engine, output)
            self._cache: Any = None
            self._cache_file = runtime_cache
            self._kept = False
            self._context: Any = self._make_context(trt, cuda_graph, specialise)
            self._stream = torch.cuda.Stream(self._device)
        self._replay: torch.cuda.CUDAGraph | None = None
        # TensorRT for RTX records graphs itself; for classic TensorRT torch does.
        self._record = cuda_graph and not hasattr(self._engine, "create_runtime_config")
        self._buffered = cuda_graph
        self._fixed: dict[str, Tensor] = {}
        self._fixed_for: tuple[int, int] | None = None  # the sizes that these buffers are for
        self._shaped: tuple[int, int] | None = None  # the sizes that the context is set to

    def run(self, feeds: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """See `Session.run`; asynchronous, as torch's own calls on a GPU are."""
        import torch

        check_feeds(feeds, self._inputs, self._device, self._output.built_for)
        current = torch.cuda.current_stream(self._device)
        self._stream.wait_stream(current)
        with torch.cuda.device(self._device), torch.cuda.stream(self._stream):
            held = {name: feeds[name].contiguous() for name in self._inputs}
            sizes = sizes_of(feeds, self._inputs)
            self._shape(sizes)
            if not self._buffered:
                results = {name: self._empty(spec, sizes) for name, spec in self._outputs.items()}
                self._bind({**held, **results})
                self._enqueue()
            else:
                self._renew_buffers(sizes)
                for name, value in held.items():
                    self._fixed[name].copy_(value)
                self._enqueue_recorded()
                results = {name: self._fixed[name].clone() for name in self._outputs}
        for tensor in held.values():  # torch's allocator must not reuse them before we are done
            tensor.record_stream(self._stream)
        current.wait_stream(self._stream)
        for tensor in results.values():
            tensor.record_stream(current)
        self._keep_cache()
        return results

    def _keep_cache(self) -> None:
        """Write RTX's compiled kernels to the file given as `runtime_cache`, once."""
        if self._cache is None or self._cache_file is None or self._kept:
            return
        self._kept = True
        staged = self._cache_file.with_name(f".{self._cache_file.name}.tmp-{os.getpid()}")
        try:
            staged.write_bytes(memoryview(self._cache.serialize()).cast("B"))
            os.replace(staged, self._cache_file)
        except OSError as error:
            warnings.warn(f"The compiled kernels cannot be kept: {error}", stacklevel=3)
        finally:
            staged.unlink(missing_ok=True)

    def _check_header(self, trt: Any, header: bytes) -> None:
        """Ask the library whether it can run the engine here; needs the driver, not the file."""
        if not header:
            return  # classic TensorRT checks when it deserialises
        verdict, diagnostics = self._runtime.get_engine_validity(header)
        if verdict == trt.EngineValidity.INVALID:
            raise self._refusal(f"TensorRT calls the engine invalid here ({diagnostics})")

    def _deserialise(self) -> Any:
        engine = self._runtime.deserialize_cuda_engine(self._output.path.read_bytes())
        if engine is None:
            raise self._refusal("TensorRT cannot open the engine")
        return engine

    def _make_context(self, trt: Any, cuda_graph: bool, specialise: str | None) -> Any:
        if not hasattr(self._engine, "create_runtime_config"):
            if specialise is not None:
                raise ConfigError(
                    "specialise is for TensorRT for RTX.",
                    remedy=f"Leave it out: {self._output.path.name} is of classic TensorRT.",
                )
            context = self._engine.create_execution_context()
        else:
            config = self._engine.create_runtime_config()
            if hasattr(trt, "CudaGraphStrategy") and cuda_graph:
                config.cuda_graph_strategy = trt.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
            if specialise is not None:
                known = trt.DynamicShapesKernelSpecializationStrategy
                chosen = getattr(known, specialise.upper())
                config.dynamic_shapes_kernel_specialization_strategy = chosen
            if self._cache_file is not None and hasattr(config, "create_runtime_cache"):
                self._cache = config.create_runtime_cache()
                if self._cache_file.exists():
                    # Refused by itself if it is another GPU's, driver's or version's.
                    self._cache.deserialize(self._cache_file.read_bytes())
                config.set_runtime_cache(self._cache)
            context = self._engine.create_execution_context(config)
        if context is None:
            raise self._refusal("TensorRT cannot prepare the engine to run")
        return context

    def _shape(self, sizes: tuple[int, int]) -> None:
        """Set the context to a batch and a length of text."""
        if sizes == self._shaped:
            return
        self._shaped = None  # a half-set context must not pass for a set one
        for name, spec in self._inputs.items():
            shape = spec.at(*sizes)
            if -1 in spec.shape and not self._context.set_input_shape(name, shape):
                raise self._refusal(f"TensorRT refuses the shape {shape} for {name}")
        self._shaped = sizes

    def _renew_buffers(self, sizes: tuple[int, int]) -> None:
        """Buffers for a call's sizes; what was recorded with others is of no use any more."""
        if sizes == self._fixed_for:
            return
        if self._fixed_for is not None:  # the GPU may still be at work on them
            self._stream.synchronize()
        self._fixed_for = self._replay = None
        specs = {**self._inputs, **self._outputs}
        self._fixed = {name: self._empty(spec, sizes) for name, spec in specs.items()}
        self._bind(self._fixed)
        self._fixed_for = sizes

    def _empty(self, spec: Spec, sizes: tuple[int, int]) -> Tensor:
        import torch

        return torch.empty(spec.at(*sizes), dtype=dtype_named(spec.dtype), device=self._device)

    def _bind(self, tensors: Mapping[str, Tensor]) -> None:
        for name, tensor in tensors.items():
            if not self._context.set_tensor_address(name, tensor.data_ptr()):
                raise self._refusal(f"TensorRT refuses the memory of {name}")

    def _enqueue(self) -> None:
        if not self._context.execute_async_v3(self._stream.cuda_stream):
            raise self._refusal("The engine failed")

    def _enqueue_recorded(self) -> None:
        import torch

        if not self._record:
            self._enqueue()
            return
        if self._replay is None:
            self._enqueue()  # the first run sets things up that cannot be recorded
            self._stream.synchronize()
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, stream=self._stream):
                self._enqueue()
            self._replay = graph
        self._replay.replay()

    def _refusal(self, what: str) -> EngineError:
        log = "; ".join(self._log.take())
        name = self._output.path.name
        if "cudaError 35" in log or "driver" in log.lower() or "no CUDA-capable" in log:
            targets = ", ".join(self._output.manifest.targets)
            return EngineError(
                f"{name} is a TensorRT engine and needs an NVIDIA GPU ({targets}) with its driver;"
                " none answers here.",
                remedy="Run it on such a machine, or compile to ONNX (--out FILE.onnx, or a bundle "
                f"with --format onnx), which runs on the CPU. TensorRT said: {log}",
            )
        return EngineError(
            f"{name}: {what}: {log or 'it gave no reason'}",
            remedy="If memory ran out: a smaller resolution or --weight-streaming. Else build it "
            "again on this machine.",
        )


def _library(output: Output) -> Any:
    """The module that built the engine.

    Raises:
        EngineError: absent, broken, or another version.
    """
    name = (output.manifest.library or "").partition(" ")[0]
    if name not in {"tensorrt", "tensorrt_rtx"}:
        raise EngineError(
            f"{output.path.name} was built with {output.manifest.library}, which is not known.",
            remedy="Build it again with todo-compile.",
        )
    trt = packages.load(name, f"Running {output.path.name}")
    check_library(output, name, str(trt.__version__))
    return trt


def _logger(trt: Any) -> Any:
    class Logger(trt.ILogger):
        """Keeps complaints for the error that they lead to."""

        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self._messages: list[str] = []

        def log(self, severity: Any, msg: str) -> None:
            if severity in {trt.ILogger.Severity.ERROR, trt.ILogger.Severity.INTERNAL_ERROR}:
                self._messages.append(msg.strip())

        def take(self) -> list[str]:
            """The messages since the last call."""
            messages, self._messages = self._messages, []
            return messages

    return Logger()


def _choose_gpu(output: Output, device: str | None) -> torch.device:
    """The GPU to run on, if the engine is for it.

    Raises:
        EngineError: there is none, or it is none of the engine's targets.
    """
    import torch

    kind, _, index = (device or "cuda").partition(":")
    if kind != "cuda" or not (index.isdigit() or not index):
        raise EngineError(
            f"A TensorRT engine cannot run with device {device!r}.",
            remedy="Known: cuda, cuda:N. For the CPU, compile to ONNX (--out FILE.onnx).",
        )
    if not torch.cuda.is_available():
        raise EngineError(
            "torch finds no NVIDIA GPU in this machine.",
            remedy="Install a CUDA build of torch and the driver, or compile to ONNX "
            "(--out FILE.onnx), which runs on the CPU.",
        )
    gpu = torch.device("cuda", int(index) if index else torch.cuda.current_device())
    major, minor = torch.cuda.get_device_capability(gpu)
    check_gpu(output, f"sm{major}{minor}")
    return gpu


def _check_signature(engine: Any, output: Output) -> None:
    """Compare the tensors of the engine with those in the manifest."""
    found = {engine.get_tensor_name(i) for i in range(engine.num_io_tensors)}
    specs = [*output.manifest.inputs, *output.manifest.outputs]
    stated = {spec.name: spec.shape for spec in specs}
    actual = {name: tuple(int(n) for n in engine.get_tensor_shape(name)) for name in found}
    if stated != actual:
        raise BundleError(
            f"The manifest of {output.path.name} does not describe its tensors: {stated} against "
            f"{actual} in the engine.",
            remedy="Build it again with todo-compile.",
        )
    for spec in output.manifest.inputs:
        if -1 not in spec.shape:
            continue
        stated = list(spec.profile)
        actual = [tuple(map(int, s)) for s in engine.get_tensor_profile_shape(spec.name, 0)]
        if stated != actual:
            raise BundleError(
                f"The manifest of {output.path.name} states other sizes of {spec.name} than the "
                f"engine: {stated} against {actual}.",
                remedy="Build it again with todo-compile.",
            )
