"""Which axes of what a denoiser takes are rows and columns: asked of the pipeline.

The pipeline draws noise, packs it, scales it, puts other things beside it. When the noise is
replaced by one that is everywhere the number of its row, what reaches the denoiser says of every
element which row it is in; so with columns::

    noise (1, 16, h, w) = row    →    the pipeline    →    hidden_states[0, n, c] = a·row + b

a and b are what noise of ones and of zeros give in the same place: whatever the pipeline does is
linear in the noise. So a grid has evidence about position, for packed tokens too, and never rests
on a number of tokens.

Where other tokens lie beside the noise's, each picture that the pipeline lets its autoencoder
encode (a reference) is replaced in the same way: its tokens have evidence of their own then::

    hidden_states[0, n, :]       n < 96: the noise's, 8×12       n ≥ 96: the picture's, 52×78
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import groupby
from typing import Any, Literal

import torch
from torch.overrides import TorchFunctionMode

from todo_compile.options import Grid, TokenGrid

_EXACT = 0.05  # of a row; noise is in fp32, and images have thousands of them at most
_MOST_PICTURES = 16


@dataclass(frozen=True)
class Picture:
    """The image in what a denoiser is called with.

    Attributes:
        cells: (rows, columns) of the noise that the pipeline draws.
        axes: tensor by name → its (row, column) axes.
        packed: tensor by name → (rows, columns) of tokens on its last axis but one, in the order of
            rows, and nothing else there; (frames, rows, columns) where each frame's follow those of
            the one before. Where other pictures follow or come before, those of each, in order.
        partly: tensors whose tokens are the image's in part only, or in another order.
        drawn: what the noise alone has of `packed`.
    """

    cells: tuple[int, int]
    axes: Mapping[str, tuple[int, int]]
    packed: Mapping[str, TokenGrid]
    partly: tuple[str, ...] = ()
    drawn: Grid | None = None


@dataclass(frozen=True)
class _Places:
    """Where a source, noise or a picture, is in the denoiser's tensors.

    Args:
        cells: its (rows, columns).
        rows, columns: tensor by name → row and column of every element; NaN where it is not.
        pictures: that were encoded.
    """

    cells: tuple[int, int] | None
    rows: Mapping[str, torch.Tensor]
    columns: Mapping[str, torch.Tensor]
    pictures: int


Run = Callable[[Any], Mapping[str, torch.Tensor]]


def look(run: Run) -> Picture | None:
    """Find the image.

    Args:
        run: runs the pipeline within a torch function mode and gives the denoiser's tensors by
            name, in fp32.

    Returns:
        None if the pipeline draws no noise of rows and columns.
    """
    noise = _places(run, None)
    if noise.cells is None:
        return None
    axes: dict[str, tuple[int, int]] = {}
    packed: dict[str, TokenGrid] = {}
    others: list[str] = []
    drawn: list[Grid] = []
    for name, rows in noise.rows.items():
        columns = noise.columns[name]
        if (sides := _separate(rows, columns, noise.cells)) is not None:
            axes[name] = sides
        elif (grid := _packed(rows, columns, noise.cells)) is not None:
            packed[name] = grid
            drawn.append(grid)
        else:
            others.append(name)
    partly: list[str] = []
    number = min(noise.pictures, _MOST_PICTURES) if others else 0
    sources = [noise, *(_places(run, index) for index in range(number))]
    for name in others:
        found = _in_a_row(name, sources)
        if found is None:
            partly.append(name)
            continue
        packed[name] = tuple(grid for _, grid in found)
        drawn += [grid for source, grid in found if source is noise]
    return Picture(noise.cells, axes, packed, tuple(partly), next(iter(drawn), None))


def _places(run: Run, picture: int | None) -> _Places:
    """Where the noise is, or the `picture`-th that the pipeline encodes."""
    kinds: tuple[_Kind, ...] = ("zeros", "ones", "rows", "columns")
    modes = {kind: _Noise(kind, picture) for kind in kinds}
    found = {kind: run(mode) for kind, mode in modes.items()}
    rows: dict[str, torch.Tensor] = {}
    columns: dict[str, torch.Tensor] = {}
    for name, zero in found["zeros"].items():
        if not zero.is_floating_point() or zero.dim() < 3:
            continue
        scale = found["ones"][name] - zero
        there = scale.abs() > scale.abs().max() * 1e-3
        if not bool(there.any()):
            continue
        rows[name] = torch.where(there, (found["rows"][name] - zero) / scale, torch.nan)
        columns[name] = torch.where(there, (found["columns"][name] - zero) / scale, torch.nan)
    mode = modes["rows"]
    cells = mode.cells if picture is None else mode.pictures.get(picture)
    return _Places(cells, rows, columns, len(mode.pictures))


def _in_a_row(name: str, sources: list[_Places]) -> list[tuple[_Places, Grid]] | None:
    """Grids of the pictures whose tokens make up a tensor, one after the other; None if not so."""
    there: list[tuple[_Places, torch.Tensor]] = []
    for source in sources:
        if name in source.rows:
            seen = ~source.rows[name].isnan()
            there.append((source, seen.movedim(-2, 0).flatten(1).any(1)))
    owners = torch.stack([seen for _, seen in there]).long()
    if not bool((owners.sum(0) == 1).all()):
        return None
    found: list[tuple[_Places, Grid]] = []
    start = 0
    for index, run in groupby(owners.argmax(0).tolist()):
        source, tokens = there[index][0], len(list(run))
        part = slice(start, start + tokens)
        rows, columns = (t[name][..., part, :] for t in (source.rows, source.columns))
        grid = None if source.cells is None else _packed(rows, columns, source.cells)
        if grid is None:
            return None
        found.append((source, grid))
        start += tokens
    return found


def cells_of(run: Callable[[Any], object]) -> tuple[int, int] | None:
    """(rows, columns) of the noise that a pipeline draws; as `look`."""
    mode = _Noise("zeros")
    run(mode)
    return mode.cells


_Kind = Literal["zeros", "ones", "rows", "columns"]


class _Noise(TorchFunctionMode):
    """Replaces normal noise of an image's shape by what says where it is.

    Args:
        kind: what by.
        picture: the encoded picture that is replaced instead; noise is zero then.
    """

    def __init__(self, kind: _Kind, picture: int | None = None) -> None:
        super().__init__()
        self._kind: _Kind = kind
        self._picture = picture
        self.cells: tuple[int, int] | None = None
        self.pictures: dict[int, tuple[int, int]] = {}

    def encoded(self, number: int, latent: torch.Tensor) -> torch.Tensor:
        """What the autoencoder gives for the picture that it encodes after `number` others."""
        self.pictures[number] = latent.shape[-2], latent.shape[-1]
        return _coded(latent, self._kind) if number == self._picture else latent

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        del types
        value = func(*args, **(kwargs or {}))
        if func is not torch.randn or value.dim() < 4:
            return value
        # Of several draws (an image that is noised first) the last is what is denoised.
        self.cells = (value.shape[-2], value.shape[-1])
        return _coded(value, self._kind if self._picture is None else "zeros")


def _coded(value: torch.Tensor, kind: _Kind) -> torch.Tensor:
    """A tensor of the same shape that says where its elements are."""
    rows, columns = value.shape[-2:]
    match kind:
        case "zeros":
            return torch.zeros_like(value)
        case "ones":
            return torch.ones_like(value)
        case "rows":
            place = torch.arange(rows, dtype=value.dtype)[:, None]
        case "columns":
            place = torch.arange(columns, dtype=value.dtype)[None]
    return place.expand(value.shape).clone()


def _separate(
    rows: torch.Tensor, columns: torch.Tensor, cells: tuple[int, int]
) -> tuple[int, int] | None:
    """(row, column) axes of a tensor that has both."""
    found: list[int] = []
    for place, side in ((rows, cells[0]), (columns, cells[1])):
        fitting = [d for d in range(1, place.dim()) if _counts(place, d, side)]
        if side == 1 or len(fitting) != 1:
            return None
        found.append(fitting[0])
    return (found[0], found[1]) if found[0] != found[1] else None


def _counts(place: torch.Tensor, dim: int, side: int) -> bool:
    """Whether `place` is the position on axis `dim` wherever it is anything."""
    if place.shape[dim] != side:
        return False
    shape = [side if d == dim else 1 for d in range(place.dim())]
    wanted = torch.arange(side, dtype=place.dtype).view(shape)
    # Something of the image in every row: elsewhere there may be masks and other pictures.
    everywhere = bool((~place.isnan()).movedim(dim, 0).flatten(1).any(1).all())
    return everywhere and bool(((place - wanted).abs().nan_to_num() < _EXACT).all())


def _packed(rows: torch.Tensor, columns: torch.Tensor, cells: tuple[int, int]) -> Grid | None:
    """Grid of tokens on the last axis but one, if they are patches of the image and all of it.

    Something else may be among each token's channels, as a mask or another picture.
    """
    tokens = rows.shape[-2]
    if not bool((~rows.isnan()).movedim(-2, 0).flatten(1).any(1).all()):
        return None  # other tokens among them
    for frames in (n for n in range(1, tokens // 2) if tokens % n == 0):
        if (grid := _in_frames(rows, columns, cells, tokens // frames)) is not None:
            return grid if frames == 1 else (frames, *grid)
    return None


def _in_frames(
    rows: torch.Tensor, columns: torch.Tensor, cells: tuple[int, int], tokens: int
) -> tuple[int, int] | None:
    """(rows, columns) of `tokens` tokens, if every so many are patches of the whole image."""
    for high in range(1, cells[0] + 1):
        wide = cells[0] * cells[1] / (tokens * high)
        if cells[0] % high or wide < 1 or not wide.is_integer() or cells[1] % int(wide):
            continue
        grid = (cells[0] // high, cells[1] // int(wide))
        place = torch.arange(rows.shape[-2], dtype=rows.dtype) % tokens
        down, across = (place // grid[1]).floor()[:, None], (place % grid[1])[:, None]
        if _fills(rows - high * down, high) and _fills(columns - wide * across, int(wide)):
            return grid
    return None


def _fills(inside: torch.Tensor, side: int) -> bool:
    """Whether the cells of each token are those of a patch, from its first to its last."""
    each = inside.movedim(-2, 0).flatten(1)
    first, last = each.nan_to_num(torch.inf).amin(1), each.nan_to_num(-torch.inf).amax(1)
    return bool((first.abs() < _EXACT).all()) and bool(((last - side + 1).abs() < _EXACT).all())
