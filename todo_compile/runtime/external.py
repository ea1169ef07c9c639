"""Which files an ONNX model reads besides itself: only those that its manifest lists.

An ONNX file names the files of its weights itself. The manifest's hashes say nothing about one that
the manifest does not list, and so nothing about the weights that would be run.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from todo_compile import packages
from todo_compile.errors import BundleError

if TYPE_CHECKING:
    from todo_compile.runtime.files import Output

# Large, and without tensors.
_PASSED_OVER = frozenset({"value_info", "input", "output", "metadata_props", "opset_import"})


def check_external(output: Output) -> Any:
    """Refuse a model that reads files which its manifest does not list; else return the model.

    Args:
        output: an ONNX file, its hashes checked; weights in files of their own are not read.

    Returns:
        The ``ModelProto``, without those weights.

    Raises:
        BundleError: it names such a file, or is damaged.
        MissingPackageError: onnx is absent.
    """
    onnx = packages.load("onnx", "Running an ONNX file")
    from google.protobuf.message import DecodeError

    name = output.path.name
    try:
        model: Any = onnx.load(str(output.path), load_external_data=False)
    except (DecodeError, ValueError, OSError) as error:
        raise BundleError(
            f"{name} cannot be read as ONNX: {error}.", remedy="Build it again with todo-compile."
        ) from error
    listed = {entry.name for entry in output.manifest.files}
    for tensor in _tensors(model, onnx.TensorProto):
        apart = tensor.data_location == onnx.TensorProto.EXTERNAL or len(tensor.external_data) > 0
        places = [entry.value for entry in tensor.external_data if entry.key == "location"]
        if apart and (len(places) != 1 or places[0] not in listed):
            where = ", ".join(map(repr, places))[:100] or "no file"
            raise BundleError(
                f"{name} takes weights from {where}, which its manifest does not list.",
                remedy="Build it again with todo-compile.",
            )
    return model


def _tensors(message: Any, kind: Any) -> Iterator[Any]:
    """All tensors of a model: initializers, constants in nodes, in subgraphs and functions.

    Protobuf reads no more than a hundred levels, so this ends too.
    """
    for field, value in message.ListFields():
        if field.message_type is None or field.name in _PASSED_OVER:
            continue
        for part in [value] if hasattr(value, "ListFields") else value:
            if isinstance(part, kind):
                yield part  # a leaf: its bytes may be many
            else:
                yield from _tensors(part, kind)
