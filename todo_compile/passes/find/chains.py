"""From a softmax to the two products around it: what may stand between, and where the keys go.

    q·kᵀ ─ scale ─ + bias ─ view ─ softmax ─ dropout ─ view ─ ·v
    └──────── climb ─────────────┘     └──── descend ────────┘

Both walks follow the axis of the softmax, which is the key axis, through what renumbers it, and
note every node whose shape has that axis.

Keys are picked or averaged, so the scores lose columns. Above the softmax every function of the
elements may stand, since it does to the columns that stay what it did before; an operand with
values of its own for every key must lose the same columns. Below it only what is linear may stand:
one probability takes the place of the sum of several.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.fx import Node

from todo_compile.passes import ops
from todo_compile.passes.families import IDENTITY
from todo_compile.passes.find.masks import Mask
from todo_compile.passes.find.products import Product
from todo_compile.passes.find.search import Search
from todo_compile.passes.grid.reshapes import kept_axis

_LONGEST = 24
"""Longer chains are no attention that anyone writes."""
_CONDITIONS = {"masked_fill": (1, "mask"), "where": (0, "condition")}
_ADDITIONS = frozenset(("add", "sub", "rsub"))
_CONTRACTIONS = frozenset(
    ("neg", "abs", "relu", "tanh", "sigmoid", "clamp", "clip", "clamp_min", "clamp_max")
)
"""Never make the difference of two scores larger."""


@dataclass(slots=True)
class Chain:
    """What stands between the two products.

    Args:
        nodes: those with a key axis, with that axis.
        masks: what is added to the scores, the last one first.
        refusal: why the site must stay as it is.
        bent: what happens to the scores between the node at hand and the softmax, if it could make
            a bias weigh more.
    """

    nodes: list[tuple[Node, int]]
    masks: list[Mask] = field(default_factory=list[Mask])
    refusal: str | None = None
    bent: str = ""


def climb(search: Search, softmax: Node, axis: int, chain: Chain) -> tuple[Product, int] | str:
    """From the softmax up to the score product: (product, its key axis), or why not."""
    current = ops.tensor_arg(softmax, 0, "input", "self")
    for _ in range(_LONGEST):
        rank = None if current is None else search.rank(current)
        if current is None or rank is None:
            break
        chain.nodes.append((current, axis))
        if (found := search.product(current)) is not None:
            return found, axis
        if (step := _renumbered(search, current, axis)) is not None:
            if isinstance(step, str):
                return step
            current, axis = step
            continue
        source = _scores_of(search, current, axis)
        if source is None:
            name = ops.op(current) or current.name
            return f"its scores come from {name}, not straight from a product of queries and keys"
        _note_others(search, current, source, axis, chain)
        axis += (search.rank(source) or 0) - rank
        current = source
    return "no score product was found above the softmax"


def descend(
    search: Search, softmax: Node, axis: int, chain: Chain
) -> tuple[Product, int, int] | str | None:
    """From the softmax down to the value product: (product, value side, value token axis)."""
    current = softmax
    for _ in range(_LONGEST):
        users = search.context.users(current)
        if not users:
            return None
        consumers = [u for u in users if search.product(u) is not None]
        if len(users) > 1 and not consumers:
            return "the softmax feeds several operations, none of them a value product"
        user = consumers[0] if consumers else users[0]
        if (found := search.product(user)) is not None:
            return _value_product(search, found, current, axis)
        rank, before = search.rank(user), search.rank(current)
        if rank is None or before is None:
            return _not_straight(user)
        moved = _renumbered_below(search, user, current, axis)
        if moved is None:
            if not _is_linear(search, user, current, axis + rank - before):
                return _not_straight(user)
            moved = axis + rank - before
        elif isinstance(moved, str):
            return moved
        axis = moved
        chain.nodes.append((user, axis))
        current = user
    return None


def _not_straight(user: Node, what: str = "") -> str:
    name = ops.op(user) or user.name
    return f"its probabilities go into {name}{what}, not straight into a product with the values"


def _value_product(
    search: Search, found: Product, current: Node, axis: int
) -> tuple[Product, int, int] | str:
    if current not in (found.left, found.right):
        return "the probabilities are only added to the product that follows"
    side = 1 if found.left is current else 0
    label = found.operand(1 - side)[1][axis]
    value_labels = found.operand(side)[1]
    if found.left is found.right or label not in value_labels or label in found.out_labels:
        if not search.joins_activations(found):
            return _not_straight(found.node, " with a weight")
        return "the softmax runs over an axis that the product after it does not sum over"
    return found, side, value_labels.index(label)


def _renumbered(search: Search, node: Node, axis: int) -> tuple[Node, int] | str | None:
    """(source, its axis) of a node that only gives axes other numbers; None if it is no such."""
    source = ops.tensor_arg(node, 0, "input", "self")
    rank = search.rank(node)
    if source is None or rank is None:
        return None
    if (order := ops.permutation(node, rank)) is not None:
        return source, order[axis]
    if not _is_reshape(node):
        return None
    moved = _through_view(search, node, source, axis)
    return moved if isinstance(moved, str) else (source, moved)


def _renumbered_below(search: Search, user: Node, source: Node, axis: int) -> int | str | None:
    """Axis of `user` that is `axis` of `source`, if `user` only gives axes other numbers."""
    if (order := ops.permutation(user, search.rank(user) or 0)) is not None:
        return order.index(axis)
    return _through_view(search, source, user, axis) if _is_reshape(user) else None


def _is_reshape(node: Node) -> bool:
    name = ops.op(node)
    return name in ("view", "unsqueeze") or (
        name == "squeeze" and ops.arg(node, 1, "dim") is not None
    )


def _through_view(search: Search, node: Node, other: Node, axis: int) -> int | str:
    """Axis of `other` that is `axis` of `node`, one a view of the other, or why there is none."""
    context = search.context
    shape, other_shape = context.shape(node), context.shape(other)
    if context.dtype(node) != context.dtype(other):
        return "the bits of the scores are read as another dtype"
    moved = None if shape is None or other_shape is None else kept_axis(shape, other_shape, axis)
    if moved is None:
        return (
            "between its product and its softmax the scores take another shape, in which no axis "
            "is that of the keys alone, so it is not known which scores belong to one key"
        )
    return moved


def _scores_of(search: Search, node: Node, axis: int) -> Node | None:
    """The operand of an elementwise function that is the scores: the one a product computes."""
    if not ops.elementwise(node):
        return None
    found = [
        (_closeness(search, o), o)
        for o in ops.operands(node)
        if search.aligned(o, node, axis) is not None
    ]
    if not found:
        return None
    best, source = max(found, key=lambda pair: pair[0])
    return source if best or len(found) == 1 else None


def _closeness(search: Search, node: Node) -> int:
    """2 if a product of two activations computes `node`, 1 if any product does, else 0.

    Through elementwise functions and what renumbers axes.
    """
    pending, seen, best = [node], {node}, 0
    while pending and len(seen) < 4 * _LONGEST:
        current = pending.pop()
        if (pair := search.product(current)) is not None:
            best = max(best, 1 + search.joins_activations(pair))
            continue
        above: list[Node] = []
        if ops.elementwise(current):
            above = ops.operands(current)
        elif _is_reshape(current) or ops.permutation(current, search.rank(current) or 0):
            above = ops.operands(current)[:1]
        new = [n for n in above if n not in seen]
        seen.update(new)
        pending += new
    return best


def _note_others(search: Search, node: Node, source: Node, axis: int, chain: Chain) -> None:
    """What an elementwise function among the scores reads besides them."""
    name = ops.elementwise(node)
    if ops.destination(node) not in (None, source):
        chain.refusal = "the scores are written into the memory of another tensor"
    for other in ops.operands(node):
        if other is source or not search.varies(other, node, axis):
            continue
        if name in _ADDITIONS:
            chain.masks.append(Mask.on_axis(search.context, other, axis, node))
            how = f"{name} with alpha" if _is_enlarged(node, name, other) else chain.bent
            if how:
                chain.refusal = f"a bias on the scores may grow after it is added ({how})"
        elif name in _CONDITIONS:
            condition = ops.tensor_arg(node, *_CONDITIONS[name])
            # Whom it hides is asked of it as of any other mask, see `plan.masks`.
            if other is condition and search.context.dtype(other) is torch.bool:
                chain.masks.append(Mask.on_axis(search.context, other, axis, node))
            else:
                chain.refusal = f"{name} puts other numbers in the place of some scores"
        else:
            chain.refusal = f"{name} changes the scores of every key in a way of its own"
    if _grows(node, name, source):
        chain.bent = name


def may_grow(node: Node) -> str:
    """How ``baddbmm`` enlarges its bias, or "" if it does not."""
    return "" if _within(ops.arg(node, 3, "beta", default=1), 0, 1) else f"{ops.op(node)} with beta"


def _is_enlarged(node: Node, name: str, operand: Node) -> bool:
    """Whether an addition multiplies `operand` by an ``alpha`` that may be over one."""
    first, second = _pair(node)
    scaled = first if name == "rsub" else second
    return scaled is operand and not _within(ops.arg(node, 2, "alpha", default=1), 0, 1)


def _grows(node: Node, name: str, source: Node) -> bool:
    """Whether differences between scores may be larger after `node` than before it."""
    first, second = _pair(node)
    if name in IDENTITY or name in _CONTRACTIONS:
        return False
    if name in _ADDITIONS:
        return first is second or _is_enlarged(node, name, source)
    if name == "mul":
        return not _within(second if first is source else first, 0, 1)
    if name == "div":
        return first is not source or not _within(second, 1, math.inf)
    return True


def _pair(node: Node) -> tuple[Any, Any]:
    return ops.arg(node, 0, "input", "self"), ops.arg(node, 1, "other")


def _within(number: Any, low: float, high: float) -> bool:
    return isinstance(number, (int, float)) and low <= abs(number) <= high


def _is_linear(search: Search, user: Node, source: Node, axis: int) -> bool:
    """Whether `user` is linear in the probabilities, and alike for all keys on its `axis`."""
    name = ops.elementwise(user)
    if axis < 0 or search.aligned(source, user, axis) is None:
        return False
    if name in IDENTITY or name == "nan_to_num":  # where there is a NaN, all of its row is
        return True
    if name not in ("mul", "div") or ops.destination(user) not in (None, source):
        return False
    first, second = _pair(user)
    if ops.arg(user, 2, "rounding_mode") is not None or first is second:
        return False
    if name == "div" and first is not source:
        return False
    return not any(search.varies(o, user, axis) for o in ops.operands(user) if o is not source)
