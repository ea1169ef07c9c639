"""What tensors are made of after something was written into their memory.

    out = empty_like(k)     [b][?][h][c]
    out[..., 0::2] = a      a [b][f·H·W][h][c/2]    →   out [b][f·H·W][h][?]
    out[..., 1::2] = b      the same tokens         →   it stays so

Rotary embeddings are written like this. New memory has no positions of its own, so those of what is
written into it count, axis by axis; where something is written over what was there, an axis keeps
its name only if both have the same positions. So does the whole that it is a part of:

    k                       [b][text | H·W][h·c]
    k[:, 77:] = a           the same H·W tokens         →   it stays so, but for the channels

Everything else that writes takes names away.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from torch.fx import Node

from todo_compile.passes import ops
from todo_compile.passes.families import NEW
from todo_compile.passes.grid.axes import Axes, Dim, dim_size, fresh_dim, same
from todo_compile.passes.grid.effects import part_of
from todo_compile.passes.grid.state import GridState
from todo_compile.passes.operators.effect import Cut

_PARTS = frozenset(("slice", "select", "narrow", "getitem"))


def after_write(state: GridState, node: Node, touched: Sequence[Node]) -> dict[Node, Axes]:
    """Axes of what `node` writes into, after it.

    Args:
        touched: tensors that may share the memory that it writes into.
    """
    origin = _new_memory(node)
    if origin is not None:  # what was there before is not in it, whatever may share what
        position = state.context.memory.position
        touched = [other for other in touched if position(other) >= position(origin)]
    known = {other: axes for other in touched if (axes := state.axes.get(other)) is not None}
    kept = _in_place(state, node, known.values()) if origin is None else _kept(state, node, origin)
    state.written.update(touched)
    return {
        other: tuple(kept.get(dim) or fresh_dim(dim_size(dim)) for dim in axes)
        for other, axes in known.items()
    }


def _kept(state: GridState, node: Node, origin: Node) -> dict[Dim, Dim]:
    """Axis of the memory before → after, for those that hold the same positions all along it."""
    into, value = ops.tensor_arg(node, 0, "self"), _value(node)
    base = state.axes.get(origin, ())
    if into is None or value is None:
        return {}
    target, given = state.axes.get(into), state.axes.get(value)
    shapes = state.context.shape(into), state.context.shape(value)
    whole = _whole_axes(node, len(target or ()))
    if target is None or given is None or whole is None or None in shapes:
        return {}
    first = origin not in state.written
    found: dict[Dim, Dim] = {}
    for place, own in enumerate(whole):
        other = place - len(whole) + len(given)
        if own is None or not target[own] or target.count(target[own]) > 1:
            continue
        if other < 0 or not same(dim_size(given[other]), dim_size(target[own])):
            continue  # one position for all
        if first or state.unifier.same_range(target[own], given[other]):
            found[target[own]] = given[other]
    # Some channels may be written at a time. Of another axis the rest could be something else's.
    return found if all(dim in found for dim in base[:-1] if dim) else {}


def _in_place(state: GridState, node: Node, touched: Iterable[Axes]) -> dict[Dim, Dim]:
    """Axes that stay what they are: each position is written from itself, all channels or some.

    Of an axis with segments that is so if one of them is written.
    """
    parts, value = _parts(state, node), _value(node)
    given = state.axes.get(value) if value is not None else None
    if parts is None or given is None or len(parts) != len(given):
        return {}
    same_range = state.unifier.same_range
    alike = [
        one is not None and same_range(one, own) for one, own in zip(parts, given, strict=True)
    ]
    if not all(alike[:-1]):
        return {}
    stays = {one for one, fits in zip(parts, alike, strict=True) if fits and one}
    if not alike[-1]:
        stays.discard(parts[-1] or ())
    around = {
        dim
        for axes in touched
        for dim in axes
        if len(dim) == 1 and not stays.isdisjoint(dim[0].segments)
    }
    return {dim: dim for dim in stays | around}


def _parts(state: GridState, node: Node) -> list[Dim | None] | None:
    """For each axis of what `node` writes into, the positions that it writes."""
    into = ops.tensor_arg(node, 0, "self")
    target = state.axes.get(into) if into is not None else None
    if target is None or ops.op(node) not in ("copy_", "setitem"):
        return None
    if ops.op(node) == "copy_":
        return list(target)
    items = _items(node, len(target))
    return None if items is None else [_cut(d, i) for d, i in zip(target, items, strict=True)]


def _cut(dim: Dim, item: slice) -> Dim | None:
    """What a slice takes of a dimension; None where that is not known."""
    whole = dim_size(dim)
    if item == slice(None):
        return dim
    plain = all(isinstance(n, (int, type(None))) for n in (item.start, item.stop, item.step))
    if not plain or not isinstance(whole, int):
        return None
    start, stop, step = item.indices(whole)
    return part_of(dim, Cut(start, len(range(start, stop, step)), step, None))


def _new_memory(node: Node) -> Node | None:
    """What made the memory that `node` copies into, if nothing but parts of it are in between.

    Others write where their first operand is not, as ``mul(new, 2, out=keys)`` does.
    """
    if ops.op(node) not in ("copy_", "setitem"):
        return None
    current = ops.tensor_arg(node, 0, "self")
    while current is not None and ops.op(current) in _PARTS:
        current = ops.tensor_arg(current, 0, "input", "self")
    if current is None or ops.op(current) not in NEW or current.kwargs.get("out") is not None:
        return None
    return current


def _value(node: Node) -> Node | None:
    if ops.op(node) == "copy_":
        return ops.tensor_arg(node, 1, "src", "other")
    return ops.tensor_arg(node, 2) if ops.op(node) == "setitem" else None


def _whole_axes(node: Node, rank: int) -> list[int | None] | None:
    """For each axis of the part that is written, the target's axis if that is written whole."""
    if ops.op(node) == "copy_":
        return list(range(rank))
    items = _items(node, rank)
    if items is None:
        return None
    return [axis if item == slice(None) else None for axis, item in enumerate(items)]


def _items(node: Node, rank: int) -> list[slice] | None:
    """The slices of ``x[…] = y``, one an axis; None if anything else is among them."""
    index: Any = node.args[1]
    items: list[Any] = list(index) if isinstance(index, tuple) else [index]
    if items.count(Ellipsis) > 1 or not all(isinstance(i, slice) or i is Ellipsis for i in items):
        return None
    if Ellipsis in items:
        at = items.index(Ellipsis)
        items[at : at + 1] = [slice(None)] * (rank - len(items) + 1)
    return items + [slice(None)] * (rank - len(items))
