"""Image axes of what square brackets take: ``outputs[0]``, ``x[:, 77:]``, ``x[..., None]``.

Both spellings are one operation, ``getitem``: of a node with several outputs, or of a tensor.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

from torch.fx import Node

from todo_compile.passes.grid.axes import Axes, Dim, dim_size
from todo_compile.passes.grid.batches import of_items
from todo_compile.passes.grid.slicing import sliced
from todo_compile.passes.grid.state import GridState, Rule, Shape


def through_getitem(state: GridState, node: Node, shape: Shape) -> Axes | None:
    """One output of several, or part of a tensor."""
    source, index = node.args[0], node.args[1]
    if not isinstance(source, Node):
        return None
    if (parts := state.outputs.get(source)) is not None:
        if not isinstance(index, int) or not -len(parts) <= index < len(parts):
            return None
        return parts[index]
    axes = state.axes.get(source)
    return None if axes is None else _indexed(state, axes, index, shape)


def _indexed(state: GridState, axes: Axes, index: object, shape: Shape) -> Axes | None:
    """Axes of ``x[index]``: slices, numbers, None and an ellipsis; no tensors."""
    indices: list[Any] = list(index) if isinstance(index, tuple) else [index]
    if Ellipsis in indices:
        at = indices.index(Ellipsis)
        missing = len(axes) - sum(i is not None and i is not Ellipsis for i in indices)
        indices[at : at + 1] = [slice(None)] * missing
    result: list[Dim] = []
    kept = [item for item in indices if item is not None]
    cuts = {i: _taken(item, axes[i]) for i, item in enumerate(kept) if not _whole(item)}
    left = list(of_items(state, axes, cuts))
    for item in indices:
        if item is None:
            result.append(())
        elif isinstance(item, slice) and left:
            dim = left.pop(0)
            if len(result) >= len(shape):
                return None
            result.append(
                dim
                if _whole(item)
                else sliced(dim, state.size(item.start or 0), item.step or 1, shape[len(result)])
            )
        elif isinstance(item, int) and left:
            left.pop(0)
        else:
            return None
    return (*result, *left)


def _whole(item: object) -> bool:
    """Whether an index takes all of an axis in order."""
    return isinstance(item, slice) and (item.start, item.stop, item.step) in (
        (None, None, None),
        (0, None, None),
        (None, None, 1),
        (0, None, 1),
    )


def _taken(item: object, dim: Dim) -> Hashable:
    """What an index takes of a dimension: (start, size, step), or the index itself."""
    if not isinstance(item, slice):
        return item if isinstance(item, (int, Node)) else None
    size = dim_size(dim)
    if isinstance(size, int) and all(isinstance(i, int | None) for i in (item.start, item.stop)):
        start, stop, step = item.indices(size)
        return start, max(stop - start, 0), step
    return None


RULES: Mapping[str, Rule] = {"getitem": through_getitem}
