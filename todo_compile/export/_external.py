"""Weights of an ONNX model, written to one file beside it.

The libraries' own savers ask every tensor to write itself. For a transposed weight (every linear
layer's) NumPy then writes element by element: 7 of the 13 seconds that SD1.5 takes. Here a
transposed tensor is made contiguous first, one at a time, and goes out in a single write.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import onnx_ir as ir
    import torch

# Shapes and scalars stay in the graph file, where every reader can fold them.
_SMALL = 1024
# A page: readers may map the file.
_ALIGNMENT = 4096


def weight_bytes(model: ir.Model) -> int:
    """Bytes of all initializers of `model`."""
    return sum(
        value.const_value.nbytes
        for value in model.graph.initializers.values()
        if value.const_value is not None
    )


def write_external(model: ir.Model, path: Path, tick: Callable[[int], None]) -> None:
    """Write the weights of `model` to `path` and make the model refer to them by its bare name.

    Tensors that share their memory are written once. The weights in `model` are replaced by
    references, so that its memory can be freed.

    Args:
        model: changed in place.
        path: the data file; must lie in the folder of the model's own file.
        tick: called with the bytes written so far.

    Raises:
        OSError: the disk is full or the file cannot be written.
    """
    import onnx_ir as ir

    written: dict[tuple[Any, ...], int] = {}
    # What was written stays alive to the end: memory that is freed and given out again must not
    # pass for a tensor that was written before.
    alive: list[Any] = []
    offset = 0
    with path.open("wb", buffering=0) as file:
        for value in model.graph.initializers.values():
            tensor = value.const_value
            if tensor is None or tensor.nbytes <= _SMALL:
                continue
            where = _memory(tensor)
            if where is None or where not in written:
                offset = -(-offset // _ALIGNMENT) * _ALIGNMENT
                file.seek(offset)
                start = offset
                _write_all(file, _bits(tensor))
                offset += tensor.nbytes
                tick(offset)
            else:
                start = written[where]
            if where is not None:
                written[where] = start
                alive.append(getattr(tensor, "raw", None))
            sides: Any = tensor.shape  # typed as perhaps symbolic; a tensor's are numbers
            value.const_value = ir.ExternalTensor(
                path.name,
                start,
                tensor.nbytes,
                tensor.dtype,
                shape=ir.Shape(tuple(int(side) for side in sides)),
                name=tensor.name or value.name or "",
                base_dir=path.parent,
            )


def _memory(tensor: ir.TensorProtocol) -> tuple[Any, ...] | None:
    """Where and how the tensor lies in memory; None if it is made only when it is asked for."""
    import numpy as np
    import torch

    raw = getattr(tensor, "raw", None)
    if isinstance(raw, torch.Tensor):
        return (raw.device, raw.data_ptr(), raw.stride(), tuple(raw.shape), raw.dtype)
    if isinstance(raw, np.ndarray):
        array: Any = raw
        return ("cpu", array.ctypes.data, array.strides, array.shape, array.dtype.str)
    return None


def _bits(tensor: ir.TensorProtocol) -> torch.Tensor:
    """The tensor's memory as integers, since NumPy lacks bfloat16 and float8; no copy."""
    import torch

    raw = getattr(tensor, "raw", None)
    if isinstance(raw, torch.Tensor):
        integers = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
        return raw.detach().cpu().view(integers[raw.element_size()])
    array = tensor.numpy()
    array = array.view(f"i{array.itemsize}" if array.itemsize > 1 else "u1")
    with warnings.catch_warnings():
        # Constants are often read-only arrays; nobody writes to them here.
        warnings.filterwarnings("ignore", message=".*not writable", category=UserWarning)
        return torch.from_numpy(array)


def _write_all(file: Any, bits: torch.Tensor) -> None:
    # torch makes a transposed tensor contiguous in blocks (NumPy's copy takes 2.5× as long).
    flat: Any = bits.contiguous().reshape(-1).numpy()
    data = memoryview(flat).cast("B")
    while data:
        # One call writes at most 2 GiB on Linux.
        data = data[file.write(data) :]
