"""Reading safetensors files straight into tensors that already exist.

The format is an 8-byte little-endian length, a JSON header of that length, then the data. Reading
it ourselves has two reasons: every claim of the header is checked against the file's size before
anything is allocated, and bytes go from the file into the parameter, with no mapping of the file
and no second copy, so loading peaks at the size of the model.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from todo_compile.errors import ModelError
from todo_compile.foreign import ForeignError, open_regular, parse_object

if TYPE_CHECKING:
    from io import BufferedReader

    import torch

_MAX_HEADER = 100 * 2**20  # the same bound as the safetensors library
DTYPES = {
    "F64": ("float64", 8),
    "F32": ("float32", 4),
    "F16": ("float16", 2),
    "BF16": ("bfloat16", 2),
    "F8_E4M3": ("float8_e4m3fn", 1),
    "F8_E5M2": ("float8_e5m2", 1),
}
"""Safetensors' name of a floating type → torch's, and its bytes."""
_WHOLE = {"I64": 8, "I32": 4, "I16": 2, "I8": 1}
_CHUNK = 2**24  # elements converted at a time when the dtype changes


@dataclass(frozen=True)
class Entry:
    """One tensor of a file, or a part of one: where its bytes are and what they mean.

    With `transposed` the bytes are those of a matrix of the shape turned round.
    """

    file: Path
    dtype: str
    shape: tuple[int, ...]
    offset: int
    nbytes: int
    transposed: bool = False


def read_header(path: Path) -> dict[str, Entry]:
    """The tensors of a safetensors file by name, every claim checked against the file's size.

    Raises:
        ModelError: unreadable, truncated or not a safetensors file.
    """
    header, start, size = _header(path)
    entries = {
        name: _entry(path, name, value, start, size)
        for name, value in header.items()
        if name != "__metadata__"
    }
    end = 0
    for name, entry in sorted(entries.items(), key=lambda item: item[1].offset):
        if entry.nbytes and entry.offset < end:
            raise _broken(path, f"{name} overlaps another tensor")
        end = max(end, entry.offset + entry.nbytes)
    return entries


def read_metadata(path: Path) -> dict[str, str]:
    """Text that a safetensors file carries besides its tensors.

    Raises:
        ModelError: as `read_header`, or it is no text by name.
    """
    found = _header(path)[0].get("__metadata__", {})
    items = cast("dict[str, object]", found).items() if isinstance(found, dict) else [("", None)]
    texts = {name: value for name, value in items if isinstance(value, str)}
    if len(texts) != len(items):
        raise _broken(path, "its __metadata__ is not text by name")
    return texts


def check_floating(entries: Mapping[str, Entry]) -> None:
    """Refuse tensors that `read_into` cannot read, before any work.

    Raises:
        ModelError: one is not of floating point.
    """
    for entry in entries.values():
        if entry.dtype not in DTYPES:
            raise ModelError(
                f"{entry.file} holds {entry.dtype} tensors; quantised checkpoints are not "
                "supported.",
                remedy="Give weights in fp32, fp16, bf16 or fp8.",
            )


def read_number(entry: Entry) -> float:
    """The one number of a tensor of one element; whole numbers too (trainers store alpha so).

    Raises:
        ModelError: it is of another type, has more elements, or the file changed meanwhile.
    """
    import torch

    if math.prod(entry.shape) != 1:
        raise _broken(entry.file, f"a tensor of shape {entry.shape} should be one number")
    if entry.dtype in _WHOLE and entry.nbytes == _WHOLE[entry.dtype]:
        with open_regular(entry.file) as raw:
            raw.seek(entry.offset)
            return float(int.from_bytes(raw.read(entry.nbytes), "little", signed=True))
    number = torch.empty(entry.shape, dtype=torch.float32)
    read_into(entry, number)
    return float(number)


def _header(path: Path) -> tuple[dict[str, object], int, int]:
    """(table, where the data starts, size of the file)."""
    try:
        with open_regular(path) as file:
            size = os.fstat(file.fileno()).st_size
            length = int.from_bytes(file.read(8), "little")
            if size < 8 or length > min(size - 8, _MAX_HEADER):
                raise _broken(path, f"its header of {length} bytes does not fit {size} bytes")
            header = parse_object(file.read(length))
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error.strerror}.") from error
    except ForeignError as error:
        raise _broken(path, f"its header is not what it must be, {error}") from error
    return header, 8 + length, size


def read_into(entry: Entry, target: torch.Tensor) -> None:
    """Fill `target` (contiguous, of `entry`'s shape, any floating dtype) from the file.

    Raises:
        ModelError: the tensor is not of floating point, or the file changed meanwhile.
    """
    import torch

    check_floating({"": entry})
    stored: torch.dtype = getattr(torch, DTYPES[entry.dtype][0])
    if entry.transposed:
        turned = replace(entry, shape=entry.shape[::-1], transposed=False)
        matrix = torch.empty(turned.shape, dtype=stored)
        read_into(turned, matrix)
        target.copy_(matrix.T)
        return
    flat = target.detach().view(-1)
    with open_regular(entry.file) as raw:
        raw.seek(entry.offset)
        if stored == target.dtype:
            _fill(raw, flat, entry)
            return
        buffer = torch.empty(min(_CHUNK, flat.numel()), dtype=stored)
        for begin in range(0, flat.numel(), _CHUNK):
            piece = flat[begin : begin + _CHUNK]
            part = buffer[: piece.numel()]
            _fill(raw, part, entry)
            piece.copy_(part)


def _fill(raw: BufferedReader, tensor: torch.Tensor, entry: Entry) -> None:
    import torch

    if not tensor.numel():
        return
    data: Any = tensor.view(torch.uint8).numpy()
    view = memoryview(data)
    done = 0
    while done < len(view):
        got = raw.readinto(view[done:])
        if not got:
            raise _broken(entry.file, "it ended while it was being read")
        done += got


def _entry(path: Path, name: str, value: object, start: int, size: int) -> Entry:
    fields = cast("dict[str, Any]", value) if isinstance(value, dict) else {}
    dtype: object = fields.get("dtype")
    shape, offsets = _sizes(fields.get("shape")), _sizes(fields.get("data_offsets"))
    if not isinstance(dtype, str) or shape is None or offsets is None or len(offsets) != 2:
        raise _broken(path, f"the entry of {name} is malformed")
    first, last = offsets
    if first > last:
        raise _broken(path, f"the offsets of {name} are malformed")
    if start + last > size:
        raise _broken(path, f"{name} ends at byte {start + last} of a file of {size}")
    if dtype in DTYPES and math.prod(shape) * DTYPES[dtype][1] != last - first:
        raise _broken(path, f"the size of {name} does not match its shape")
    return Entry(path, dtype, shape, start + first, last - first)


def _sizes(value: object) -> tuple[int, ...] | None:
    """`value` as a tuple of non-negative integers, or None if it is not one."""
    items = cast("list[object]", value) if isinstance(value, list) else [None]
    sizes = tuple(item for item in items if isinstance(item, int) and item >= 0)
    return sizes if len(sizes) == len(items) else None


def _broken(path: Path, reason: str) -> ModelError:
    return ModelError(
        f"{path} is truncated or damaged: {reason}.",
        remedy="Download or copy the file again and compare its size or checksum with the origin.",
    )
