"""Tokens in another order, twice, interleaved, in windows: what is still a grid, and of whom."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import oracle
import pytest
import torch
from graphs import DIALECTS, ImageAttention, assert_close, capture, image, only_site
from torch.nn.functional import pad

from todo_compile.options import PlanOptions

ROWS, COLUMNS = 8, 12
HALF = PlanOptions(factors=((2, 2),))


class Ordered(ImageAttention):
    """Attention over what `order` makes of a convolved picture, (B, C, H, W) → (B, N, C)."""

    def __init__(self, order: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.order = order

    def tokens(self, image: torch.Tensor) -> torch.Tensor:
        return self.order(self.stem(image))


def flat(picture: torch.Tensor) -> torch.Tensor:
    return picture.flatten(2).mT


def windows(picture: torch.Tensor, side: int = 4) -> torch.Tensor:
    """(B, C, H, W) → (B · H/side · W/side, side², C), as Swin does."""
    b, c, h, w = picture.shape
    parts = picture.view(b, c, h // side, side, w // side, side)
    return parts.permute(0, 2, 4, 3, 5, 1).reshape(-1, side * side, c)


def into_channels(picture: torch.Tensor) -> torch.Tensor:
    """Every 2×2 cells are the channels of one."""
    b, c, h, w = picture.shape
    parts = picture.view(b, c, h // 2, 2, w // 2, 2).permute(0, 1, 3, 5, 2, 4)
    return parts.reshape(b, c * 4, h // 2, w // 2)[:, :8]


def every_fourth(picture: torch.Tensor) -> torch.Tensor:
    """Rows 0, 2, 4, … and columns 0, 2, …: a dilated window; what lies between is in the batch."""
    b, c, h, w = picture.shape
    parts = picture.view(b, c, h // 2, 2, w // 2, 2).permute(0, 3, 5, 2, 4, 1)
    return parts.reshape(b * 4, h * w // 4, c)


GRIDS: dict[str, tuple[Callable[[torch.Tensor], torch.Tensor], tuple[int, int]]] = {
    "mirrored": (lambda x: flat(x.flip(3)), (ROWS, COLUMNS)),
    "upside down": (lambda x: flat(x.flip([2])), (ROWS, COLUMNS)),
    "turned around": (lambda x: flat(x).flip(1), (ROWS, COLUMNS)),
    "windows": (windows, (4, 4)),
    "windows of a mirrored picture": (lambda x: windows(x.flip(2)), (4, 4)),
    "cells as channels": (lambda x: flat(into_channels(x)), (ROWS // 2, COLUMNS // 2)),
    "dilated windows": (every_fourth, (ROWS // 2, COLUMNS // 2)),
    "every second row": (lambda x: flat(x[:, :, ::2]), (ROWS // 2, COLUMNS)),
    "strips of four rows": (
        lambda x: x.permute(0, 2, 3, 1).reshape(-1, 4 * COLUMNS, x.shape[1]), (4, COLUMNS)
    ),
    "stacked and one taken": (lambda x: torch.stack([x, -x], 1).flatten(3).mT[:, 1],
                              (ROWS, COLUMNS)),
    "repeated in the batch": (lambda x: flat(x).repeat(2, 1, 1), (ROWS, COLUMNS)),
    "repeated in the batch, each": (lambda x: flat(x).repeat_interleave(2, 0), (ROWS, COLUMNS)),
}  # fmt: skip


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("name", GRIDS)
def test_still_a_grid(name: str, dialect: str) -> None:
    order, grid = GRIDS[name]
    model, x = Ordered(order), image(ROWS, COLUMNS, batch=2)
    captured = capture(model, (x,), dialect)
    site = only_site(captured.rewrite(HALF))
    assert (site.action, site.grid, site.factor) == ("rewritten", grid, (2, 2)), site.reason
    model.pool = lambda t: oracle.subsample(t, 2, grid, (2, 2))
    with torch.no_grad():
        assert_close(captured.run(), model(x))


NO_GRIDS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "repeated": lambda x: flat(x).repeat(1, 2, 1),
    "each repeated": lambda x: flat(x).repeat_interleave(2, 1),
    "two pictures interleaved": lambda x: torch.stack([flat(x), -flat(x)], 2).flatten(1, 2),
    "rows of two pictures interleaved": lambda x: flat(torch.stack([x, -x], 3).flatten(2, 3)),
    "the batch between the tokens": lambda x: flat(x).transpose(0, 1).reshape(1, -1, x.shape[1]),
    "rolled": lambda x: flat(x.roll(2, 3)),
    "rolled as tokens": lambda x: flat(x).roll(5, 1),
    "another width": lambda x: flat(x)[:, : ROWS * COLUMNS - 12].clone(),
    "columns in the channels": lambda x: x.permute(0, 2, 1, 3).flatten(2)[..., :8].repeat(1, 4, 1),
    "shuffled pairs": lambda x: flat(x).unflatten(1, (-1, 2)).flip(2).flatten(1, 2).clone(),
    "in a snake": lambda x: torch.stack([x[:, :, ::2], x[:, :, 1::2].flip(3)], 3).flatten(2).mT,
    "shifted windows": lambda x: windows(x.roll((-2, -2), (2, 3))),
    "shifted windows, padded": lambda x: windows(pad(x.roll((-2, -2), (2, 3)), (0, 4, 0, 4))),
}


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("name", NO_GRIDS)
def test_no_grid_any_more(name: str, dialect: str) -> None:
    model, x = Ordered(NO_GRIDS[name]), image(ROWS, COLUMNS, batch=2)
    captured = capture(model, (x,), dialect)
    site = only_site(captured.rewrite(HALF))
    assert site.action == "refused", site
    with torch.no_grad():
        assert_close(captured.run(), model(x))


@pytest.mark.parametrize("dialect", DIALECTS)
def test_pictures_that_are_joined_are_pooled_one_by_one(dialect: str) -> None:
    model = Ordered(lambda x: torch.cat([flat(x), flat(x)], 1))
    x, whole = image(ROWS, COLUMNS, batch=2), (ROWS, COLUMNS)
    captured = capture(model, (x,), dialect)
    site = only_site(captured.rewrite(HALF))
    assert (site.action, site.grid, site.beside[0].grid) == ("rewritten", whole, whole)

    def pool(t: torch.Tensor) -> torch.Tensor:
        second = oracle.subsample(t, 2, whole, (2, 2), offset=ROWS * COLUMNS)
        return oracle.subsample(second, 2, whole, (2, 2))

    model.pool = pool
    with torch.no_grad():
        assert_close(captured.run(), model(x))


ONE_AFTER_THE_OTHER: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "two pictures": lambda x: torch.stack([flat(x), -flat(x)], 1).flatten(1, 2),
    "the batch in the tokens": lambda x: flat(x).reshape(1, -1, x.shape[1]),
}


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("name", ONE_AFTER_THE_OTHER)
def test_whole_pictures_one_after_the_other_are_frames(name: str, dialect: str) -> None:
    model, x = Ordered(ONE_AFTER_THE_OTHER[name]), image(ROWS, COLUMNS, batch=2)
    captured = capture(model, (x,), dialect)
    site = only_site(captured.rewrite(HALF))
    assert (site.action, site.frames, site.grid) == ("rewritten", 2, (ROWS, COLUMNS)), site.reason
    model.pool = lambda t: oracle.subsample(t, 2, (2, ROWS, COLUMNS), (2, 2))
    with torch.no_grad():
        assert_close(captured.run(), model(x))


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("what", ["mirrored", "repeated as data says"])
def test_keys_of_the_picture_in_another_order(what: str, dialect: str) -> None:
    """Queries of the picture, keys of the same picture in another order: not the same positions."""

    class Reordered(ImageAttention):
        def forward(self, image: torch.Tensor, *counts: Any) -> torch.Tensor:
            tokens = flat(self.stem(image))
            if what == "mirrored":
                other = tokens.flip(1)
            else:
                other = tokens.repeat_interleave(counts[0], 1, output_size=tokens.shape[1])
            q = self.split(self.to_q(tokens))
            return self.attend(q, self.keys(other), self.values(other))

    counts = torch.tensor([0, 2] + [1] * (ROWS * COLUMNS - 2))
    given = (image(ROWS, COLUMNS), *(() if what == "mirrored" else (counts,)))
    model = Reordered()
    captured = capture(model, given, dialect)
    site = only_site(captured.rewrite(HALF))
    assert site.action != "rewritten", site
    with torch.no_grad():
        assert_close(captured.run(), model(*given))
