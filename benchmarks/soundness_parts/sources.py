"""Where tokens come from: each source makes tokens (B, N, C) of a picture, or of none.

`proved` says what a compiler may conclude: a kernel over rows and columns, a resize, a patchify, a
positional table over both, or the caller's word. The same number of tokens says nothing, nor does
a 1×1 convolution or a view: text could have come the same way.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Grid = tuple[int, int]
WIDTH = 8


@dataclass(frozen=True, slots=True)
class Source:
    """A way from an input to tokens.

    Args:
        stem: the layer with all weights on the way; with its weights 0 all tokens are its bias.
        tokens: (layer, input, grid, table) → (B, N, C); the table is a parameter (N, C).
        shape: grid → shape of the input without the batch.
        proved: tokens may be taken for a picture.
        named: the caller names the grid of so many tokens.
        table: `tokens` reads the table.
        frames: pictures an item of the batch.
        sequence: pictures in one sequence of tokens, frame after frame.
        axes: axes of rows and columns that the caller names of the input.
        sides: where rows and columns, and the frames of a sequence, are in the input.
    """

    stem: Callable[[], nn.Module]
    tokens: Callable[[nn.Module, Tensor, Grid, Tensor], Tensor]
    shape: Callable[[int, int], tuple[int, ...]]
    proved: bool = True
    named: bool = False
    table: bool = False
    frames: int = 1
    sequence: int = 1
    axes: tuple[int, int] | None = None
    sides: tuple[int, ...] = (-2, -1)


def flat(picture: Tensor) -> Tensor:
    """(B, C, H, W) → (B, N, C)."""
    return picture.flatten(2).transpose(1, 2)


def _image(rows: int, columns: int) -> tuple[int, ...]:
    return 3, rows, columns


def _twice(rows: int, columns: int) -> tuple[int, ...]:
    return 3, 2 * rows, 2 * columns


def _sequence(rows: int, columns: int) -> tuple[int, ...]:
    return rows * columns, WIDTH


def _spatial(layer: nn.Module, x: Tensor, _: Grid, __: Tensor) -> Tensor:
    return flat(layer(x))


def _patch_view(layer: nn.Module, x: Tensor, grid: Grid, _: Tensor) -> Tensor:
    """DiT and Flux patchify with a view."""
    rows, columns = grid
    x = x.view(x.shape[0], 3, rows, 2, columns, 2)
    return layer(x.permute(0, 2, 4, 1, 3, 5).reshape(x.shape[0], rows * columns, 12))


def _convolved(layer: nn.Module, x: Tensor, grid: Grid, table: Tensor) -> Tensor:
    """A view that a 3×3 kernel over it, with weights from the table, makes a picture."""
    picture = layer(x).mT.reshape(x.shape[0], WIDTH, *grid)
    kernel = table[:9].mT.reshape(WIDTH, 1, 3, 3)
    return flat(picture + F.conv2d(picture, kernel, padding=1, groups=WIDTH))


def _tabled(layer: nn.Module, x: Tensor, grid: Grid, table: Tensor) -> Tensor:
    """A positional table of rows, and one of columns."""
    rows, columns = table[: grid[0]], table[-grid[1] :]
    positions = rows[:, None, :] + columns[None, :, :]
    return layer(x) + positions.flatten(0, 1)


def _viewed(layer: nn.Module, x: Tensor, grid: Grid, _: Tensor) -> Tensor:
    return layer(x).view(x.shape[0], *grid, WIDTH).flatten(1, 2)


def _conv(kernel: int, channels: int = 3, *, stride: int = 1, padding: int = 0) -> nn.Module:
    return nn.Conv2d(channels, WIDTH, kernel, stride, padding)


SOURCES: Mapping[str, Source] = {
    "conv3": Source(lambda: _conv(3, padding=1), _spatial, _image),
    "patch": Source(lambda: _conv(2, stride=2), _spatial, _twice),
    "patch_view": Source(lambda: nn.Linear(12, WIDTH), _patch_view, _twice),
    "packed": Source(
        lambda: nn.Linear(WIDTH, WIDTH),
        lambda layer, x, _, __: layer(x),
        _sequence,
        named=True,
    ),
    "packed_raw": Source(
        lambda: nn.Linear(WIDTH, WIDTH), lambda _, x, __, ___: x, _sequence, named=True
    ),
    "valid_conv": Source(
        lambda: _conv(3), _spatial, lambda rows, columns: (3, rows + 2, columns + 2)
    ),
    "resized": Source(
        lambda: _conv(1),
        lambda layer, x, grid, _: flat(F.interpolate(layer(x), size=grid, mode="nearest")),
        lambda rows, columns: (3, (rows + 1) // 2, (columns + 1) // 2),
    ),
    "pooled": Source(
        lambda: _conv(1), lambda layer, x, _, __: flat(F.avg_pool2d(layer(x), 2)), _twice
    ),
    "unshuffled": Source(
        lambda: _conv(1, 12), lambda layer, x, _, __: flat(layer(F.pixel_unshuffle(x, 2))), _twice
    ),
    "im2col": Source(
        lambda: nn.Linear(12, WIDTH),
        lambda layer, x, _, __: layer(F.unfold(x, 2, stride=2).mT),
        _twice,
    ),
    "cut": Source(
        lambda: _conv(3, padding=1),
        lambda layer, x, grid, _: flat(layer(x)[:, :, 1 : grid[0] + 1, : grid[1]]),
        lambda rows, columns: (3, rows + 1, columns + 2),
    ),
    "padded": Source(
        lambda: _conv(3, padding=1),
        lambda layer, x, _, __: flat(F.pad(layer(x), (1, 0, 0, 0))),
        lambda rows, columns: (3, rows, columns - 1),
    ),
    "channels_last": Source(
        lambda: _conv(3, padding=1),
        lambda layer, x, _, __: layer(x).permute(0, 2, 3, 1).flatten(1, 2),
        _image,
    ),
    "frames": Source(
        lambda: _conv(3, padding=1),
        lambda layer, x, _, __: flat(layer(x.flatten(0, 1))),
        lambda rows, columns: (2, 3, rows, columns),
        frames=2,
    ),
    "convolved": Source(lambda: nn.Linear(WIDTH, WIDTH), _convolved, _sequence, table=True),
    "tabled": Source(lambda: nn.Linear(WIDTH, WIDTH), _tabled, _sequence, table=True),
    "axes_named": Source(lambda: _conv(1), _spatial, _image, axes=(2, 3)),
    "axes_last": Source(
        lambda: nn.Linear(3, WIDTH),
        lambda layer, x, _, __: layer(x).flatten(1, 2),
        lambda rows, columns: (rows, columns, 3),
        axes=(1, 2),
        sides=(-3, -2),
    ),
    # What no compiler may take for a picture.
    "conv1": Source(lambda: _conv(1), _spatial, _image, proved=False),
    "packed_unnamed": Source(
        lambda: nn.Linear(WIDTH, WIDTH), lambda layer, x, _, __: layer(x), _sequence, proved=False
    ),
    "viewed": Source(lambda: nn.Linear(WIDTH, WIDTH), _viewed, _sequence, proved=False),
    "text_row": Source(
        lambda: _conv(1),
        _spatial,
        lambda rows, columns: (3, 1, rows * columns),
        proved=False,
    ),
    "text_column": Source(
        lambda: _conv(1),
        _spatial,
        lambda rows, columns: (3, rows * columns, 1),
        proved=False,
    ),
    "text_kernel": Source(
        lambda: nn.Conv2d(3, WIDTH, (1, 3), padding=(0, 1)),
        _spatial,
        lambda rows, columns: (3, 1, rows * columns),
        proved=False,
    ),
    "text_unsqueezed": Source(
        lambda: _conv(1, WIDTH),
        lambda layer, x, _, __: layer(x.mT.unsqueeze(2)).squeeze(2).mT,
        _sequence,
        proved=False,
    ),
    "text_conv1d": Source(
        lambda: nn.Conv1d(WIDTH, WIDTH, 3, padding=1),
        lambda layer, x, _, __: layer(x.mT).mT,
        _sequence,
        proved=False,
    ),
    "video": Source(
        lambda: nn.Conv3d(3, WIDTH, 3, padding=1),
        lambda layer, x, _, __: layer(x).flatten(2).mT,
        lambda rows, columns: (3, 2, rows, columns),
        sequence=2,
        sides=(-3, -2, -1),
    ),
}


# Pictures -----------------------------------------------------------------------------------------
def _dealt(x: Tensor, dim: int) -> Tensor:
    length = x.shape[dim]
    order = torch.cat([torch.arange(0, length, 2), torch.arange(1, length, 2)])
    return x.index_select(dim, order)


def _shifted(x: Tensor) -> Tensor:
    shifted = torch.zeros_like(x)
    shifted[..., 1:, :] = x[..., :-1, :]
    return shifted


PICTURES: Mapping[str, Callable[[Tensor], Tensor]] = {
    "none": lambda x: x,
    "rolled": lambda x: x.roll((1, 2), (-2, -1)),
    "flipped": lambda x: x.flip(-1),
    "halves": lambda x: torch.cat([x[..., x.shape[-1] // 2 :], x[..., : x.shape[-1] // 2]], -1),
    "shifted": _shifted,
    "padded_cut": lambda x: F.pad(x, (1, 1, 1, 1))[..., 1:-1, 1:-1],
    "scaled": lambda x: x * 2 + 1,
    "rows_dealt": lambda x: _dealt(x, -2),
    "columns_dealt": lambda x: torch.cat([x[..., 0::2], x[..., 1::2]], -1),
    "rows_sorted": lambda x: x.sort(-2)[0],
}
"""What is done with the input before tokens are made of it."""
SCRAMBLED = ("rows_dealt", "columns_dealt", "rows_sorted")
"""Pictures whose neighbours are none any more: cutting patches of them shows nothing."""


# Orders -------------------------------------------------------------------------------------------
@dataclass(frozen=True, slots=True)
class Order:
    """Another order of tokens.

    Args:
        apply: (tokens, grid, a permutation of N) → tokens.
        picture: what comes out is still a picture in order of position.
        grid: grid → the grid of a sequence of keys, as the image counts rows and columns.
        column_major: the tokens count columns first.
    """

    apply: Callable[[Tensor, Grid, Tensor], Tensor]
    picture: bool = True
    grid: Callable[[Grid], Grid] = lambda grid: grid
    column_major: bool = False


def window(grid: Grid) -> Grid:
    """Sides of a window: half of each side that is even."""
    rows, columns = (side // 2 if side % 2 == 0 else side for side in grid)
    return rows, columns


def _windows(x: Tensor, grid: Grid, _: Tensor) -> Tensor:
    rows, columns = window(grid)
    x = x.view(x.shape[0], grid[0] // rows, rows, grid[1] // columns, columns, x.shape[2])
    return x.transpose(2, 3).flatten(0, 2).flatten(1, 2)


def _columns(x: Tensor, grid: Grid, _: Tensor) -> Tensor:
    return x.view(x.shape[0], *grid, x.shape[2]).transpose(1, 2).flatten(1, 2)


def _image_of(x: Tensor, grid: Grid) -> Tensor:
    return x.unflatten(1, grid)


ORDERS: Mapping[str, Order] = {
    "row": Order(lambda x, _, __: x),
    "column": Order(_columns, column_major=True),
    "column_einsum": Order(
        lambda x, grid, _: torch.einsum("bhwc->bwhc", _image_of(x, grid)).reshape(x.shape),
        column_major=True,
    ),
    "windows": Order(_windows, grid=window),
    "flipped_rows": Order(lambda x, grid, _: _image_of(x, grid).flip(1).flatten(1, 2)),
    "flipped": Order(lambda x, _, __: x.flip(1)),
    "rolled": Order(lambda x, grid, _: _image_of(x, grid).roll((1, 2), (1, 2)).flatten(1, 2)),
    "batch_shuffled": Order(lambda x, _, __: x[torch.arange(x.shape[0] - 1, -1, -1)]),
    "batch_flipped": Order(lambda x, _, __: x.flip(0)),
    # No picture any more.
    "indexed": Order(lambda x, _, p: x[:, p], picture=False),
    "index_select": Order(lambda x, _, p: x.index_select(1, p), picture=False),
    "gathered": Order(
        lambda x, _, p: x.gather(1, p[None, :, None].expand_as(x)), picture=False
    ),
    "embedding": Order(
        lambda x, _, p: torch.stack([F.embedding(p, one) for one in x.unbind(0)]), picture=False
    ),
    "sorted": Order(
        lambda x, _, __: x.gather(1, x.sum(-1, keepdim=True).argsort(1).expand_as(x)),
        picture=False,
    ),
    "one_hot": Order(
        lambda x, _, p: F.one_hot(p, x.shape[1]).to(x.dtype) @ x, picture=False
    ),
    "scrambled": Order(
        lambda x, _, __: x.reshape(x.shape[0], x.shape[2], x.shape[1]).mT, picture=False
    ),
    "halves": Order(
        lambda x, _, __: torch.cat([x[:, x.shape[1] // 2 :], x[:, : x.shape[1] // 2]], 1),
        picture=False,
    ),
    "dealt": Order(
        lambda x, _, __: torch.cat([x[:, 0::2], x[:, 1::2]], 1), picture=False
    ),
    "interleaved": Order(
        lambda x, _, __: torch.stack(x.unflatten(1, (2, -1)).unbind(1), 2).flatten(1, 2),
        picture=False,
    ),
    "rolled_flat": Order(lambda x, _, __: x.roll(1, 1), picture=False),
    "turned_view": Order(
        lambda x, grid, _: _image_of(x, (grid[1], grid[0])).transpose(1, 2).flatten(1, 2),
        picture=False,
    ),
}  # fmt: skip
"""`turned_view` takes columns for rows on the way: on a square image it is `column`."""
