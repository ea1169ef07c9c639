"""The effect of taking a part of a tensor: slice, select, square brackets, chunk, split, unbind.

slice(1, 3, 23)   axis 1 from 3 to 23
x[:, None, 0]     axes (0, None) of x, one position of its axis 1
chunk(3, 2)       three effects, one for each output
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

import torch
from torch.fx import Node

from todo_compile.passes import ops
from todo_compile.passes.graph import GraphContext
from todo_compile.passes.grid.axes import Size, plain_size, same
from todo_compile.passes.operators.effect import Cut, Effect, Shape, Source

_SPLITS = ("chunk", "split", "tensor_split")


def sliced(context: GraphContext, node: Node, source: Node, before: Shape, shape: Shape) -> Effect:
    """slice, narrow: one axis in part."""
    axis = ops.normal_dim(ops.arg(node, 1, "dim", default=0), len(shape))
    start = ops.arg(node, 2, "start", default=0) or 0
    step = ops.arg(node, 4, "step", default=1) if ops.op(node) == "slice" else 1
    cut = Cut(_size(context, start), shape[axis], step, (start, shape[axis], step))
    whole = step == 1 and same(before[axis], shape[axis])
    closed = {axis: f"{node.name} cuts the token axis"}
    return _taken(source, range(len(shape)), {} if whole else {axis: cut}, "slice", closed)


def selected(
    context: GraphContext, node: Node, source: Node, before: Shape, shape: Shape
) -> Effect | None:
    """select: one position of an axis, which is gone then."""
    del context, shape
    dim = ops.arg(node, 1, "dim", "axis")
    if not isinstance(dim, int):
        return None
    return _without(source, before, ops.normal_dim(dim, len(before)), ops.arg(node, 2, "index"))


def indexed(
    context: GraphContext, node: Node, source: Node, before: Shape, shape: Shape
) -> Effect | None:
    """``x[index]``: slices, numbers, None and an ellipsis; no tensors."""
    index: Any = node.args[1]
    indices: list[Any] = list(index) if isinstance(index, tuple) else [index]
    if Ellipsis in indices:
        at = indices.index(Ellipsis)
        missing = len(before) - sum(i is not None and i is not Ellipsis for i in indices)
        indices[at : at + 1] = [slice(None)] * missing
    axes: list[int | None] = []
    cuts: dict[int, Cut] = {}
    axis = 0
    for item in indices:
        if item is None:
            axes.append(None)
            continue
        if axis >= len(before):
            return None
        if isinstance(item, slice) and len(axes) < len(shape):
            if not _is_whole(item):
                size = shape[len(axes)]
                start, key = item.start or 0, _key(item, before[axis])
                cuts[axis] = Cut(_size(context, start), size, item.step or 1, key)
            axes.append(axis)
        elif isinstance(item, int):
            cuts[axis] = Cut(None, 1, 1, item)
        else:
            return None
        axis += 1
    return _taken(source, (*axes, *range(axis, len(before))), cuts)


def pieces(node: Node, source: Node, before: Shape, values: Sequence[Any]) -> list[Effect] | None:
    """chunk, split, unbind: the effect of each output, for the getitem that follows."""
    name = ops.op(node)
    if name == "unbind":
        axis = ops.normal_dim(ops.arg(node, 1, "dim", default=0), len(before))
        return [_without(source, before, axis, i) for i in range(len(values))]
    if name not in _SPLITS:
        return None
    axis = ops.normal_dim(ops.arg(node, 2, "dim", default=0), len(before))
    found: list[Effect] = []
    start: Size = 0
    for piece in values:
        assert isinstance(piece, torch.Tensor)
        size: Size = plain_size(piece.shape[axis])
        cut = Cut(start, size, 1, (start, size, 1))
        found.append(_taken(source, range(len(before)), {axis: cut}))
        start = start + size
    return found


def is_apart(node: Node) -> bool:
    """Whether `node` takes a tensor apart, all of which is read."""
    return ops.op(node) in (*_SPLITS, "unbind")


def _taken(
    source: Node,
    axes: Sequence[int | None],
    cuts: dict[int, Cut],
    rule: str = "",
    closed: dict[int, str] | None = None,
) -> Effect:
    return Effect((Source(source, tuple(axes)),), "takes", rule, closed=closed or {}, cuts=cuts)


def _without(source: Node, before: Shape, axis: int, index: Hashable) -> Effect:
    axes = [i for i in range(len(before)) if i != axis]
    return _taken(source, axes, {axis: Cut(None, 1, 1, index)})


def _size(context: GraphContext, given: object) -> Size | None:
    """A size argument as a number or expression: the graph may compute it; None if unknown."""
    value: Any = context.value(given) if isinstance(given, Node) else given
    return plain_size(value) if isinstance(value, int | torch.SymInt) else None


def _is_whole(item: slice) -> bool:
    """Whether a slice takes all of an axis in order."""
    return item.start in (None, 0) and item.stop is None and item.step in (None, 1)


def _key(item: slice, size: Size) -> Hashable:
    if isinstance(size, int) and all(isinstance(i, int | None) for i in (item.start, item.stop)):
        start, stop, step = item.indices(size)
        return start, max(stop - start, 0), step
    return None
