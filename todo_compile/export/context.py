"""An ONNX file that stands for an engine: onnxruntime's provider for RTX GPUs loads it.

One node, ``EPContext`` of ``com.microsoft``, has the engine's tensors and names its file. The rules
are those of the provider's source (`onnx_ctx_model_helper.cc`, `nv_execution_provider.cc` of
onnxruntime): ``embed_mode`` 0 means a file, which lies in the same folder and is named without
``..``; tensors are found by name; ``hardware_architecture`` is compared with the GPU, to warn.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from todo_compile import packages
from todo_compile.batches import NAME, TEXT_NAME

if TYPE_CHECKING:
    from todo_compile.export.tensorrt import EngineInfo, TensorSpec

OPERATOR, DOMAIN = "EPContext", "com.microsoft"
_OPSET, _IR = 18, 10


def context_name(engine: str) -> str:
    """Name of the file that stands for an engine."""
    return f"{engine}.onnx"


def write_context(built: EngineInfo, path: Path) -> None:
    """Write the file for an engine that lies beside it; no GPU is needed.

    Args:
        built: an engine of TensorRT for RTX.
        path: in the same folder.
    """
    onnx: Any = packages.load("onnx", "Writing ONNX")
    inputs, outputs = (
        [_value(onnx, one) for one in side] for side in (built.inputs, built.outputs)
    )
    # The engine's own word for a GPU is a number; one for several has none to be compared with.
    number = {"hardware_architecture": built.targets[0].removeprefix("sm")}
    node = onnx.helper.make_node(
        OPERATOR,
        [one.name for one in built.inputs],
        [one.name for one in built.outputs],
        name=built.path.stem,
        domain=DOMAIN,
        main_context=0,
        embed_mode=0,
        ep_cache_context=built.path.name,
        ep_sdk_version=built.version,
        partition_name=built.path.stem,
        **(number if len(built.targets) == 1 else {}),
    )
    graph = onnx.helper.make_graph([node], built.path.stem, inputs, outputs)
    imports = [onnx.helper.make_opsetid(*one) for one in (("", _OPSET), (DOMAIN, 1))]
    model = onnx.helper.make_model(
        graph, producer_name="todo-compile", opset_imports=imports, ir_version=_IR
    )
    path.write_bytes(model.SerializeToString())


def _value(onnx: Any, spec: TensorSpec) -> Any:
    kind = onnx.TensorProto.DataType.Value(_names()[spec.dtype])
    names = (NAME, TEXT_NAME)  # see `bundle.tensors.Tensor.shape`
    shape = [names[axis] if size == -1 else size for axis, size in enumerate(spec.shape)]
    return onnx.helper.make_tensor_value_info(spec.name, kind, shape)


def _names() -> dict[str, str]:
    """ONNX's names of types by ours."""
    plain = ("float16", "bfloat16", "int32", "int64", "int8", "uint8", "bool")
    return {"float32": "FLOAT", "float64": "DOUBLE", **{name: name.upper() for name in plain}}
