"""ONNX files in onnxruntime, on torch's own memory.

Inputs and outputs are bound by address, on the CPU as on a GPU: no copy, and nothing passes
through NumPy (which has no bfloat16).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from todo_compile import packages
from todo_compile.batches import NAME, TEXT_NAME
from todo_compile.errors import BundleError, ConfigError, EngineError, first_line
from todo_compile.runtime.external import check_external
from todo_compile.runtime.fused import fuse_attention
from todo_compile.runtime.session import OutputSession, check_feeds, dtype_named, sizes_of

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from todo_compile.runtime.files import Output

_WEIGHTS_FOLDER = "session.model_external_initializers_file_folder_path"
# The numbers of ONNX's TensorProto.DataType, and onnxruntime's spelling of each.
_TYPES = {
    "float32": (1, "tensor(float)"),
    "int32": (6, "tensor(int32)"),
    "int64": (7, "tensor(int64)"),
    "bool": (9, "tensor(bool)"),
    "float16": (10, "tensor(float16)"),
    "bfloat16": (16, "tensor(bfloat16)"),
}


class OnnxSession(OutputSession):
    """An ONNX file in onnxruntime.

    Args:
        output: checked, see `files.open_output`.
        device: ``cpu``, ``cuda`` or ``cuda:N``; None takes the GPU if onnxruntime and torch both
            have one, else the CPU.
        provider: of onnxruntime, in place of the device's own: ``openvino``, or as it calls itself.
        threads: of the CPU; None for one a core.

    Raises:
        MissingPackageError: onnxruntime or onnx is absent.
        EngineError: onnxruntime lacks the provider, or refuses the model.
        BundleError: the file's inputs or outputs are not the manifest's, or it refers to files that
            the manifest does not list.
    """

    def __init__(
        self,
        output: Output,
        *,
        device: str | None = None,
        provider: str | None = None,
        threads: int | None = None,
    ) -> None:
        super().__init__(output)
        named = None if provider is None else _provider(provider, device)
        self._device = choose_device("cpu" if named else device)
        self._stream = _own_stream(self._device)
        self._session = _create(output, self._device, self._stream, threads, named)
        _check_signature(self._session, output)

    def run(self, feeds: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """See `Session.run`."""
        import torch

        check_feeds(feeds, self._inputs, self._device, self._output.built_for)
        # Held until the run is over: a copy made by `contiguous` belongs to nobody else.
        held = {name: feeds[name].contiguous() for name in self._inputs}
        sizes = sizes_of(feeds, self._inputs)
        results = {
            name: torch.empty(spec.at(*sizes), dtype=dtype_named(spec.dtype), device=self._device)
            for name, spec in self._outputs.items()
        }
        binding: Any = self._session.io_binding()
        place, index = self._device.type, self._device.index or 0
        for name, spec in self._inputs.items():
            number, pointer = _TYPES[spec.dtype][0], held[name].data_ptr()
            binding.bind_input(name, place, index, number, list(spec.at(*sizes)), pointer)
        for name, spec in self._outputs.items():
            number, pointer = _TYPES[spec.dtype][0], results[name].data_ptr()
            binding.bind_output(name, place, index, number, list(spec.at(*sizes)), pointer)
        self._execute(binding, [*held.values(), *results.values()])
        return results

    def _execute(self, binding: Any, tensors: list[Tensor]) -> None:
        try:
            if self._stream is None:
                self._session.run_with_iobinding(binding)
                return
            import torch

            current = torch.cuda.current_stream(self._device)
            self._stream.wait_stream(current)
            self._session.run_with_iobinding(binding)
            current.wait_stream(self._stream)
            for tensor in tensors:  # torch's allocator must not reuse them before we are done
                tensor.record_stream(self._stream)
        except Exception as error:  # onnxruntime's errors have no common base but Exception
            raise EngineError(
                f"onnxruntime failed on {self._output.path.name}: {first_line(error)}",
                remedy="If memory ran out: a smaller batch or resolution, or another device.",
            ) from error


def choose_device(device: str | None) -> torch.device:
    """Where onnxruntime shall run.

    Raises:
        EngineError: onnxruntime or torch has no such device.
    """
    import torch

    ort = _onnxruntime()
    has_cuda = "CUDAExecutionProvider" in ort.get_available_providers()
    if device is None:
        device = "cuda" if has_cuda and torch.cuda.is_available() else "cpu"
    kind, _, index = device.partition(":")
    if kind == "cpu" and not index:
        return torch.device("cpu")
    if kind != "cuda" or not (index.isdigit() or not index):
        raise EngineError(f"Unknown device {device!r}.", remedy="Known: cpu, cuda, cuda:N.")
    if not has_cuda:
        raise EngineError(
            "This onnxruntime has no CUDA provider.",
            remedy="Uninstall onnxruntime, then install todo-compile[onnx-gpu]; or take "
            'device="cpu".',
        )
    if not torch.cuda.is_available():
        raise EngineError(
            "torch finds no NVIDIA GPU in this machine.",
            remedy='Take device="cpu", or install a CUDA build of torch and the driver.',
        )
    return torch.device("cuda", int(index) if index else torch.cuda.current_device())


def _onnxruntime() -> Any:
    return packages.load("onnxruntime", "Running an ONNX file")


def _own_stream(device: torch.device) -> torch.cuda.Stream | None:
    if device.type == "cpu":
        return None
    import torch

    return torch.cuda.Stream(device)


def _provider(name: str, device: str | None) -> str:
    """onnxruntime's own name of a provider.

    Raises:
        EngineError: it has none of this name.
        ConfigError: another device than the CPU is asked for as well.
    """
    if device not in (None, "cpu"):
        raise ConfigError(
            f"provider and device both say where it runs: {name} and {device}.",
            remedy="Leave device out.",
        )
    known = {_short(one): one for one in _onnxruntime().get_available_providers()}
    if _short(name) not in known:
        raise EngineError(
            f"This onnxruntime has no provider {name}.",
            remedy=f"It has {', '.join(known)}. Others come with another package in its place "
            "(onnxruntime-openvino, onnxruntime-gpu).",
        )
    return known[_short(name)]


def _short(name: str) -> str:
    return name.removesuffix("ExecutionProvider").lower()


def _on_own_cpu(device: torch.device, provider: str | None) -> bool:
    """Whether onnxruntime's own CPU provider runs it: others do not know its operators."""
    return device.type == "cpu" and provider in (None, "CPUExecutionProvider")


def _create(
    output: Output,
    device: torch.device,
    stream: torch.cuda.Stream | None,
    threads: int | None,
    provider: str | None,
) -> Any:
    model = check_external(output)
    ort = _onnxruntime()
    options = ort.SessionOptions()
    options.log_severity_level = 3
    if threads is not None:
        options.intra_op_num_threads = threads
    source: str | bytes = str(output.path)
    if _on_own_cpu(device, provider) and fuse_attention(model):
        source = model.SerializeToString()
        # Where the weights' own file is; the model names it relatively.
        folder = str(output.path.resolve().parent)
        options.add_session_config_entry(_WEIGHTS_FOLDER, folder)
    del model
    providers: list[Any] = ["CPUExecutionProvider"]
    if provider not in (None, "CPUExecutionProvider"):
        chosen: dict[str, str] = {}
        if provider == "OpenVINOExecutionProvider":
            # Else it may round to bf16 where the processor is good at that.
            chosen = {"device_type": "CPU", "precision": "ACCURACY"}
            chosen |= {} if threads is None else {"num_of_threads": str(threads)}
        providers.insert(0, (provider, chosen))
    if stream is not None:
        # On a stream that torch knows, so that both can wait for each other without the host.
        settings = {"device_id": device.index or 0, "user_compute_stream": str(stream.cuda_stream)}
        providers.insert(0, ("CUDAExecutionProvider", settings))
    try:
        session: Any = ort.InferenceSession(source, options, providers=providers)
    except Exception as error:  # onnxruntime's errors have no common base but Exception
        precision = output.manifest.model.get("precision")
        raise EngineError(
            f"onnxruntime cannot run {output.path.name}: {first_line(error)}",
            remedy="onnxruntime's CPU provider has few bf16 kernels: build with --precision fp32 "
            "or fp16."
            if precision == "bf16" and device.type == "cpu"
            else "Build it again, or with another --opset"
            + (": OpenVINO does not know Attention, which opset 23 brings." if provider else "."),
        ) from error
    if provider is not None and provider not in session.get_providers():
        raise EngineError(
            f"onnxruntime's {provider} does not load.", remedy="Its own log says why."
        )
    if stream is not None and "CUDAExecutionProvider" not in session.get_providers():
        # onnxruntime falls back to the CPU by itself, and would read GPU addresses there.
        raise EngineError(
            "onnxruntime's CUDA provider does not load.",
            remedy="It needs the CUDA and cuDNN versions of its release notes.",
        )
    return session


def _check_signature(session: Any, output: Output) -> None:
    """Compare the inputs and outputs of the file with those in the manifest."""
    manifest = output.manifest
    for kind, found, wanted in (
        ("inputs", session.get_inputs(), manifest.inputs),
        ("outputs", session.get_outputs(), manifest.outputs),
    ):
        unknown = [spec.dtype for spec in wanted if spec.dtype not in _TYPES]
        if unknown:
            raise BundleError(f"The manifest of {output.path.name} has a tensor of {unknown[0]}.")
        stated = {s.name: (list(s.shape), _TYPES[s.dtype][1]) for s in wanted}
        actual = {node.name: (_plain_shape(node.shape), node.type) for node in found}
        if stated != actual:
            raise BundleError(
                f"The manifest of {output.path.name} does not describe its {kind}: "
                f"{stated} against {actual} in the file.",
                remedy="Build it again with todo-compile.",
            )


def _plain_shape(shape: list[Any]) -> list[Any]:
    """A shape as manifests have it: -1 for the batch and the text, if they are symbolic."""
    return [-1 if size in (NAME, TEXT_NAME) else size for size in shape]
