"""Where image axes come from: convolution, pooling and resize tell rows from columns.

    conv2d    [?][?][?][?]   →   [B][c][H][W]

Its source is named too.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from torch.fx import Node

from todo_compile.passes import ops
from todo_compile.passes.grid.axes import Axes, Dim, Size, fresh, fresh_dim, same
from todo_compile.passes.grid.state import GridState, Rule, Shape


def through_spatial(state: GridState, node: Node, shape: Shape) -> Axes | None:
    """conv2d, pooling, resize: rows and columns, the old ones where the side is kept."""
    source = ops.tensor_arg(node, 0, "input", "self")
    if len(shape) != 4 or source is None:
        return None
    before, before_shape = state.axes.get(source), state.context.shape(source)
    if before is None or before_shape is None or len(before) != 4:
        return (*map(fresh_dim, shape[:2]), (fresh(shape[2], "H"),), (fresh(shape[3], "W"),))
    # That it is convolved is what tells the rows and columns of the source.
    before = (
        _named(before[0], "B", before_shape[0]) if before[0] else (),
        before[1],
        _named(before[2], "H", before_shape[2]),
        _named(before[3], "W", before_shape[3]),
    )
    state.axes[source] = before
    result: list[Dim] = [before[0], fresh_dim(shape[1])]
    for axis, role in ((2, "H"), (3, "W")):
        # A convolution that keeps the side keeps the rows: same positions, new channels.
        kept = ops.op(node) in ("conv2d", "convolution") and same(before_shape[axis], shape[axis])
        known = before[axis]
        own = [a.role for a in known] == [role]
        result.append(known if kept and own else (fresh(shape[axis], role),))
    return tuple(result)


def _named(dim: Dim, role: str, size: Size) -> Dim:
    """A dimension of unknown meaning becomes rows or columns, still the same range."""
    if not dim:
        return (fresh(size, role),)
    if len(dim) == 1 and not dim[0].role and not dim[0].segments:
        # Named at last, it must not become the nameless range that it was split off again.
        return (replace(dim[0], role=role, split_of=None),)
    return dim


RULES: Mapping[str, Rule] = dict.fromkeys(
    [
        "conv2d",
        "convolution",
        "conv_transpose2d",
        "avg_pool2d",
        "max_pool2d",
        "max_pool2d_with_indices",
        "adaptive_avg_pool2d",
        "_adaptive_avg_pool2d",
        "adaptive_max_pool2d",
        "interpolate",
        "upsample",
        "upsample_nearest",
        "upsample_nearest2d",
        "upsample_bilinear2d",
        "upsample_bicubic2d",
        "_upsample_nearest_exact2d",
        "_upsample_bilinear2d_aa",
        "pixel_shuffle",
        "pixel_unshuffle",
        "grid_sample",
    ],
    through_spatial,
)
