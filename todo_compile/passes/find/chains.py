"""From a softmax to the two products around it: what may stand between, and where the keys go.

    q·kᵀ ─ scale ─ + bias ─ view ─ softmax ─ dropout ─ view ─ ·v
    └──────── climb ─────────────┘     └──── descend ────────┘

Both walks follow the axis of the softmax, which is the key axis, through what renumbers it, and
note every node whose shape has that axis.
"""

from __future__ import annotations

from torch.fx import Node

from todo_compile.passes import ops
from todo_compile.passes.find.masks import Mask
from todo_compile.passes.find.products import Product, product
from todo_compile.passes.graph import GraphContext
from todo_compile.passes.grid.axes import Size, same
from todo_compile.passes.grid.reshapes import kept_axis

# Written in place or not: the product has no other reader then (see `spelled_out`).
_SCALINGS = frozenset(("mul", "div", "mul_", "div_", "imul", "itruediv"))
_MASKINGS = frozenset(("add", "sub", "iadd", "add_"))


def climb(
    context: GraphContext,
    node: Node,
    axis: int,
    chain: list[tuple[Node, int]],
    masks: list[Mask],
) -> tuple[Product, int] | str:
    """From the softmax up to the score product, noting biases: (product, key axis), or why not."""
    current = ops.tensor_arg(node, 0, "input", "self")
    for _ in range(16):  # longer chains are no attention that anyone writes
        if current is None:
            break
        if (found := product(context, current)) is not None:
            chain.append((current, axis))
            return found, axis
        name = ops.op(current)
        between = f"{name or current.name} stands between the score product and the softmax"
        shape = context.shape(current)
        operands = ops.operands(current)
        if shape is None or not operands:
            return between
        source = operands[0]
        if name in _SCALINGS | _MASKINGS and len(operands) == 2:
            source, other = _scores_operand(context, operands, shape)
            if source is None or other is None:
                return between
            other_shape = context.shape(other)
            scalar = other_shape is not None and all(same(s, 1) for s in other_shape)
            if name in _MASKINGS and not scalar:
                masks.append(Mask.on_axis(context, other, axis, current))
            elif not scalar and not _constant_along(context, other, len(shape) - axis):
                return between
        elif (order := ops.permutation(current, len(shape))) is not None:
            chain.append((current, axis))
            axis = order[axis]
            current = source
            continue
        elif name == "view":
            moved = _through_view(context, current, source, axis)
            if moved is None:
                return "the scores are reshaped across the key axis"
            chain.append((current, axis))
            axis, current = moved, source
            continue
        elif not (name in ops.IDENTITY or (name in _SCALINGS | _MASKINGS and len(operands) == 1)):
            return between
        chain.append((current, axis))
        current = source
    return "no score product was found above the softmax"


def descend(
    context: GraphContext, softmax: Node, axis: int, chain: list[tuple[Node, int]]
) -> tuple[Product, int, int] | str | None:
    """From the softmax down to the value product: (product, value side, value token axis)."""
    current = softmax
    for _ in range(16):
        users = context.users(current)
        if not users:
            return None
        consumers = [u for u in users if product(context, u) is not None]
        if len(users) > 1 and consumers:
            users = consumers[:1]
        elif len(users) > 1:
            return "the softmax feeds several operations, none of them a value product"
        user = users[0]
        shape = context.shape(user)
        if (found := product(context, user)) is not None:
            side = 1 if found.left is current else 0
            label = found.operand(1 - side)[1][axis]
            value_labels = found.operand(side)[1]
            if found.left is found.right or label not in value_labels or label in found.out_labels:
                return "the softmax axis is not summed over by the product that follows"
            return found, side, value_labels.index(label)
        if shape is None:
            return None
        if (order := ops.permutation(user, len(shape))) is not None:
            axis = order.index(axis)
        elif ops.op(user) == "view":
            moved = _through_view(context, current, user, axis)
            if moved is None:
                return "the probabilities are reshaped across the key axis"
            axis = moved
        elif ops.op(user) not in ops.IDENTITY:
            return f"{ops.op(user) or user.name} stands between the softmax and the value product"
        chain.append((user, axis))
        current = user
    return None


def _scores_operand(
    context: GraphContext, operands: list[Node], shape: tuple[Size, ...]
) -> tuple[Node | None, Node | None]:
    """Which operand of an addition or scaling is the scores: the one computed by a product."""
    for source, other in (operands, operands[::-1]):
        known = context.shape(source)
        if known is None or len(known) != len(shape) or not all(map(same, known, shape)):
            continue
        above: Node | None = source
        for _ in range(8):
            if above is None or ops.op(above) in ops.EMPTY_OPS:
                break
            if product(context, above) is not None:
                return source, other
            above = ops.tensor_arg(above, 0, "input", "self")
    return None, None


def _constant_along(context: GraphContext, node: Node, back: int) -> bool:
    shape = context.shape(node)
    return shape is not None and (len(shape) < back or same(shape[-back], 1))


def _through_view(context: GraphContext, node: Node, other: Node, axis: int) -> int | None:
    """Axis of `other` that is `axis` of `node`, one a view of the other; None if not kept whole."""
    shape, other_shape = context.shape(node), context.shape(other)
    if shape is None or other_shape is None:
        return None
    return kept_axis(shape, other_shape, axis)
