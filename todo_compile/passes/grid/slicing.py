"""Image axes of parts of a tensor: slice, select, chunk, split, unbind.

    slice(1, 3, 23)   [b][text 3 | H·W 20][c]   →   [b][H·W][c]
    slice(2, 0, 8, 2) [b][c][H 8][W]            →   [b][c][every 2nd H][W]
    chunk(3, 2)       [b][H·W][3 c]             →   three times [b][H·W][c]

What is written with square brackets is in `indexing`.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch.fx import Node

from todo_compile.passes import ops
from todo_compile.passes.grid.axes import (
    Atom,
    Axes,
    Dim,
    Size,
    concatenated,
    dim_size,
    fresh,
    fresh_dim,
    plain_size,
    same,
)
from todo_compile.passes.grid.batches import of_items
from todo_compile.passes.grid.state import GridState, Rule, Shape


def through_slice(state: GridState, node: Node, shape: Shape) -> Axes | None:
    """slice, narrow: one axis in part."""
    axes = state.source(node)
    if axes is None:
        return None
    axis = ops.normal_dim(ops.arg(node, 1, "dim", default=0), len(shape))
    start = ops.arg(node, 2, "start", default=0) or 0
    step = ops.arg(node, 4, "step", default=1) if ops.op(node) == "slice" else 1
    part = sliced(axes[axis], state.size(start), step, shape[axis])
    taken = (start, shape[axis], step)
    result = list(axes if part == axes[axis] else of_items(state, axes, {axis: taken}))
    result[axis] = part
    return tuple(result)


def through_select(state: GridState, node: Node, shape: Shape) -> Axes | None:
    """select: one position of an axis, which is gone then."""
    axes, dim = state.source(node), ops.arg(node, 1, "dim", "axis")
    if axes is None or not isinstance(dim, int):
        return None
    axis = ops.normal_dim(dim, len(axes))
    left = _without(of_items(state, axes, {axis: ops.arg(node, 2, "index")}), axis)
    return left if len(left) == len(shape) else None


def outputs(state: GridState, node: Node) -> list[Axes] | None:
    """Axes of each output of chunk, split or unbind, for the getitem that follows."""
    axes, value = state.source(node), state.context.value(node)
    if axes is None or not isinstance(value, (list, tuple)):
        return None
    name = ops.op(node)
    if name in ops.NORMS or name == "dropout":  # ATen's also return statistics, or the mask
        return [axes]
    if name == "unbind":
        axis = ops.normal_dim(ops.arg(node, 1, "dim", default=0), len(axes))
        return [_without(of_items(state, axes, {axis: i}), axis) for i in range(len(value))]
    if name in ("chunk", "split", "tensor_split"):
        axis = ops.normal_dim(ops.arg(node, 2, "dim", default=0), len(axes))
        parts: list[Axes] = []
        start: Size = 0
        for piece in value:
            size: Size = plain_size(piece.shape[axis])
            parts.append(
                tuple(
                    sliced(d, start, 1, size) if i == axis else d
                    for i, d in enumerate(of_items(state, axes, {axis: (start, size, 1)}))
                )
            )
            start = start + size
        return parts
    return None


def sliced(dim: Dim, start: Size | None, step: object, size: Size) -> Dim:
    """Part of a dimension: whole, a segment of a concatenation, or every step-th position.

    Args:
        start: first position, from the end if negative; None if that is not known.
    """
    if step == 1 and same(dim_size(dim), size):
        return dim
    if len(dim) != 1:
        return fresh_dim(size)
    atom = dim[0]
    if atom.segments and step == 1 and start is not None:
        from_end = getattr(start, "is_negative", start < 0 if isinstance(start, int) else False)
        return _segment(atom, start + atom.size if from_end else start, size)
    if not atom.segments and step != 1 and atom.role and not same(size, 1):
        return (fresh(size, atom.role, atom.origin or atom.ident),)
    return fresh_dim(size)


def _segment(atom: Atom, start: Size, size: Size) -> Dim:
    """The segments of a concatenated range that cover [start, start + size), if they do."""
    position: Size = 0
    taken: list[Dim] = []
    covered: Size = 0
    for segment in atom.segments:
        length = dim_size(segment)
        if taken or same(position, start):
            taken.append(segment)
            covered = covered + length
            if same(covered, size):
                return taken[0] if len(taken) == 1 else concatenated(taken)
        position = position + length
    return fresh_dim(size)


def _without(axes: Axes, axis: int) -> Axes:
    return axes[:axis] + axes[axis + 1 :]


RULES: Mapping[str, Rule] = {
    "slice": through_slice,
    "narrow": through_slice,
    "select": through_select,
}
