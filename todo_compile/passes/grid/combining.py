"""Image axes where tensors meet: position by position, in a product, or end to end.

    add     [b][H·W][c] + [b][?][c]        →   [b][H·W][c]      the two token axes are one range
    bmm     [b][H·W][d] · [b][d][H'·W']    →   [b][H·W][H'·W']
    cat     [b][text][c], [b][H·W][c]      →   [b][text | H·W][c]

A projection is a product whose other operand is a weight: all axes but the last stay.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch.fx import Node

from todo_compile.passes import ops
from todo_compile.passes.find.products import Label, product
from todo_compile.passes.grid.axes import Axes, Dim, concatenated, fresh, fresh_dim, same
from todo_compile.passes.grid.state import GridState, Rule, Shape, source_of

_POINTWISE = ops.IDENTITY | ops.UNARY | ops.BINARY | ops.NORMS | {"softmax", "cumsum"}


def through_pointwise(state: GridState, node: Node, shape: Shape) -> Axes:
    """add, gelu, layer_norm, …: operands that broadcast are aligned from the last axis."""
    meeting: list[list[tuple[Node, Dim]]] = [[] for _ in shape]
    norm = ops.op(node) in ops.NORMS
    for operand in ops.operands(node)[: 1 if norm else None]:
        axes, known = state.axes.get(operand), state.context.shape(operand)
        if axes is None or known is None:
            continue
        for back in range(1, min(len(axes), len(shape)) + 1):
            if same(known[-back], shape[-back]):
                meeting[-back].append((operand, axes[-back]))
    return tuple(
        state.aligned(dims) or fresh_dim(size) for dims, size in zip(meeting, shape, strict=True)
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
    meeting: dict[Label, list[tuple[Node, Dim]]] = {}
    for operand, labels in ((pair.left, pair.left_labels), (pair.right, pair.right_labels)):
        axes = state.axes.get(operand)
        for label, dim in zip(labels, axes or (), strict=False):
            meeting.setdefault(label, []).append((operand, dim))
    known = {label: state.aligned(dims) for label, dims in meeting.items()}
    return tuple(
        known.get(label) or fresh_dim(size)
        for label, size in zip(pair.out_labels, shape, strict=True)
    )


def through_cat(state: GridState, node: Node, shape: Shape) -> Axes | None:
    """cat: segments along the joined axis, one range along every other."""
    operands = ops.operands(node)
    axis = ops.normal_dim(ops.arg(node, 1, "dim", "axis", default=0), len(shape))
    known = _axes_of(state, operands, len(shape))
    if known is None:
        return None
    result: list[Dim] = []
    for position in range(len(shape)):
        dims = [axes[position] for axes in known]
        if position == axis:
            # A part of size 1 has no atoms; as a segment it needs one to be counted.
            result.append(concatenated([d or (fresh(1),) for d in dims]))
            continue
        result.append(state.aligned(list(zip(operands, dims, strict=True))) or ())
    return tuple(result)


def through_stack(state: GridState, node: Node, shape: Shape) -> Axes | None:
    """stack: a new axis, one range along every other. (Folded in later, it is no grid's part.)"""
    operands = ops.operands(node)
    known = _axes_of(state, operands, len(shape) - 1)
    if known is None:
        return None
    axis = ops.normal_dim(ops.arg(node, 1, "dim", default=0), len(shape))
    result = [
        state.aligned(list(zip(operands, dims, strict=True))) or ()
        for dims in zip(*known, strict=True)
    ]
    return (*result[:axis], fresh_dim(shape[axis]), *result[axis:])


def _axes_of(state: GridState, operands: Sequence[Node], rank: int) -> list[Axes] | None:
    """Axes of operands that all have `rank` dimensions; None if one is not known or none is."""
    found = [state.axes.get(operand) for operand in operands]
    known = [axes for axes in found if axes is not None and len(axes) == rank]
    return known if known and len(known) == len(found) else None


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
