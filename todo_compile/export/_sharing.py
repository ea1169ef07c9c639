"""Two ONNX models with the same weights, on the disk once.

A rewritten model and the dense one differ in a few nodes and in no weight. ONNX lets any model of
a folder refer to a weights' file there, so the second is made to refer to the first one's.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_Place = tuple[str, int, int]
"""File name, offset, length in bytes."""

_PIECE = 2**24
_ALIGNMENT = 4096


def share_weights(model: Path, other: Path) -> bool:
    """Make `model` refer to the weights of `other` that are equal bit for bit.

    Args:
        model: an ONNX file whose big weights lie beside it in a file of their own; rewritten in
            place, and what is left of its weights' file too (removed if nothing is left).
        other: a model that will lie in the same folder; weights' file beside it; only read.

    Returns:
        Whether anything is shared.

    Raises:
        OSError: a file cannot be read or written.
    """
    import onnx

    proto = onnx.load(str(model), load_external_data=False)
    known = {
        _identity(tensor, place, other.parent): place
        for tensor, place in _external(onnx.load(str(other), load_external_data=False))
    }
    own = [(t, place, _identity(t, place, model.parent)) for t, place in _external(proto)]
    shared = [(tensor, known[key]) for tensor, _, key in own if key in known]
    if not shared:
        return False
    kept = [(tensor, place) for tensor, place, key in own if key not in known]
    data = model.parent / own[0][1][0]
    rest = data.with_name(f"{data.name}.rest")
    if kept:
        _copy(kept, data, rest)
    for tensor, place in shared:
        _refer(tensor, place)
    model.write_bytes(proto.SerializeToString())
    data.unlink()
    if kept:
        rest.rename(data)
    return True


def _external(proto: Any) -> Iterator[tuple[Any, _Place]]:
    """Initializers that lie in a file, and where."""
    for tensor in proto.graph.initializer:
        where = {entry.key: entry.value for entry in tensor.external_data}
        if where:
            yield tensor, (where["location"], int(where["offset"]), int(where["length"]))


def _identity(tensor: Any, place: _Place, folder: Path) -> tuple[int, tuple[int, ...], str]:
    """What makes two weights the same: type, shape, bytes."""
    name, offset, length = place
    digest = hashlib.sha256()
    with (folder / name).open("rb") as file:
        for piece in _pieces(file, offset, length):
            digest.update(piece)
    return tensor.data_type, tuple(tensor.dims), digest.hexdigest()


def _pieces(file: Any, offset: int, length: int) -> Iterator[bytes]:
    file.seek(offset)
    while length > 0:
        piece = file.read(min(_PIECE, length))
        if not piece:
            raise EOFError(f"{file.name} is too short")
        length -= len(piece)
        yield piece


def _copy(kept: list[tuple[Any, _Place]], source: Path, goal: Path) -> None:
    """Write the weights in `kept` to `goal`, and make them refer to it under the old name."""
    with source.open("rb") as reader, goal.open("wb") as writer:
        for tensor, (name, offset, length) in kept:
            start = -(-writer.tell() // _ALIGNMENT) * _ALIGNMENT
            writer.seek(start)
            for piece in _pieces(reader, offset, length):
                writer.write(piece)
            _refer(tensor, (name, start, length))


def _refer(tensor: Any, place: _Place) -> None:
    del tensor.external_data[:]
    for key, value in zip(("location", "offset", "length"), place, strict=True):
        entry = tensor.external_data.add()
        entry.key, entry.value = key, str(value)
