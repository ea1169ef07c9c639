"""Image axes after an operation, by its effect (`passes.operators`).

    transpose(1, 2)             [b][H·W][c]                 →   [b][c][H·W]
    add                         [b][H·W][c] + [b][?][c]     →   [b][H·W][c]   one range of tokens
    view                        [b][H·W][c]                 →   [b][H][W][c]
    cat                         [b][text][c], [b][H·W][c]   →   [b][text | H·W][c]
    slice(1, 3, 23)             [b][text 3 | H·W 20][c]     →   [b][H·W][c]

An axis keeps its atoms, whatever its place; one that is of none that went in is a new range.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch.fx import Node

from todo_compile.passes import ops
from todo_compile.passes.grid.axes import (
    Atom,
    Axes,
    Dim,
    Size,
    concatenated,
    dim_size,
    fresh,
    fresh_dim,
    plain_size,
    same,
)
from todo_compile.passes.grid.batches import of_items
from todo_compile.passes.grid.reshapes import named, patched, reshape
from todo_compile.passes.grid.state import GridState, Shape
from todo_compile.passes.operators.effect import Cut, Effect
from todo_compile.passes.operators.table import effect_of, effects_of_outputs, source_of

_PADS = ("pad", "constant_pad_nd")


def through(state: GridState, node: Node, shape: Shape) -> Axes | None:
    """Axes of the output of `node`; None where nothing can be said of it."""
    source = source_of(node)
    if source is not None and (several := state.outputs.get(source)) is not None:
        index = ops.arg(node, 1) if ops.op(node) == "getitem" else None
        if not isinstance(index, int) or not -len(several) <= index < len(several):
            return None
        return several[index]
    effect = effect_of(state.context, node)
    axes = None if effect is None else _after(state, effect, shape)
    if axes is not None and ops.op(node) in _PADS:
        _note_padded(state, node, axes)
    return axes


def _note_padded(state: GridState, node: Node, axes: Axes) -> None:
    """Remember which new ranges are an input's with something at its ends."""
    source = source_of(node)
    before = state.axes.get(source, ()) if source is not None else ()
    known = _input_ranges(state) | state.padded
    for old, new in zip(before, axes, strict=False):
        if len(old) == len(new) == 1 and (old[0].role or old[0].ident in known):
            state.padded.add(new[0].ident)


def outputs(state: GridState, node: Node) -> list[Axes] | None:
    """Axes of each output of chunk, split or unbind, for the getitem that follows."""
    effects = effects_of_outputs(state.context, node)
    if effects is None:
        return None
    values = state.context.value(node)
    found = [
        _after(state, effect, tuple(plain_size(size) for size in value.shape))
        for effect, value in zip(effects, values, strict=False)
    ]
    return [axes or () for axes in found]


def _after(state: GridState, effect: Effect, shape: Shape) -> Axes | None:
    match effect.kind:
        case "joins":
            return _joined(state, effect)
        case "plain":
            return _plain(state, effect, shape)
        case "replaces":
            return _replaced(state, effect, shape)
        case _:
            axes = state.axes.get(effect.sources[0].node)
    if axes is None:
        return None
    if effect.kind == "reshapes":
        return _reshaped(state, axes, shape)
    if effect.kind == "mirrors":
        return tuple(_mirrored(d) if i in effect.mirrored else d for i, d in enumerate(axes))
    left = of_items(state, axes, {axis: cut.key for axis, cut in effect.cuts.items()})
    return tuple(
        () if i is None else part_of(left[i], effect.cuts.get(i)) for i in effect.sources[0].axes
    )


def _plain(state: GridState, effect: Effect, shape: Shape) -> Axes:
    return tuple(
        state.aligned(
            [
                (source.node, axes[own])
                for source in effect.sources
                if (axes := state.axes.get(source.node)) is not None
                and (own := source.axes[i]) is not None
            ]
        )
        or fresh_dim(size)
        for i, size in enumerate(shape)
    )


def _replaced(state: GridState, effect: Effect, shape: Shape) -> Axes | None:
    """An axis stays what it is if what is written over some of it has the same positions there."""
    into, value = effect.sources
    base, given = state.axes.get(into.node), state.axes.get(value.node)
    if base is None or given is None:
        return None

    def stays(axis: int, dim: Dim) -> bool:
        own = value.axes[axis]
        cut = effect.cuts.get(axis)
        part = dim if cut is None else part_of(dim, cut)
        return own is not None and state.unifier.same_range(part, given[own])

    return tuple(
        dim if stays(axis, dim) else fresh_dim(shape[axis]) for axis, dim in enumerate(base)
    )


def _reshaped(state: GridState, axes: Axes, shape: Shape) -> Axes:
    """Atoms are followed through the row-major order."""
    result = reshape(axes, shape)
    sides = patched(result)
    if sides is None:
        return result
    roles: dict[int, str] = {}
    for atom, role in zip(_rows_first(state, sides, result), ("H", "W"), strict=True):
        if not atom.role:
            state.prove(atom, role)
            # At once: a padded range has no input to be named at. Of any other that began inside
            # the graph nothing says that its positions are in a picture's order (`roll`, `sort`).
            if atom.ident in state.padded:
                roles[atom.ident] = role
    return named(result, roles)


def _rows_first(state: GridState, sides: Sequence[Atom], cut: Axes) -> list[Atom]:
    """Rows come before columns in the picture that goes in; else where they were cut.

    Ranges are counted as they are met, so those of one tensor in the order of its axes.
    """
    if _input_ranges(state).issuperset(atom.ident for atom in sides):
        return sorted(sides, key=lambda atom: atom.ident)
    outer = {
        a.split_of[0].ident: a.ident for dim in cut for a in dim if a.split_of and not a.split_of[1]
    }
    return sorted(sides, key=lambda atom: outer[atom.ident])


def _input_ranges(state: GridState) -> set[int]:
    return {
        atom.ident
        for node, axes in state.axes.items()
        if node.op == "placeholder"
        for dim in axes
        for atom in dim
    }


def _joined(state: GridState, effect: Effect) -> Axes | None:
    """Segments along the joined axis, one range along every other."""
    nodes = [source.node for source in effect.sources]
    known = [axes for node in nodes if (axes := state.axes.get(node)) is not None]
    if len(known) != len(nodes):
        return None
    result: list[Dim] = []
    for position, dims in enumerate(zip(*known, strict=True)):
        if position == effect.joined:
            # A part of size 1 has no atoms; as a segment it needs one to be counted.
            result.append(concatenated([d or (fresh(1),) for d in dims]))
        else:
            result.append(state.aligned(list(zip(nodes, dims, strict=True))) or ())
    return tuple(result)


def _mirrored(dim: Dim) -> Dim:
    """A mirrored picture is one, N - 1 - n = (H - 1 - h)·W + (W - 1 - w), on axes of its own.

    (A rolled one is none: a cell across the seam would join opposite edges.)
    """
    if any(atom.segments for atom in dim):
        return fresh_dim(dim_size(dim))
    return tuple(fresh(atom.size, atom.role) for atom in dim)


def part_of(dim: Dim, cut: Cut | None) -> Dim:
    """Part of a dimension: whole, a segment of a concatenation, or every step-th position."""
    if cut is None or (cut.step == 1 and same(dim_size(dim), cut.size)):
        return dim
    start, size = cut.start, cut.size
    if len(dim) != 1:
        return fresh_dim(size)
    atom = dim[0]
    if atom.segments and cut.step == 1 and start is not None:
        from_end = getattr(start, "is_negative", start < 0 if isinstance(start, int) else False)
        return _segment(atom, start + atom.size if from_end else start, size)
    if not atom.segments and cut.step != 1 and atom.role and not same(size, 1):
        return (fresh(size, atom.role, atom.origin or atom.ident),)
    return fresh_dim(size)


def _segment(atom: Atom, start: Size, size: Size) -> Dim:
    """The segments of a concatenated range that cover [start, start + size), if they do."""
    position: Size = 0
    taken: list[Dim] = []
    covered: Size = 0
    for segment in atom.segments:
        length = dim_size(segment)
        if taken or same(position, start):
            taken.append(segment)
            covered = covered + length
            if same(covered, size):
                return taken[0] if len(taken) == 1 else concatenated(taken)
        position = position + length
    return fresh_dim(size)
