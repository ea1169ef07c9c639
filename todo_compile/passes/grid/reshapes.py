"""What a row-major reshape does to axes.

    (B, H, W, C)           (B, N, C)            (B, N, heads, C / heads)
    [b][H][W][c]     →     [b][H·W][c]    →     [b][H·W][outer c][inner c]

`reshape` follows atoms, so it also sees what a dimension is made of; `kept_axis` asks about sizes
alone, where it is enough that one axis stays whole.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from todo_compile.passes.grid.axes import Atom, Axes, Dim, Size, fresh, fresh_dim, quotient, same


def _one_more(last: Atom, following: Atom) -> bool:
    """An image axis of one row or column belongs to the dimension that the other axis is in."""
    return bool(last.role and following.role and last.role != following.role) and same(
        following.size, 1
    )


def _rejoined(atoms: list[Atom]) -> Dim:
    """Outer and inner part of one range, side by side, are that range again."""
    joined: list[Atom] = []
    for atom in atoms:
        joined.append(atom)
        while len(joined) >= 2:
            outer, inner = joined[-2].split_of, joined[-1].split_of
            if outer is None or inner is None or outer != (inner[0], 0) or inner[1] != 1:
                break
            joined[-2:] = [outer[0]]
    return tuple(joined)


def reshape(axes: Axes, sizes: Sequence[Size]) -> Axes:
    """Axes after a row-major reshape to `sizes`; roleless where atoms cannot be followed."""
    atoms = [atom for dim in axes for atom in dim]
    result: list[Dim] = []
    position = 0
    for size in sizes:
        taken: list[Atom] = []
        need: Size = size
        while not same(need, 1):
            if position >= len(atoms):
                return tuple(fresh_dim(s) for s in sizes)
            atom = atoms[position]
            rest = quotient(need, atom.size)
            if rest is not None:
                taken.append(atom)
                position += 1
                need = rest
                while same(need, 1) and position < len(atoms) and _one_more(atom, atoms[position]):
                    taken.append(atoms[position])
                    position += 1
                continue
            inner = quotient(atom.size, need)
            if inner is None or atom.segments:
                return tuple(fresh_dim(s) for s in sizes)
            # Row-major: the outer part of the atom belongs here, the inner part to what follows.
            # A coarser row of cells is still "rows"; the position within a cell too.
            outer = fresh(need, atom.role, atom.origin or atom.ident)
            taken.append(replace(outer, split_of=(atom, 0)))
            atoms[position] = replace(fresh(inner, atom.role), split_of=(atom, 1))
            need = 1
        result.append(_rejoined(taken))
    if position != len(atoms):
        return tuple(fresh_dim(s) for s in sizes)
    return tuple(result)


def patched(axes: Axes) -> tuple[Atom, Atom] | None:
    """The two ranges that were cut into patches of one side, as they lie now; None if none were.

    [b][c][x][y]     view, permute, view  →  [b][outer x · outer y][inner x · inner y · c]
    [b][c][f][x][y]  view, permute, view  →  [b][f · outer x · outer y][inner x · inner y · c]

    What was cut by the same number along two axes, with the outer parts folded into one dimension
    and the inner ones into another, was next to each other: these are positions in space. Frames
    may be ahead of them, cut too or not.
    """
    places = {a.split_of: i for i, dim in enumerate(axes) for a in dim if a.split_of}
    inner = {a.split_of: a for dim in axes for a in dim if a.split_of}
    for dim in axes:
        if len(dim) < 2 or not (dim[-2].split_of and dim[-1].split_of):
            continue
        one, two = dim[-2].split_of[0], dim[-1].split_of[0]
        if one.ident == two.ident or {dim[-2].split_of[1], dim[-1].split_of[1]} != {0}:
            continue
        # Ranges are counted in the order of a tensor's axes: frames come before rows and columns.
        if any((a.split_of[0] if a.split_of else a).ident > min(one.ident, two.ident)
               for a in dim[:-2]):  # fmt: skip
            continue
        parts = inner.get((one, 1)), inner.get((two, 1))
        together = places.get((one, 1)) == places.get((two, 1))
        if parts[0] is None or parts[1] is None or not together or same(parts[0].size, 1):
            continue
        if same(parts[0].size, parts[1].size):
            return one, two
    return None


def named(axes: Axes, roles: Mapping[int, str]) -> Axes:
    """`axes` with the parts of ranges named as the ranges are now: ident → role."""

    def one(atom: Atom) -> Atom:
        if atom.split_of is None or not (role := roles.get(atom.split_of[0].ident)):
            return atom
        whole, part = atom.split_of
        return replace(atom, role=role, split_of=(replace(whole, role=role), part))

    return tuple(tuple(one(atom) for atom in dim) for dim in axes)


def kept_axis(shape: tuple[Size, ...], other: tuple[Size, ...], axis: int) -> int | None:
    """Axis of `other` that is `axis` of `shape` under a row-major reshape between the two.

    The axis is kept whole if its size and the product of all sizes before it are the same.
    """
    lead: Size = 1
    for size in shape[:axis]:
        lead = lead * size
    seen: Size = 1
    for position, size in enumerate(other):
        if same(seen, lead) and same(size, shape[axis]):
            return position
        seen = seen * size
    return None
