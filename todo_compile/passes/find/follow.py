"""Follow the two sides of a product downwards: which axes came from its left and right operand.

    q·kᵀ (B, N, M) ─ view (B, h, N, M) ─ sum over h (B, N, M) ─ · v

Sizes tell where an axis goes: nothing is rewritten by what is found here, so an axis that is joined
with another still counts. One that is summed away or broadcast, or that a weight mixes, is gone.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch.fx import Node

from todo_compile.passes import ops
from todo_compile.passes.families import LINEAR
from todo_compile.passes.find.products import Product
from todo_compile.passes.find.search import Search
from todo_compile.passes.grid.axes import Size, same

_REDUCTIONS = frozenset(
    ("sum", "mean", "amax", "amin", "max", "min", "prod", "norm", "linalg_vector_norm", "logsumexp",
     "std", "var", "any", "all", "argmax", "argmin", "nansum", "median")
)  # fmt: skip
_PROJECTIONS = {
    **dict.fromkeys((*LINEAR, "addmm"), -1),
    **dict.fromkeys(("conv1d", "conv2d", "conv3d", "convolution"), 1),
}
"""What mixes the channels by a weight → the axis that they are on."""


@dataclass(frozen=True, slots=True)
class Sides:
    """Axes that came from the left and from the right operand of a product alone."""

    left: tuple[int, ...]
    right: tuple[int, ...]

    def moved(self, where: dict[int, tuple[int, ...]]) -> Sides | None:
        """The sides with axis numbers as `where` says; None if one of them is gone."""
        left = {new for axis in self.left for new in where.get(axis, ())}
        right = {new for axis in self.right for new in where.get(axis, ())}
        both = left & right
        left, right = left - both, right - both
        return Sides(tuple(sorted(left)), tuple(sorted(right))) if left and right else None

    def meet(self, pair: Product, operand: Node) -> bool:
        """Whether a product that reads them in `operand` sums over one side and keeps the other."""
        for side in (0, 1):
            node, labels = pair.operand(side)
            if node is not operand:
                continue
            kept = [any(labels[a] in pair.out_labels for a in s) for s in (self.left, self.right)]
            gone = [
                any(labels[a] not in pair.out_labels for a in s) for s in (self.left, self.right)
            ]
            if (gone[0] and kept[1]) or (gone[1] and kept[0]):
                return True
        return False


def sides_of(pair: Product) -> Sides | None:
    """Axes of a product's result that came from one of its operands alone; None without both."""
    left = tuple(
        axis
        for axis, label in enumerate(pair.out_labels)
        if label in pair.left_labels and label not in pair.right_labels
    )
    right = tuple(
        axis
        for axis, label in enumerate(pair.out_labels)
        if label in pair.right_labels and label not in pair.left_labels
    )
    return Sides(left, right) if left and right else None


def follow(search: Search, user: Node, source: Node, sides: Sides) -> Sides | None:
    """The sides in `user`, which reads `source`; None if it ends one of them."""
    before, after = _shape(search, source), _shape(search, user)
    if before is None or after is None:
        return None
    if (order := ops.permutation(user, len(after))) is not None:
        return sides.moved({axis: (order.index(axis),) for axis in range(len(before))})
    if (pair := search.product(user)) is not None:
        return _through_weight(pair, source, sides)
    name = ops.op(user)
    if name in _PROJECTIONS and _first(user) is source:
        mixed = _PROJECTIONS[name] % len(before)
        stay = (axis for axis in range(len(before)) if axis != mixed)
        return _kept(sides, before, after, stay)
    if name in _REDUCTIONS and len(after) < len(before):
        return sides.moved(_reduced(user, len(before)))
    if name == "view" or len(before) != len(after):
        if _is_plain(before) and _is_plain(after) and _count(before) == _count(after):
            return sides.moved(_spread(before, after))
        if len(after) < len(before):
            return None
    offset = len(after) - len(before)
    stays = {a: (a + offset,) for a in range(len(before)) if _stays(before[a], after[a + offset])}
    return sides.moved(stays)


def _through_weight(pair: Product, source: Node, sides: Sides) -> Sides | None:
    labels = pair.left_labels if pair.left is source else pair.right_labels
    if source not in (pair.left, pair.right):
        return sides if source is pair.bias else None
    out = pair.out_labels
    return sides.moved({a: (out.index(n),) for a, n in enumerate(labels) if n in out})


def _kept(
    sides: Sides, before: tuple[Size, ...], after: tuple[Size, ...], axes: Iterable[int]
) -> Sides | None:
    if len(before) != len(after):
        return None
    return sides.moved({a: (a,) for a in axes if _stays(before[a], after[a])})


def _stays(before: Size, after: Size) -> bool:
    """An axis may get shorter or longer (slices, padding), but not come from or go to nothing."""
    return same(before, after) or not (same(before, 1) or same(after, 1))


def _reduced(user: Node, rank: int) -> dict[int, tuple[int, ...]]:
    """Where axes are after a reduction that drops some."""
    dims = ops.arg(user, 1, "dim", "axis")
    listed = [dims] if isinstance(dims, int) else dims
    if not isinstance(listed, (list, tuple)) or not all(isinstance(d, int) for d in listed):
        return {}
    gone = {ops.normal_dim(d, rank) for d in listed}
    rest = [axis for axis in range(rank) if axis not in gone]
    return {axis: (number,) for number, axis in enumerate(rest)}


def _spread(before: tuple[Size, ...], after: tuple[Size, ...]) -> dict[int, tuple[int, ...]]:
    """Axis → the axes of a row-major reshape that its index is spread over."""
    spans, others = _spans(before), _spans(after)
    return {
        axis: tuple(
            number for number, (low, high) in enumerate(others) if low < one[1] and one[0] < high
        )
        for axis, one in enumerate(spans)
    }


def _spans(shape: tuple[Size, ...]) -> list[tuple[int, int]]:
    """(stride, stride × size) of every axis of a contiguous tensor."""
    spans: list[tuple[int, int]] = []
    stride = 1
    for size in reversed(shape):
        spans.append((stride, stride * int(size)))
        stride *= int(size)
    return spans[::-1]


def _is_plain(shape: tuple[Size, ...]) -> bool:
    return all(isinstance(size, int) for size in shape)


def _count(shape: tuple[Size, ...]) -> int:
    total = 1
    for size in shape:
        total *= int(size)
    return total


def _first(user: Node) -> Node | None:
    return ops.tensor_arg(user, 0 if ops.op(user) != "addmm" else 1, "input", "self", "mat1")


def _shape(search: Search, node: Node) -> tuple[Size, ...] | None:
    """Shape of a tensor, or of the first of several (what ``chunk`` or ``topk`` gives)."""
    shape = search.context.shape(node)
    value = search.context.value(node)
    if shape is None and isinstance(value, (list, tuple)) and value:
        first: object = value[0]
        return tuple(first.shape) if isinstance(first, torch.Tensor) else None
    return shape
