"""What the axes of a tensor are made of: the algebra behind grid inference.

Every dimension is a row-major product of *atoms*. An atom is one indivisible index range: a batch,
a channel, the rows ("H") or the columns ("W") of an image. Flattening ``(B, H, W, C)`` to
``(B, H·W, C)`` puts two atoms into one dimension; a later ``view`` takes them apart again
(`reshapes`). So the question "which dimension holds the tokens, and on what grid?" is answered by
following atoms, and never by taking the root of a number. Dimensions that join different ranges
(text and image tokens) are one atom with segments.

Sizes are numbers, or sympy expressions where the graph has dynamic shapes.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from todo_compile._torch import is_symbolic, size_expression

Size = Any
"""``int``, or a sympy expression for a symbolic size."""


def plain_size(size: Any) -> Size:
    """A torch size as a number or an expression (no guard is added)."""
    if not is_symbolic(size):
        return int(size)
    expression = size_expression(size)
    return int(expression) if expression.is_Integer else expression


def same(left: Size, right: Size) -> bool:
    """Provably equal sizes."""
    if isinstance(left, int) and isinstance(right, int):
        return left == right
    difference = left - right
    return difference == 0 or getattr(difference, "expand", lambda: difference)() == 0


def quotient(whole: Size, part: Size) -> Size | None:
    """whole / part if `part` provably divides `whole`, else None."""
    if isinstance(whole, int) and isinstance(part, int):
        return whole // part if part and whole % part == 0 else None
    import sympy

    ratio = sympy.cancel(sympy.sympify(whole) / part)
    if sympy.denom(ratio) != 1:
        return None
    return int(ratio) if ratio.is_Integer else ratio


_ids = itertools.count(1)


@dataclass(frozen=True, slots=True)
class Atom:
    """One index range.

    Args:
        size: number of positions.
        role: "H" or "W" for rows and columns of an image, else "".
        ident: which range it is; equal idents (after `Unifier.find`) are position by position
            the same range.
        origin: ident of the range that this one coarsens (every f-th row, every f rows together).
        segments: the parts of a concatenated range, in order; empty for a simple one.
        split_of: the range that this is the outer (0) or inner (1) part of, so that both parts,
            side by side again, are recognised as the whole.
    """

    size: Size
    role: str = ""
    ident: int = 0
    origin: int = 0
    segments: tuple[tuple[Atom, ...], ...] = ()
    split_of: tuple[Atom, int] | None = None


Dim = tuple[Atom, ...]
"""Atoms of one dimension, slowest first. A dimension of size 1 is the empty tuple."""
Axes = tuple[Dim, ...]


def fresh(size: Size, role: str = "", origin: int = 0) -> Atom:
    """A range never seen before."""
    return Atom(size, role, next(_ids), origin)


def renewed(atom: Atom) -> Atom:
    """A range like `atom`, but another one."""
    segments = tuple(tuple(renewed(one) for one in part) for part in atom.segments)
    return Atom(atom.size, atom.role, next(_ids), 0, segments)


def fresh_dim(size: Size, role: str = "") -> Dim:
    """A dimension that is one new range (none at all if its size is 1)."""
    return () if isinstance(size, int) and size == 1 else (fresh(size, role),)


def concatenated(parts: Sequence[Dim]) -> Dim:
    """The dimension that joins `parts` end to end."""
    flat: list[Dim] = []
    for part in parts:
        if len(part) == 1 and part[0].segments:
            flat.extend(part[0].segments)
        else:
            flat.append(part)
    total: Size = sum((dim_size(part) for part in flat), start=0)
    return (Atom(total, "", next(_ids), 0, tuple(flat)),)


def dim_size(dim: Dim) -> Size:
    """Number of positions in a dimension."""
    product: Size = 1
    for atom in dim:
        product = product * atom.size
    return product


class Unifier:
    """Says which ranges are the same although they were met at different places (union-find)."""

    def __init__(self) -> None:
        self._parent: dict[int, int] = {}

    def find(self, ident: int) -> int:
        """Representative of `ident`."""
        root = ident
        while (parent := self._parent.get(root, root)) != root:
            root = parent
        self._parent[ident] = root
        return root

    def unify(self, left: Dim, right: Dim) -> Dim:
        """Two dimensions that are aligned position by position: one description for both.

        The one that knows more (roles) wins. Contradicting grids give a new, roleless range.
        """
        if left == right:
            return left
        if len(left) == len(right) and all(
            same(a.size, b.size) for a, b in zip(left, right, strict=True)
        ):
            merged: list[Atom] = []
            for a, b in zip(left, right, strict=True):
                if a.role and b.role and a.role != b.role:
                    return fresh_dim(dim_size(left))
                self._parent[self.find(b.ident)] = self.find(a.ident)
                better = a if a.role or a.segments or not (b.role or b.segments) else b
                if a.origin == 0 and b.origin != 0 and better.role == b.role:
                    better = b
                merged.append(better)
            return tuple(merged)
        if has_roles(left) and has_roles(right):
            return fresh_dim(dim_size(left))
        if has_roles(right) and not has_roles(left):
            left, right = right, left
        return left

    def same_range(self, left: Dim, right: Dim) -> bool:
        """Whether two dimensions are provably the same ranges in the same order."""
        return len(left) == len(right) and all(
            self.find(a.ident) == self.find(b.ident) and same(a.size, b.size)
            for a, b in zip(left, right, strict=True)
        )


def has_roles(dim: Dim) -> bool:
    """Whether any atom of the dimension is known to be rows or columns."""
    return any(a.role or any(has_roles(s) for s in a.segments) for a in dim)


def grid_of(dim: Dim) -> tuple[Atom, Atom] | None:
    """(slow, fast) image axes if the dimension is one grid of tokens, or frames of it; else None.

    [H][W]       a picture
    [f][H][W]    a video frame after frame: whatever f is, each of its positions has a whole picture
    """
    if len(dim) < 2 or {dim[-2].role, dim[-1].role} != {"H", "W"}:
        return None
    if any(atom.role in ("H", "W") or atom.segments for atom in dim[:-2]):
        return None
    return dim[-2], dim[-1]


def frames_of(dim: Dim) -> Size:
    """How many pictures a dimension that is a grid (`grid_of`) has, one after the other."""
    return dim_size(dim[:-2])


def image_segments(dim: Dim) -> list[tuple[Size, Dim]]:
    """(offset, segment) of every image in a concatenated dimension, in order."""
    found: list[tuple[Size, Dim]] = []
    position: Size = 0
    for segment in dim[0].segments if len(dim) == 1 else ():
        if grid_of(segment) is not None:
            found.append((position, segment))
        position = position + dim_size(segment)
    return found
