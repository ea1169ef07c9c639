"""Image axes where tensors meet: position by position, in a product, or end to end.

    add     [b][H·W][c] + [b][?][c]        →   [b][H·W][c]      the two token axes are one range
    bmm     [b][H·W][d] · [b][d][H'·W']    →   [b][H·W][H'·W']
    cat     [b][text][c], [b][H·W][c]      →   [b][text | H·W][c]

A projection is a product whose other operand is a weight: all axes but the last stay.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch.fx import Node

from todo_compile.passes import ops
from todo_compile.passes.find.products import Label, product
from todo_compile.passes.grid.axes import Axes, Dim, concatenated, fresh, fresh_dim, same
from todo_compile.passes.grid.state import GridState, Rule, Shape, source_of

_POINTWISE = ops.IDENTITY | ops.UNARY | ops.BINARY | ops.NORMS | {"softmax", "cumsum"}


def through_pointwise(state: GridState, node: Node, shape: Shape) -> Axes:
    """add, gelu, layer_norm, …: operands that broadcast are aligned from the last axis."""
    result: list[Dim | None] = [None] * len(shape)
    norm = ops.op(node) in ops.NORMS
    for operand in ops.operands(node)[: 1 if norm else None]:
        axes, known = state.axes.get(operand), state.context.shape(operand)
        if axes is None or known is None:
            continue
        for back in range(1, min(len(axes), len(shape)) + 1):
            if not same(known[-back], shape[-back]) or not axes[-back]:
                continue
            current = result[-back]
            result[-back] = (
                axes[-back] if current is None else state.unifier.unify(current, axes[-back])
            )
    return tuple(
        found if found is not None else fresh_dim(size)
        for found, size in zip(result, shape, strict=True)
    )


def through_projection(state: GridState, node: Node, shape: Shape) -> Axes | None:
    """linear, attention (first operand: the query): new channels, everything else stays."""
    axes = state.source(node)
    return None if axes is None else (*axes[:-1], fresh_dim(shape[-1]))


def through_addmm(state: GridState, node: Node, shape: Shape) -> Axes | None:
    """addmm: a linear whose bias comes first."""
    left = ops.tensor_arg(node, 1, "mat1")
    known = state.axes.get(left) if left is not None else None
    return None if known is None else (known[0], fresh_dim(shape[-1]))


def through_conv1d(state: GridState, node: Node, shape: Shape) -> Axes | None:
    """conv1d: on (B, C, N) with as many positions after it, tokens stay where they are."""
    source, axes = source_of(node), state.source(node)
    before = state.context.shape(source) if source is not None else None
    if axes is None or before is None or len(shape) != 3:  # it also takes (C, N)
        return None
    tokens = axes[2] if same(shape[2], before[2]) else fresh_dim(shape[2])
    return axes[0], fresh_dim(shape[1]), tokens


def through_product(state: GridState, node: Node, shape: Shape) -> Axes | None:
    """matmul, bmm, einsum: an axis comes from the operands that carry its label."""
    pair = product(state.context, node)
    if pair is None:
        return None
    known: dict[Label, Dim] = {}
    for operand, labels in ((pair.left, pair.left_labels), (pair.right, pair.right_labels)):
        axes = state.axes.get(operand)
        for label, dim in zip(labels, axes or (), strict=False):
            if dim:
                known[label] = state.unifier.unify(known[label], dim) if label in known else dim
    return tuple(
        known.get(label) or fresh_dim(size)
        for label, size in zip(pair.out_labels, shape, strict=True)
    )


def through_cat(state: GridState, node: Node, shape: Shape) -> Axes | None:
    """cat: segments along the joined axis, one range along every other."""
    parts = [state.axes.get(p) for p in ops.operands(node)]
    axis = ops.normal_dim(ops.arg(node, 1, "dim", "axis", default=0), len(shape))
    known = [p for p in parts if p is not None and len(p) == len(shape)]
    if len(known) != len(parts) or not known:
        return None
    result: list[Dim] = []
    for position in range(len(shape)):
        dims = [p[position] for p in known]
        if position == axis:
            # A part of size 1 has no atoms; as a segment it needs one to be counted.
            result.append(concatenated([d or (fresh(1),) for d in dims]))
            continue
        merged = dims[0]
        for other in dims[1:]:
            merged = state.unifier.unify(merged, other)
        result.append(merged)
    return tuple(result)


def through_stack(state: GridState, node: Node, shape: Shape) -> Axes | None:
    """stack: a new axis, one range along every other. (Folded in later, it is no grid's part.)"""
    parts = [state.axes.get(p) for p in ops.operands(node)]
    known = [p for p in parts if p is not None and len(p) == len(shape) - 1]
    if len(known) != len(parts) or not known:
        return None
    axis = ops.normal_dim(ops.arg(node, 1, "dim", default=0), len(shape))
    result = list(known[0])
    for other in known[1:]:
        result = [state.unifier.unify(a, b) for a, b in zip(result, other, strict=True)]
    return (*result[:axis], fresh_dim(shape[axis]), *result[axis:])


RULES: Mapping[str, Rule] = {
    **dict.fromkeys(_POINTWISE, through_pointwise),
    **dict.fromkeys(("linear", "scaled_dot_product_attention"), through_projection),
    "addmm": through_addmm,
    "conv1d": through_conv1d,
    # The names that `products.product` knows.
    **dict.fromkeys(("matmul", "bmm", "baddbmm", "einsum"), through_product),
    "cat": through_cat,
    "stack": through_stack,
}
