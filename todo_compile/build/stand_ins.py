"""Which token stands for each, in plain torch: what a rewrite is compared with.

Written by the definition of every sampling, with index lists, `avg_pool2d` and `repeat_interleave`.
It shares nothing with the passes, which make static slices, reshapes and means.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F

if TYPE_CHECKING:
    from todo_compile.passes.report import SiteReport


@dataclass(frozen=True, slots=True)
class Image:
    """The image's tokens on an axis, and how they are subsampled.

    Args:
        offset: tokens before them.
        grid, factor, phase: (rows, columns).
        column_major: tokens are counted down the columns.
        sampling: which token stands for a cell.
        frames: such grids, one after the other.
    """

    offset: int
    grid: tuple[int, int]
    factor: tuple[int, int]
    phase: tuple[int, int]
    column_major: bool
    sampling: str
    frames: int = 1

    @staticmethod
    def of(row: SiteReport) -> tuple[Image, ...]:
        """All of a rewritten site."""
        return tuple(
            Image(
                one.image.offset, one.grid, one.factor, one.image.phase, one.image.column_major,
                one.image.sampling, one.frames,
            )
            for one in (row, *row.beside)
            if one.grid is not None and one.image is not None
        )  # fmt: skip

    @property
    def tokens(self) -> int:
        """Before subsampling."""
        return self.frames * self.grid[0] * self.grid[1]

    @property
    def cells(self) -> tuple[int, int]:
        """(rows, columns) after subsampling: the last cell of a side may be smaller."""
        rows, columns = (-(-s // f) for s, f in zip(self.grid, self.factor, strict=True))
        return rows, columns

    def kept(self, dim: int) -> list[int]:
        """Rows (0) or columns (1) that stand for their cells, where tokens are picked."""
        side, factor, count = self.grid[dim], self.factor[dim], self.cells[dim]
        if self.sampling == "nearest":
            start = 0
        elif self.sampling == "staggered":
            start = self.phase[dim]
        else:  # the middle of every cell, in a lattice that is centred on the side
            start = (side - (count - 1) * factor) // 2
        return [min(start + index * factor, side - 1) for index in range(count)]


def subsample(x: torch.Tensor, axis: int, images: Sequence[Image]) -> torch.Tensor:
    """(…, N, …) with fewer of the images' tokens on `axis`; the others stay."""
    for image in reversed(images):  # those before it keep their places
        x = _replaced(x, axis, image, image.grid, _picture)
    return x


def spread(x: torch.Tensor, axis: int, images: Sequence[Image]) -> torch.Tensor:
    """Back to N tokens: each has what stands for it."""
    for image in images:
        x = _replaced(x, axis, image, image.cells, _repeated)
    return x


def every(x: torch.Tensor, axis: int, step: int) -> torch.Tensor:
    """Every `step`-th index of an axis."""
    return x.index_select(axis, torch.arange(0, x.shape[axis], step, device=x.device))


def _replaced(
    x: torch.Tensor, axis: int, image: Image, grid: tuple[int, int], change: object
) -> torch.Tensor:
    rows, columns = grid
    moved = x.movedim(axis, -1)
    tokens = image.frames * rows * columns
    rest = moved.shape[-1] - image.offset - tokens
    before, own, after = moved.split([image.offset, tokens, rest], dim=-1)
    if image.column_major:
        planes = own.reshape(-1, columns, rows).transpose(-1, -2)
    else:
        planes = own.reshape(-1, rows, columns)
    planes = change(planes, image)  # type: ignore[operator]
    if image.column_major:
        planes = planes.transpose(-1, -2)
    own = planes.reshape(*own.shape[:-1], -1)
    return torch.cat([before, own, after], dim=-1).movedim(-1, axis)


def _picture(planes: torch.Tensor, image: Image) -> torch.Tensor:
    """(P, rows, columns) → (P, cells down, cells across)."""
    if image.sampling == "average":
        return _means(planes, image)
    picked = planes
    for dim in (0, 1):
        index = torch.tensor(image.kept(dim), device=planes.device)
        picked = picked.index_select(dim + 1, index)
    if not image.sampling.startswith("blend:"):
        return picked
    weight = float(image.sampling.removeprefix("blend:"))
    mixed = weight * picked.float() + (1 - weight) * _means(planes.float(), image)
    return mixed.to(planes.dtype)


def _means(planes: torch.Tensor, image: Image) -> torch.Tensor:
    """Of the rows and columns that each cell has, rounded once."""
    wide = planes if planes.dtype is torch.float64 else planes.float()
    means = F.avg_pool2d(
        wide[None], image.factor, image.factor, ceil_mode=True, count_include_pad=False
    )
    return means[0].to(planes.dtype)


def _repeated(planes: torch.Tensor, image: Image) -> torch.Tensor:
    for dim in (0, 1):
        planes = planes.repeat_interleave(image.factor[dim], dim + 1)
        planes = planes.narrow(dim + 1, 0, image.grid[dim])
    return planes
