"""Where pictures are in what a denoiser is called with: by position, of noise and references."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor

from todo_compile.capture.recording.picture import Picture, look

NOISE, FIRST, SECOND = (8, 12), (6, 4), (10, 8)  # cells; two by two are a token
Made = Callable[[Tensor, list[Tensor]], Mapping[str, Tensor]]


def patches(latent: Tensor) -> Tensor:
    """(1, C, h, w) → (1, h/2 · w/2, 4C), as FLUX packs it."""
    return torch.nn.functional.pixel_unshuffle(latent, 2).flatten(2).mT


def found(made: Made) -> Picture | None:
    """What is found in a pipeline that encodes two pictures, then draws noise, then packs."""
    seeded = [torch.randn(1, 4, *cells) for cells in (FIRST, SECOND)]

    def run(mode: Any) -> Mapping[str, Tensor]:
        pictures = [mode.encoded(index, one) for index, one in enumerate(seeded)]
        with mode:
            noise = torch.randn(1, 4, *NOISE)
            return made(noise * 2 + 1, [(one - 0.1) * 0.4 for one in pictures])

    return look(run)


def row(*parts: Tensor) -> Mapping[str, Tensor]:
    return {"hidden_states": torch.cat(parts, 1), "time": torch.ones(1)}


@pytest.mark.parametrize(
    ("made", "grids"),
    [
        (lambda n, _: row(patches(n)), (4, 6)),
        (lambda n, p: row(patches(n), patches(p[0])), ((4, 6), (3, 2))),
        (lambda n, p: row(patches(n), *map(patches, p)), ((4, 6), (3, 2), (5, 4))),
        (lambda n, p: row(patches(p[1]), patches(n)), ((5, 4), (4, 6))),
        (lambda n, p: row(patches(n), patches(p[0]), patches(p[0])), ((4, 6), (2, 3, 2))),
    ],
    ids=["alone", "reference", "two references", "reference first", "twice"],
)
def test_each_picture_in_a_row_has_its_grid(made: Made, grids: Any) -> None:
    picture = found(made)
    assert picture is not None
    assert picture.packed == {"hidden_states": grids}
    assert (picture.cells, picture.drawn, picture.partly) == (NOISE, (4, 6), ())


def test_other_channels_of_the_same_tokens_may_be_another_picture() -> None:
    """As FLUX Fill and Control have it: the picture that is drawn says where a token is."""
    picture = found(lambda n, _: {"x": torch.cat([patches(n), torch.ones(1, 24, 5)], 2)})
    assert picture is not None
    assert picture.packed == {"x": (4, 6)}


@pytest.mark.parametrize(
    "made",
    [
        lambda n, _: row(patches(n), torch.randn(1, 24, 16)),
        lambda n, p: row(patches(n), patches(p[0])[:, torch.arange(5, -1, -1)]),
        lambda n, p: row(patches(n), patches(p[0])[:, :-1]),
        lambda n, p: row(patches(n)[:, 12:], patches(p[0]), patches(n)[:, :12]),
    ],
    ids=["of unknown origin", "backwards", "cut short", "torn apart"],
)
def test_what_is_in_no_pictures_order_has_no_grid(made: Made) -> None:
    picture = found(made)
    assert picture is not None
    assert picture.packed == {}
    assert picture.partly == ("hidden_states",)
