"""Attention of a kind that is no site: products of activations that lead into each other.

    q·kᵀ ─ relu ─ ·v                    another function than a softmax
    q·kᵀ ─ ? ─ softmax ─ ? ─ ·v         something on both sides of it
    kᵀ·v ─ ·q                           linear attention: no scores at all

A product of two activations has axes from its left and from its right operand alone. Where it leads
into another one that sums over axes of one of them and keeps axes of the other, this is a chain of
matrices, and one row of the report. A projection by a weight mixes the axis that it acts on and so
ends the chain: the next layer's attention is another one. What ends otherwise (a similarity, a Gram
matrix under a norm) is no attention.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

from torch.fx import Node

from todo_compile.passes import ops
from todo_compile.passes.families import IDENTITY
from todo_compile.passes.find.attention import NearMiss
from todo_compile.passes.find.follow import Sides, follow, sides_of
from todo_compile.passes.find.products import Product
from todo_compile.passes.find.search import Search

_FARTHEST = 256
"""Nodes looked at below one product; attention is done before."""

_MOVES = frozenset(
    ("view", "permute", "transpose", "t", "T", "mT", "movedim", "squeeze", "unsqueeze", "expand",
     "slice", "select", "narrow", "getitem", "chunk", "split", "unbind", "constant_pad_nd", "pad")
)  # fmt: skip
"""What only moves elements, and says nothing of why this is no site."""


@dataclass(slots=True)
class Family:
    """Products that lead into each other.

    Args:
        products: in graph order.
        between: nodes on the way from the first to the second.
        outside: they also lead into the value product of a site, whose row is theirs.
    """

    products: list[Product]
    between: list[Node] = field(default_factory=list[Node])
    outside: bool = False


def unclaimed(
    search: Search, claimed: Collection[Node], results: Collection[Node], why: dict[Node, str]
) -> tuple[list[NearMiss], set[Node]]:
    """Near misses of all products that no site has, and the nodes that they are made of.

    Args:
        claimed: products of sites.
        results: the value products among them.
        why: softmaxes that are no site → the reason.
    """
    families: dict[Node, Family] = {}
    for node in search.context.graph.nodes:
        pairs = search.pairs(node) if node not in claimed else []
        if not pairs:
            continue
        family = families.setdefault(node, Family([pairs[0]]))
        if len(pairs) > 1:
            family.products = pairs
        for pair in pairs:
            for reached, path in _reached(search, pair):
                if reached.node in results:
                    family.outside = True
                elif reached.node not in claimed:
                    _join(families, family, reached, path)
                    family = families[node]
    rows = {id(f): f for f in families.values() if len(f.products) > 1}
    misses = [
        NearMiss(family.products[0].node, _reason(search, family, why))
        for family in rows.values()
        if not family.outside
    ]
    known = {p.node for f in rows.values() for p in f.products}
    return misses, known.union(*(f.between for f in rows.values()))


def _join(families: dict[Node, Family], family: Family, pair: Product, path: list[Node]) -> None:
    other = families.setdefault(pair.node, Family([pair]))
    if other is family:
        return
    kept, gone = (other, family) if len(other.products) > 1 else (family, other)
    if not kept.between:
        kept.between = path
    kept.products += gone.products
    kept.outside |= gone.outside
    for one in gone.products:
        families[one.node] = kept


def _reached(search: Search, pair: Product) -> list[tuple[Product, list[Node]]]:
    """Products that `pair` leads into, each with the nodes on the way."""
    start = sides_of(pair)
    if start is None:
        return []
    found: list[tuple[Product, list[Node]]] = []
    pending: list[tuple[Node, Sides, list[Node]]] = [(pair.node, start, [])]
    seen = {pair.node}
    while pending and len(seen) < _FARTHEST:
        current, sides, path = pending.pop(0)
        for user in search.context.users(current):
            if user in seen:
                continue
            seen.add(user)
            if pairs := search.pairs(user):
                found += [(pair, path) for pair in pairs if sides.meet(pair, current)][:1]
            elif (moved := follow(search, user, current, sides)) is not None:
                pending.append((user, moved, [*path, user]))
    return found


def _reason(search: Search, family: Family, why: dict[Node, str]) -> str:
    for node in family.between:
        if why.get(node):
            return why[node]
    first = family.products[0]
    names = _names(family.between)
    if len({p.node for p in family.products}) == 1:
        return "queries, keys and values are multiplied in one einsum, without a softmax"
    if not any(ops.op(node) == "softmax" for node in family.between) and _is_linear(search, first):
        return (
            "keys and values are multiplied before the queries (linear attention): "
            "it makes no scores, and its cost grows linearly already"
        )
    if not names:
        return "no softmax stands between its two products"
    stand = "stands" if len(names) == 1 else "stand"
    return f"{' and '.join(names)} {stand} between its two products instead of a softmax"


def _names(between: Sequence[Node]) -> list[str]:
    """Functions on the way, without those that only move or cast."""
    names = [ops.elementwise(node) or ops.op(node) or node.name for node in between]
    told = [n for n in names if n not in IDENTITY | _MOVES]
    return list(dict.fromkeys(told))[:4]


def _is_linear(search: Search, pair: Product) -> bool:
    """Whether a product sums over more positions than it leaves on either side."""
    sizes: dict[object, int] = {}
    for operand, labels in ((pair.left, pair.left_labels), (pair.right, pair.right_labels)):
        for label, size in zip(labels, search.context.shape(operand) or (), strict=True):
            sizes[label] = max(sizes.get(label, 1), search.context.number(size))
    summed = max((s for label, s in sizes.items() if label not in pair.out_labels), default=1)
    sides = sides_of(pair)
    return sides is not None and all(
        sizes[pair.out_labels[axis]] <= summed for axis in (*sides.left, *sides.right)
    )
