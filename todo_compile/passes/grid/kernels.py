"""What a convolution, pooling or resize does along one side: whether it minds neighbours.

kernel 3, stride 1, 8 → 8      proves the side, keeps its positions
kernel 1, stride 1, 8 → 8      proves nothing, keeps its positions
kernel 1, stride 2, 8 → 4      proves nothing, takes every 2nd position
kernel 8, stride 8, 8 → 1      proves nothing: any order of the positions would do
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch.fx import Node

from todo_compile.passes import ops
from todo_compile.passes.graph import GraphContext
from todo_compile.passes.grid.axes import Size, same


@dataclass(frozen=True, slots=True)
class Reach:
    """What one operation does along one side.

    Args:
        proves: what is next to what matters to it, so these are positions in space.
        keeps: position i of the result is position i of the source, with other channels.
        step: above 1, positions 0, step, 2·step, … of the source, each by itself; else 1.
    """

    proves: bool
    keeps: bool
    step: int


def reach(context: GraphContext, node: Node, axis: int, old: Size, new: Size) -> Reach:
    """What `node` does along `axis`, whose size is `old` before it and `new` after.

    Args:
        axis: rows (-2), columns (-1) or frames (-3); kernels, strides and windows are told for the
            last axes too.
    """
    extent, stride = _RULES[ops.op(node)](context, node, axis)
    alone = same(old, 1) or same(new, 1)
    if extent is None:  # what changes the size moves positions; what does not leaves them
        return Reach(not alone and not same(old, new), same(old, new), 1)
    plain = extent == 1 and stride > 1 and _padding(node, axis) == 0
    return Reach(not alone and extent > 1, stride == 1 and same(old, new), stride if plain else 1)


def reaches() -> list[str]:
    """Names of the operations that `reach` knows."""
    return list(_RULES)


_Rule = Callable[[GraphContext, Node, int], tuple[int | None, int]]
"""(positions that one result sees, stride) along a side; None where only the size tells."""


def _convolution(context: GraphContext, node: Node, side: int) -> tuple[int | None, int]:
    weight = ops.tensor_arg(node, 1, "weight")
    shape = context.shape(weight) if weight is not None else None
    kernel = shape[side] if shape is not None and len(shape) >= 4 else 1
    if not isinstance(kernel, int):
        return 1, 0
    if ops.op(node).startswith("conv_transpose") or (
        ops.op(node) == "convolution" and ops.arg(node, 6, "transposed", default=False)
    ):
        # Each position is spread over `kernel` of the result; a stride makes the side longer.
        return kernel, 1 if _of(ops.arg(node, 3, "stride", default=1), side, 1) == 1 else 0
    dilation = _of(ops.arg(node, 5, "dilation", default=1), side, 1)
    return 1 + (kernel - 1) * dilation, _of(ops.arg(node, 3, "stride", default=1), side, 1)


def _window(context: GraphContext, node: Node, side: int) -> tuple[int | None, int]:
    del context
    kernel = _of(ops.arg(node, 1, "kernel_size"), side, 1)
    return kernel, _of(ops.arg(node, 2, "stride", default=None), side, kernel)


def _by_size(context: GraphContext, node: Node, side: int) -> tuple[int | None, int]:
    del context, node, side
    return None, 1


def _padding(node: Node, side: int) -> int:
    position = 4 if "conv" in ops.op(node) else 3
    given = ops.arg(node, position, "padding", default=0)
    return 0 if given == "valid" else _of(given, side, 0) if given != "same" else -1


def _of(given: Any, side: int, default: int) -> int:
    """An argument that is one number for all sides or one for each; 0 if it is no number."""
    if isinstance(given, (list, tuple)):
        given = given[side if len(given) > 1 else 0] if given else None
    if given is None:
        return default
    return given if isinstance(given, int) else 0


_RULES: dict[str, _Rule] = {
    **dict.fromkeys(
        ("conv2d", "conv3d", "convolution", "conv_transpose2d", "conv_transpose3d"), _convolution
    ),
    **dict.fromkeys(
        (
            "avg_pool2d",
            "avg_pool3d",
            "max_pool2d",
            "max_pool3d",
            "max_pool2d_with_indices",
            "max_pool3d_with_indices",
        ),
        _window,
    ),
    **dict.fromkeys(
        (
            "adaptive_avg_pool2d",
            "_adaptive_avg_pool2d",
            "adaptive_max_pool2d",
            "adaptive_avg_pool3d",
            "_adaptive_avg_pool3d",
            "adaptive_max_pool3d",
            "interpolate",
            "upsample",
            "upsample_nearest",
            "upsample_nearest2d",
            "upsample_bilinear2d",
            "upsample_bicubic2d",
            "upsample_nearest3d",
            "upsample_trilinear3d",
            "_upsample_nearest_exact2d",
            "_upsample_bilinear2d_aa",
            "pixel_shuffle",
            "pixel_unshuffle",
        ),
        _by_size,
    ),
}
