"""The effect of writing without memory: what `x[…] = y` and `x.copy_(y)` are in a functional graph.

copy(x, y)                              y, in the shape of x
slice_scatter(x, y, 3, 0, None, 2)      axes (0, 1, 2) that both have alike
slice_scatter(x, y, 1, 77)              axis 1 of x too, if y has what x has from 77 on
select_scatter(x, y, 2, 0)              axes (0, 1) that both have alike

Written in place, the same is in `grid.writes`.
"""

from __future__ import annotations

from typing import Any

from torch.fx import Node

from todo_compile.passes import ops
from todo_compile.passes.families import NEW
from todo_compile.passes.graph import GraphContext
from todo_compile.passes.grid.axes import same
from todo_compile.passes.operators.effect import Cut, Effect, Shape, Source


def copied_into(context: GraphContext, node: Node, shape: Shape) -> Effect | None:
    """copy: the second operand's values."""
    value = ops.tensor_arg(node, 1, "src")
    own = context.shape(value) if value is not None else None
    if value is None or own is None or len(own) != len(shape):
        return None
    axes = (i if same(own[i], size) else None for i, size in enumerate(shape))
    return Effect((Source(value, tuple(axes)),))


def scattered(context: GraphContext, node: Node, shape: Shape) -> Effect | None:
    """slice_scatter, select_scatter: part of one axis is replaced.

    Along the others every position is made of the same positions of both, and a copy has the names
    that the two agree on. New memory has none: those of the value count.
    """
    base, value = ops.tensor_arg(node, 0, "self"), ops.tensor_arg(node, 1, "src")
    own = context.shape(value) if value is not None else None
    if base is None or value is None or own is None:
        return None
    axis = ops.normal_dim(ops.arg(node, 2, "dim", default=0), len(shape))
    selects = len(own) < len(shape)
    if not selects and same(own[axis], shape[axis]):
        return Effect((Source(value, tuple(range(len(shape)))),))
    axes: list[int | None] = [i - 1 if selects and i > axis else i for i in range(len(shape))]
    start: Any = None if selects else ops.arg(node, 3, "start", default=0) or 0
    step: Any = 1 if selects else ops.arg(node, 5, "step", default=1)
    if selects or ops.op(base) in NEW:
        axes[axis] = None
    source = Source(value, tuple(axes))
    if ops.op(base) in NEW:
        return Effect((source,))
    size = 1 if selects else own[axis]
    cut = Cut(start if isinstance(start, int) else None, size, step, None)
    return Effect((Source(base, tuple(range(len(shape)))), source), "replaces", cuts={axis: cut})
