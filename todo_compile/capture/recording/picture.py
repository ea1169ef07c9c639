"""Which axes of what a denoiser takes are rows and columns: asked of the pipeline.

The pipeline draws noise, packs it, scales it, puts other things beside it. When the noise is
replaced by one that is everywhere the number of its row, what reaches the denoiser says of every
element which row it is in; so with columns::

    noise (1, 16, h, w) = row    →    the pipeline    →    hidden_states[0, n, c] = a·row + b

a and b are what noise of ones and of zeros give in the same place: whatever the pipeline does is
linear in the noise. So a grid has evidence about position, for packed tokens too, and never rests
on a number of tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch.overrides import TorchFunctionMode

from todo_compile.options import TokenGrid

_EXACT = 0.05  # of a row; noise is in fp32, and images have thousands of them at most


@dataclass(frozen=True)
class Picture:
    """The image in what a denoiser is called with.

    Attributes:
        cells: (rows, columns) of the noise that the pipeline draws.
        axes: tensor by name → its (row, column) axes.
        packed: tensor by name → (rows, columns) of tokens on its last axis but one, in the order of
            rows, and nothing else there; (frames, rows, columns) where each frame's follow those of
            the one before.
        partly: tensors whose tokens are the image's in part only, or in another order.
    """

    cells: tuple[int, int]
    axes: Mapping[str, tuple[int, int]]
    packed: Mapping[str, TokenGrid]
    partly: tuple[str, ...] = ()


def look(run: Callable[[Any], Mapping[str, torch.Tensor]]) -> Picture | None:
    """Find the image.

    Args:
        run: runs the pipeline within a torch function mode and gives the denoiser's tensors by
            name, in fp32.

    Returns:
        None if the pipeline draws no noise of rows and columns.
    """
    kinds: tuple[_Kind, ...] = ("zeros", "ones", "rows", "columns")
    modes = {kind: _Noise(kind) for kind in kinds}
    found = {kind: run(mode) for kind, mode in modes.items()}
    cells = modes["rows"].cells
    if cells is None:
        return None
    axes: dict[str, tuple[int, int]] = {}
    packed: dict[str, TokenGrid] = {}
    partly: list[str] = []
    for name, zero in found["zeros"].items():
        if not zero.is_floating_point() or zero.dim() < 3:
            continue
        scale = found["ones"][name] - zero
        there = scale.abs() > scale.abs().max() * 1e-3
        if not bool(there.any()):
            continue
        rows = torch.where(there, (found["rows"][name] - zero) / scale, torch.nan)
        columns = torch.where(there, (found["columns"][name] - zero) / scale, torch.nan)
        if (sides := _separate(rows, columns, cells)) is not None:
            axes[name] = sides
        elif (grid := _packed(rows, columns, cells)) is not None:
            packed[name] = grid
        else:
            partly.append(name)
    return Picture(cells, axes, packed, tuple(partly))


def cells_of(run: Callable[[Any], object]) -> tuple[int, int] | None:
    """(rows, columns) of the noise that a pipeline draws; as `look`."""
    mode = _Noise("zeros")
    run(mode)
    return mode.cells


_Kind = Literal["zeros", "ones", "rows", "columns"]


class _Noise(TorchFunctionMode):
    """Replaces normal noise of an image's shape by what says where it is."""

    def __init__(self, kind: _Kind) -> None:
        super().__init__()
        self._kind = kind
        self.cells: tuple[int, int] | None = None

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
        rows, columns = self.cells = (value.shape[-2], value.shape[-1])
        match self._kind:
            case "zeros":
                return torch.zeros_like(value)
            case "ones":
                return torch.ones_like(value)
            case "rows":
                place = torch.arange(rows, dtype=value.dtype)[:, None]
            case _:
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


def _packed(rows: torch.Tensor, columns: torch.Tensor, cells: tuple[int, int]) -> TokenGrid | None:
    """Grid of tokens on the last axis but one, if they are patches of the image and all of it."""
    tokens = rows.shape[-2]
    if bool(rows.isnan().any()):
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
        inside = (
            ((rows + _EXACT) / high).floor() - down,
            ((columns + _EXACT) / wide).floor() - across,
        )
        if all(bool((off == 0).all()) for off in inside):
            return grid
    return None
