"""Image axes of one tensor whose axes are turned, folded, repeated or reduced.

    transpose   [b][H·W][c]   →   [b][c][H·W]
    view        [b][H·W][c]   →   [b][H][W][c]
    mean(1)     [b][H·W][c]   →   [b][c]

An axis keeps its atoms, whatever its place; one that grows or is pooled is a new range.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch.fx import Node

from todo_compile.passes import ops
from todo_compile.passes.grid.axes import Axes, Dim, dim_size, fresh, fresh_dim, same
from todo_compile.passes.grid.reshapes import patched, reshape
from todo_compile.passes.grid.state import GridState, Rule, Shape, source_of


def through_permute(state: GridState, node: Node, shape: Shape) -> Axes | None:
    """permute, transpose, …: the axes in another order."""
    del shape
    axes = state.source(node)
    order = ops.permutation(node, len(axes)) if axes is not None else None
    return None if axes is None or order is None else tuple(axes[d] for d in order)


def through_view(state: GridState, node: Node, shape: Shape) -> Axes | None:
    """view, reshape, flatten: atoms are followed through the row-major order."""
    axes = state.source(node)
    if axes is None:
        return None
    result = reshape(axes, shape)
    if (sides := patched(result)) is not None:
        for atom, role in zip(sides, ("H", "W"), strict=True):
            if not atom.role:
                state.prove(atom, role)
    return result


def through_squeeze(state: GridState, node: Node, shape: Shape) -> Axes | None:
    """squeeze, unsqueeze: dimensions of size 1 come or go."""
    axes = state.source(node)
    if axes is None:
        return None
    kept = [dim for dim in axes if dim]
    result: list[Dim] = []
    for size in shape:
        if same(size, 1):
            result.append(())
        elif kept:
            result.append(kept.pop(0))
        else:
            return None
    return None if kept else tuple(result)


def through_expand(state: GridState, node: Node, shape: Shape) -> Axes | None:
    """expand, broadcast_to: axes of size 1 become new ranges, the others stay."""
    axes = state.source(node)
    if axes is None:
        return None
    padded = ((),) * (len(shape) - len(axes)) + axes
    return tuple(
        dim if dim or same(size, 1) else fresh_dim(size)
        for dim, size in zip(padded, shape, strict=True)
    )


def through_repeat(state: GridState, node: Node, shape: Shape) -> Axes | None:
    """repeat, repeat_interleave: what has its size still is what it was."""
    source, axes = source_of(node), state.source(node)
    before = state.context.shape(source) if source is not None else None
    if axes is None or before is None or len(before) != len(shape):
        return None
    if isinstance(ops.arg(node, 1, "repeats"), Node):
        return None  # as often as data says: the same size can hold other positions
    return tuple(
        dim if same(old, new) else fresh_dim(new)
        for dim, old, new in zip(axes, before, shape, strict=True)
    )


def through_flip(state: GridState, node: Node, shape: Shape) -> Axes | None:
    """flip: a mirrored picture is one, N - 1 - n = (H - 1 - h)·W + (W - 1 - w), on axes of its own.

    (A rolled one is none: a cell across the seam would join opposite edges.)
    """
    axes = state.source(node)
    if axes is None:
        return None
    turned = {ops.normal_dim(d, len(shape)) for d in ops.int_list(node, 1, "dims")}
    return tuple(_mirrored(dim) if i in turned else dim for i, dim in enumerate(axes))


def _mirrored(dim: Dim) -> Dim:
    if any(atom.segments for atom in dim):
        return fresh_dim(dim_size(dim))
    return tuple(fresh(atom.size, atom.role) for atom in dim)


def through_reduction(state: GridState, node: Node, shape: Shape) -> Axes | None:
    """mean, sum, any, …: the reduced axes are gone, or of size 1 (``keepdim``)."""
    axes, found = state.source(node), ops.arg(node, 1, "dim", "axis")
    if axes is None or found is None:
        return None
    dims = found if isinstance(found, (list, tuple)) else [found]
    gone = {ops.normal_dim(d, len(axes)) for d in dims if isinstance(d, int)}
    if len(shape) == len(axes):
        return tuple(() if i in gone else dim for i, dim in enumerate(axes))
    kept = tuple(dim for i, dim in enumerate(axes) if i not in gone)
    return kept if len(kept) == len(shape) else None


def through_pool(state: GridState, node: Node, shape: Shape) -> Axes | None:
    """pool_tokens: the pooled axis holds other tokens than before."""
    axes = state.source(node)
    if axes is None:
        return None
    axis = int(ops.arg(node, 1, "dim"))
    return tuple(
        fresh_dim(s) if i == axis else d for i, (d, s) in enumerate(zip(axes, shape, strict=True))
    )


RULES: Mapping[str, Rule] = {
    # The names that `ops.permutation` knows.
    **dict.fromkeys(
        ("permute", "transpose", "t", "T", "mT", "adjoint", "movedim", "moveaxis"), through_permute
    ),
    "view": through_view,
    **dict.fromkeys(("squeeze", "unsqueeze"), through_squeeze),
    **dict.fromkeys(("expand", "expand_as", "broadcast_to"), through_expand),
    **dict.fromkeys(("repeat", "repeat_interleave"), through_repeat),
    **dict.fromkeys(("mean", "sum", "amax", "amin", "any", "all"), through_reduction),
    "flip": through_flip,
    "pool_tokens": through_pool,
}
