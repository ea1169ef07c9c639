"""Values of tensors that are made of constants, and of tensors whose parts are moved about."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch.fx import Node

from todo_compile.passes import ops
from todo_compile.passes.grid.reshapes import kept_axis
from todo_compile.passes.values.interval import Question, Range, Rule, Values, number

_COUNTS = (torch.int32, torch.int64, torch.float32, torch.float64)
"""Types that hold whole numbers up to `_EXACT` as they are."""
_EXACT = 2**24


def _full(position: int, *names: str) -> Rule:
    def rule(q: Question) -> Values | None:
        value = ops.arg(q.node, position, *names)
        return q.of(value, Range(None)) if isinstance(value, (bool, int, float)) else None

    return rule


def _arange(q: Question) -> Values | None:
    """start, start + step, …: numbers that are known place by place."""
    bounds: list[Any] = [a for a in q.node.args if not isinstance(a, torch.dtype)]
    (length,) = q.shape
    named = {"start", "end", "step"} & q.node.kwargs.keys()
    if named or not bounds or not all(isinstance(n, int) for n in (*bounds, length)) or not length:
        return None
    start = bounds[0] if len(bounds) > 1 else 0
    step = bounds[2] if len(bounds) > 2 else 1
    places = (0, length - 1) if q.where.axis is None else (q.where.start, q.where.stop - 1)
    ends = [float(start + step * place) for place in places]
    if q.context.dtype(q.node) not in _COUNTS or max(map(abs, ends)) >= _EXACT:
        return None
    return Values(min(ends), max(ends), ends[0] == ends[1])


def _total(q: Question) -> Values | None:
    """sum in whole numbers: as many as there are positions on the axes that are gone.

    What has fractions is made whole first, as ``dtype=torch.int`` says, so nothing is rounded.
    """
    source, dims = q.source, ops.arg(q.node, 1, "dim", "axis")
    before = None if source is None else q.context.shape(source)
    made = q.context.dtype(q.node)
    if source is None or before is None or made is None or made not in _COUNTS:
        return None
    if (dtype := q.context.dtype(source)) is None or dtype.is_complex:
        return None
    if dtype.is_floating_point and made.is_floating_point:
        return None  # their sums are rounded
    gone = (
        range(len(before)) if dims is None else dims if isinstance(dims, list | tuple) else [dims]
    )
    count: Any = math.prod(before[ops.normal_dim(d, len(before))] for d in gone)
    found = q.whole(source)
    if dtype.is_floating_point:
        if not max(abs(found.low), abs(found.high)) < _EXACT:
            return None  # they may not fit into whole numbers
        found = Values(float(math.floor(found.low)), float(math.ceil(found.high)))
    if not isinstance(count, int):
        return Values(0.0, math.inf) if found.low >= 0 else None
    return Values(count * found.low, count * found.high) if count else number(0.0)


def _filled(value: float) -> Rule:
    return lambda _: number(value)


def _view(q: Question) -> Values | None:
    source = q.source
    before = q.context.shape(source) if source is not None else None
    if source is None or before is None or q.context.dtype(source) is not q.context.dtype(q.node):
        return None
    axis = q.where.axis
    return q.on_axis(source, None if axis is None else kept_axis(q.shape, before, axis))


def _permute(q: Question) -> Values | None:
    source, order = q.source, ops.permutation(q.node, len(q.shape))
    if source is None or order is None:
        return None
    return q.on_axis(source, None if q.where.axis is None else order[q.where.axis])


def _expand(q: Question) -> Values | None:
    source = q.source
    return None if source is None else q.aligned(source)


def _slice(q: Question) -> Values | None:
    source, axis = q.source, q.where.axis
    if source is None:
        return None
    cut = ops.normal_dim(ops.arg(q.node, 1, "dim", default=0), len(q.shape))
    start = ops.arg(q.node, 2, "start", default=0) or 0
    step = ops.arg(q.node, 4, "step", default=1) if ops.op(q.node) == "slice" else 1
    if cut != axis:
        return q.on_axis(source, axis)
    if step != 1 or not isinstance(start, int) or start < 0:
        return q.whole(source)
    return q.on_axis(source, axis, start)


def _select(q: Question) -> Values | None:
    source, dim = q.source, ops.arg(q.node, 1, "dim", "axis")
    if source is None or not isinstance(dim, int):
        return None
    gone, axis = ops.normal_dim(dim, len(q.shape) + 1), q.where.axis
    return q.on_axis(source, None if axis is None else axis + (axis >= gone))


def _getitem(q: Question) -> Values | None:
    source, index = q.node.args[0], q.node.args[1]
    if not isinstance(source, Node) or (before := q.context.shape(source)) is None:
        return None
    items: list[Any] = list(index) if isinstance(index, (list, tuple)) else [index]
    if any(isinstance(item, (Node, list, torch.Tensor)) for item in items):
        return q.whole(source)
    if Ellipsis in items:
        at = items.index(Ellipsis)
        missing = len(before) - sum(i is not None and i is not Ellipsis for i in items)
        items[at : at + 1] = [slice(None)] * missing
    inner = outer = 0
    for item in items:
        if item is None:
            if outer == q.where.axis:
                return q.whole(source)
            outer += 1
            continue
        if isinstance(item, slice):
            if outer == q.where.axis:
                plain = item.step in (None, 1) and isinstance(item.start or 0, int)
                start = item.start or 0
                if not plain or start < 0:
                    return q.whole(source)
                return q.on_axis(source, inner, start)
            outer += 1
        inner += 1
    axis = q.where.axis
    return q.on_axis(source, None if axis is None else axis - outer + inner)


def _cat(q: Question) -> Values | None:
    parts, axis = ops.operands(q.node), q.where.axis
    joined = ops.normal_dim(ops.arg(q.node, 1, "dim", "axis", default=0), len(q.shape))
    found: list[Values] = []
    position = 0
    for part in parts:
        shape = q.context.shape(part)
        if shape is None:
            return None
        if joined != axis or axis is None:
            found.append(q.on_axis(part, axis))  # a row lies in one part
            continue
        if not isinstance(shape[axis], int):
            return None
        start, stop = max(q.where.start - position, 0), min(q.where.stop - position, shape[axis])
        if start < stop:
            found.append(q.of(part, Range(axis, start, stop)))
        position += shape[axis]
    together = _hull(found)
    if together is None or joined == axis:
        return together
    return replace(together, uniform=all(part.uniform for part in found))


def _pad(q: Question) -> Values | None:
    source, pad = q.source, ops.arg(q.node, 1, "pad")
    mode, value = "constant", ops.arg(q.node, 2, "value")
    if ops.op(q.node) == "pad":
        mode, value = ops.arg(q.node, 2, "mode", default="constant"), ops.arg(q.node, 3, "value")
    ints = isinstance(pad, (list, tuple)) and all(isinstance(p, int) and p >= 0 for p in pad)
    if source is None or mode != "constant" or not ints:
        return None
    filling, axis = number(float(value or 0)), q.where.axis
    before = q.context.shape(source) or ()
    padded = {len(before) - 1 - i: pad[2 * i : 2 * i + 2] for i in range(len(pad) // 2)}
    if axis is None or any(any(amount) for other, amount in padded.items() if other != axis):
        inner = q.whole(source).hull(filling)
        return replace(inner, uniform=False)
    left = padded.get(axis, (0, 0))[0]
    size = before[axis]
    start, stop = q.where.start - left, q.where.stop - left
    if not isinstance(size, int):
        # What is in front of an axis of unknown length is known all the same.
        return filling if stop <= 0 else None
    found = [filling] if start < 0 or stop > size else []
    if max(start, 0) < min(stop, size):
        found.append(q.of(source, Range(axis, max(start, 0), min(stop, size))))
    return _hull(found)


def _repeat(q: Question) -> Values | None:
    source = q.source
    return None if source is None else q.whole(source)


def _hull(found: Sequence[Values]) -> Values | None:
    """What can be in any of several parts that lie end to end."""
    if not found:
        return None
    result = found[0]
    for other in found[1:]:
        result = result.hull(other)
    # Parts that are uniform by themselves may differ from each other.
    return result if len(found) == 1 else replace(result, uniform=result.is_one_number)


RULES: Mapping[str, Rule] = {
    "full": _full(1, "fill_value"),
    "full_like": _full(1, "fill_value"),
    "new_full": _full(2, "fill_value"),
    "scalar_tensor": _full(0, "s"),
    "arange": _arange,
    "sum": _total,
    **dict.fromkeys(("zeros", "zeros_like", "new_zeros"), _filled(0.0)),
    **dict.fromkeys(("ones", "ones_like", "new_ones"), _filled(1.0)),
    **dict.fromkeys(("view", "squeeze", "unsqueeze"), _view),
    **dict.fromkeys(
        ("permute", "transpose", "t", "T", "mT", "adjoint", "movedim", "moveaxis"), _permute
    ),
    **dict.fromkeys(("expand", "expand_as", "broadcast_to"), _expand),
    **dict.fromkeys(("slice", "narrow"), _slice),
    "select": _select,
    "getitem": _getitem,
    "cat": _cat,
    **dict.fromkeys(("pad", "constant_pad_nd"), _pad),
    **dict.fromkeys(("repeat", "tile", "repeat_interleave", "roll", "flip"), _repeat),
}
