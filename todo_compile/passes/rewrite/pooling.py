"""Pooling of tokens: what one downsampling does, and the marker node that stands for it.

While passes move pooling about, it is one node, ``pool_tokens(x, dim, offset, rows, columns, …)``,
an ordinary Python function that computes the pooling in plain torch: so every intermediate graph
runs and can be compared. `lower` expands it into static ATen slices and reshapes at the end.

    x[…, N, …]  with N = rows·columns  →  x[…, ⌈rows/fr⌉·⌈columns/fc⌉, …]
    of a video: N = frames·rows·columns, and every frame is pooled by itself

Sampling (Smith et al., "ToDo: Token Downsampling", arXiv 2402.13573, section 3):

* ``nearest``: every f-th row and column from the first, the paper's choice.
* ``nearest-exact``: the middle of each cell, the default of the paper's repository. If f divides
  the side it equals ``torch.nn.functional.interpolate(mode="nearest-exact")``.
* ``average``: the mean of each cell.
* ``blend:α``: α · ``nearest-exact`` + (1 − α) · ``average``. The middle token lies where the mean
  lies; a corner would move the keys against the queries. Weights sum to one and act alike on all
  channels, so a blend moves above whatever an average moves above.
* ``staggered``: every f-th row and column, from another first row and column at each site of a
  level: over the depth all tokens are seen. See `stagger_pattern`.

A side that the factor does not divide gives ⌈side/f⌉ cells, so that no row is left out and there is
always one: the last cell is smaller. ``nearest`` keeps its first row, ``average`` takes the mean of
the rows that it has, ``nearest-exact`` centres the whole lattice on the side, and ``staggered``
keeps the last row of the side where its phase lies beyond it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, cast

import torch

from todo_compile.options import Sampling, blend_weight
from todo_compile.passes import ops


def pooled_size(side: int, factor: int) -> int:
    """Cells along a side: ⌈side / factor⌉."""
    return -(-side // factor)


def phase(side: int, factor: int) -> int:
    """First row (or column) that ``nearest-exact`` keeps.

    The lattice of ⌈side/f⌉ rows, f apart, is centred on the side: half of the last cell's size,
    which is ⌊f/2⌋ if f divides the side.
    """
    last_cell = side - (pooled_size(side, factor) - 1) * factor
    return last_cell // 2


@lru_cache(maxsize=256)
def stagger_pattern(row_factor: int, column_factor: int, count: int) -> tuple[tuple[int, int], ...]:
    """(row, column) phases of the first `count` sites of a level, for ``staggered``.

    Farthest-point order on the torus of all phases of a cell: each next phase is the one farthest
    from those already used, the first of equals by rows. So every phase occurs once before any
    occurs twice, and sites that follow each other look at tokens far apart. Factor 2 gives
    (0, 0), (1, 1), (0, 1), (1, 0).
    """
    phases = [(r, c) for r in range(row_factor) for c in range(column_factor)]
    distance = dict.fromkeys(phases, row_factor**2 + column_factor**2)
    order: list[tuple[int, int]] = []
    while len(order) < min(count, len(phases)):
        row, column = max(phases, key=distance.__getitem__)  # the first of equals
        order.append((row, column))
        for r, c in phases:
            down, across = abs(r - row), abs(c - column)
            down, across = min(down, row_factor - down), min(across, column_factor - across)
            distance[r, c] = min(distance[r, c], down**2 + across**2)
    return tuple(order[index % len(order)] for index in range(count))


@dataclass(frozen=True, slots=True)
class Pooling:
    """One downsampling of the tokens of an image.

    Args:
        rows, columns: slow and fast side of the token grid, in tokens.
        row_factor, column_factor: how many rows and columns become one, ≥ 1.
        sampling: which token stands for a cell.
        offset: tokens before the image's in a joined text-and-image sequence; they are kept, as
            are those after it.
        row_phase, column_phase: first row and column that ``staggered`` keeps, below the factor.
        frames: grids that follow each other.
    """

    rows: int
    columns: int
    row_factor: int
    column_factor: int
    sampling: Sampling = "nearest"
    offset: int = 0
    row_phase: int = 0
    column_phase: int = 0
    frames: int = 1

    @property
    def tokens(self) -> int:
        """Image tokens before pooling."""
        return self.frames * self.rows * self.columns

    @property
    def pooled_rows(self) -> int:
        return pooled_size(self.rows, self.row_factor)

    @property
    def pooled_columns(self) -> int:
        return pooled_size(self.columns, self.column_factor)

    @property
    def pooled_tokens(self) -> int:
        """Image tokens after pooling."""
        return self.frames * self.pooled_rows * self.pooled_columns

    @property
    def is_ragged(self) -> bool:
        """Whether cells differ in size: a factor does not divide its side into equal cells."""
        sides = ((self.rows, self.row_factor), (self.columns, self.column_factor))
        return any(side % factor and side > factor for side, factor in sides)

    @property
    def pools(self) -> bool:
        """Whether it changes anything."""
        return (self.row_factor, self.column_factor) != (1, 1)

    @property
    def picks_tokens(self) -> bool:
        """Whether pooling only selects tokens, so that it commutes with any token-wise function."""
        return self.sampling in ("nearest", "nearest-exact", "staggered")

    @property
    def description(self) -> str:
        """The sampling for people: ``nearest-exact``, or ``nearest +1,+0`` with the phase."""
        if self.sampling == "staggered":
            return f"nearest +{self.row_phase},+{self.column_phase}"
        return self.sampling

    def transposed(self) -> Pooling:
        """The same pooling where the tokens count columns first."""
        return Pooling(
            self.columns, self.rows, self.column_factor, self.row_factor, self.sampling,
            self.offset, self.column_phase, self.row_phase, self.frames,
        )  # fmt: skip

    def length_after(self, length: int) -> int:
        """Length of a token axis after pooling, text included."""
        return length - self.tokens + self.pooled_tokens

    def at(self, offset: int) -> Pooling:
        """The same pooling for an image segment that begins at `offset`."""
        return replace(self, offset=offset)

    def arguments(self) -> tuple[Any, ...]:
        """Arguments of ``pool_tokens`` after the tensor and its axis."""
        return (
            self.offset, self.rows, self.columns, self.row_factor, self.column_factor,
            self.sampling, self.row_phase, self.column_phase, self.frames,
        )  # fmt: skip

    @staticmethod
    def of(node: torch.fx.Node) -> tuple[torch.fx.Node, int, Pooling]:
        """(source, axis, pooling) of a ``pool_tokens`` node."""
        source, dim, offset, rows, columns, row_factor, column_factor, sampling, *more = node.args
        assert isinstance(source, torch.fx.Node)
        spec = Pooling(
            cast("int", rows),
            cast("int", columns),
            cast("int", row_factor),
            cast("int", column_factor),
            cast("Sampling", sampling),
            cast("int", offset),
            *cast("list[int]", more),
        )
        return source, cast("int", dim), spec


def is_pool(node: torch.fx.Node) -> bool:
    """Whether `node` is a pooling that has not been lowered yet."""
    return node.op == "call_function" and node.target is pool_tokens


def pool_tokens(
    x: torch.Tensor,
    dim: int,
    offset: int,
    rows: int,
    columns: int,
    row_factor: int,
    column_factor: int,
    sampling: Sampling,
    row_phase: int = 0,
    column_phase: int = 0,
    frames: int = 1,
) -> torch.Tensor:
    """Pool the tokens on axis `dim` of `x`; the arguments are those of `Pooling`."""
    pooling = Pooling(
        rows, columns, row_factor, column_factor, sampling, offset, row_phase, column_phase, frames
    )
    steps = lowering_steps(list(x.shape), dim, [pooling])
    values: list[torch.Tensor] = [x]
    for target, arguments, _ in steps:
        values.append(target(*(resolve(a, values) for a in arguments)))
    return values[-1]


@dataclass(frozen=True, slots=True)
class Ref:
    """The result of an earlier step (0 is the input)."""

    index: int


Step = tuple[Any, tuple[Any, ...], tuple[Any, ...]]
"""(ATen call, arguments with `Ref` for tensors, shape of the result)."""


def resolve(argument: Any, values: list[Any]) -> Any:
    """`argument` with every `Ref` replaced by the value it stands for."""
    if isinstance(argument, Ref):
        return values[argument.index]
    if isinstance(argument, list):
        return [resolve(a, values) for a in cast("list[Any]", argument)]
    return argument


class _Steps:
    """Collects the ATen calls of one pooling; sizes other than the token axis may be symbolic."""

    def __init__(self, shape: list[Any]) -> None:
        self.steps: list[Step] = []
        self.shapes: list[list[Any]] = [shape]

    def add(self, target: Any, arguments: tuple[Any, ...], shape: list[Any]) -> Ref:
        self.steps.append((target, arguments, tuple(shape)))
        self.shapes.append(shape)
        return Ref(len(self.steps))

    def shape(self, ref: Ref) -> list[Any]:
        return self.shapes[ref.index]

    def cut(self, x: Ref, dim: int, start: int, stop: int, step: int = 1) -> Ref:
        shape = list(self.shape(x))
        whole = shape[dim]
        shape[dim] = -(-(stop - start) // step)
        if start == 0 and stop == whole and step == 1:
            return x
        return self.add(ops.SLICE, (x, dim, start, ops.END if stop == whole else stop, step), shape)

    def view(self, x: Ref, shape: list[Any]) -> Ref:
        return self.add(ops.RESHAPE, (x, list(shape)), shape)

    def join(self, parts: list[Ref], dim: int) -> Ref:
        if len(parts) == 1:
            return parts[0]
        shape = list(self.shape(parts[0]))
        shape[dim] = sum(self.shape(p)[dim] for p in parts)
        return self.add(ops.CAT, (list(parts), dim), shape)

    def pick(self, x: Ref, dim: int, factor: int, start: int) -> Ref:
        """Every `factor`-th along `dim` from `start`; what lies beyond the side is its last one."""
        side = self.shape(x)[dim]
        whole = -(-(side - start) // factor)
        if whole == pooled_size(side, factor):
            return self.cut(x, dim, start, side, factor)
        last = self.cut(x, dim, side - 1, side)
        return self.join([self.cut(x, dim, start, side, factor), last] if whole else [last], dim)

    def blend(self, x: Ref, y: Ref, weight: float) -> Ref:
        """weight · x + (1 − weight) · y."""
        shape = self.shape(x)
        x, y = (self.add(ops.MUL, (t, w), shape) for t, w in ((x, weight), (y, 1 - weight)))
        return self.add(ops.ADD, (x, y), shape)

    def average(self, x: Ref, dim: int, factor: int) -> Ref:
        """Means of `factor` neighbours along `dim`; the last cell may be smaller."""
        if factor == 1:
            return x
        shape = self.shape(x)
        side = shape[dim]
        whole = side // factor * factor
        parts: list[Ref] = []
        if whole:
            main = self.cut(x, dim, 0, whole)
            cells = [*shape[:dim], whole // factor, factor, *shape[dim + 1 :]]
            main = self.view(main, cells)
            parts.append(
                self.add(ops.MEAN, (main, [dim + 1]), [*cells[: dim + 1], *cells[dim + 2 :]])
            )
        if whole < side:
            rest = self.cut(x, dim, whole, side)
            reduced = list(self.shape(rest))
            reduced[dim] = 1
            parts.append(self.add(ops.MEAN, (rest, [dim], True), reduced))
        return self.join(parts, dim)


def _pool_grid(steps: _Steps, grid: Ref, dim: int, pooling: Pooling) -> Ref:
    """Rows on axis `dim` and columns on the next, both pooled."""
    sides = (
        (dim, pooling.rows, pooling.row_factor, pooling.row_phase),
        (dim + 1, pooling.columns, pooling.column_factor, pooling.column_phase),
    )
    picked = averaged = grid
    for axis, side, factor, own in sides:
        if not pooling.picks_tokens:
            averaged = steps.average(averaged, axis, factor)
        if pooling.sampling != "average" and factor > 1:
            exact = pooling.sampling not in ("nearest", "staggered")
            picked = steps.pick(picked, axis, factor, phase(side, factor) if exact else own)
    if pooling.picks_tokens:
        return picked
    if pooling.sampling == "average":
        return averaged
    return steps.blend(picked, averaged, blend_weight(pooling.sampling))


def lowering_steps(shape: list[Any], dim: int, poolings: Sequence[Pooling]) -> list[Step]:
    """The static ATen calls that pool axis `dim` of a tensor of `shape`.

    Args:
        poolings: of several images on the axis, in their order; offsets count its tokens.
    """
    steps = _Steps(list(shape))
    x = Ref(0)
    length = shape[dim]
    parts: list[Ref] = []
    done = 0
    for pooling in poolings:
        before, after = pooling.offset, pooling.offset + pooling.tokens
        if before > done:
            parts.append(steps.cut(x, dim, done, before))
        image = steps.cut(x, dim, before, after)
        ahead = [pooling.frames] if pooling.frames > 1 else []
        sides = [*ahead, pooling.rows, pooling.columns]
        grid = steps.view(image, [*shape[:dim], *sides, *shape[dim + 1 :]])
        grid = _pool_grid(steps, grid, dim + len(ahead), pooling)
        parts.append(steps.view(grid, [*shape[:dim], pooling.pooled_tokens, *shape[dim + 1 :]]))
        done = after
    if done != length:
        parts.append(steps.cut(x, dim, done, length))
    steps.join(parts, dim)
    return steps.steps
