"""Keys that are written over in place: they stay a picture's if each position keeps its place."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import graphs
import oracle
import pytest
import torch
from graphs import Captured, ImageAttention, assert_close, capture, image, only_site
from torch import Tensor, nn

from todo_compile.options import PlanOptions

GRID, TEXT, HALF = (4, 6), 5, PlanOptions(factors=((2, 2),))
TOKENS = GRID[0] * GRID[1]
Write = Callable[[Tensor], Any]


def rotated(x: Tensor) -> Tensor:
    """As rotary embeddings are: (…, N, C), pairs of channels turned by the token's own angle."""
    angles = torch.linspace(0, 3, TOKENS).unsqueeze(-1)
    first, second = x.unflatten(-1, (-1, 2)).unbind(-1)
    turned = torch.stack([-second, first], -1).flatten(-2)
    return x * angles.cos() + turned * angles.sin()


def turn(k: Tensor) -> None:
    k[:, :, TEXT:] = rotated(k[:, :, TEXT:])


def turn_some_channels(k: Tensor) -> None:
    k[:, :, TEXT:, :2] = rotated(k[:, :, TEXT:, :2])


def copy_over(k: Tensor) -> None:
    k[:, :, TEXT:].copy_(k[:, :, TEXT:] * 2 - 1)


def halve_text(k: Tensor) -> None:
    k[:, :, :TEXT] = k[:, :, :TEXT] * 0.5


def flip(k: Tensor) -> None:
    k[:, :, TEXT:] = k[:, :, TEXT:].flip(2)


def roll(k: Tensor) -> None:
    k[:, :, TEXT:] = k[:, :, TEXT:].roll(3, 2)


def shift(k: Tensor) -> None:
    k[:, :, TEXT + 1 :] = k[:, :, TEXT:-1].clone()


def across(k: Tensor) -> None:
    k[:, :, 2 : TOKENS + 2] = rotated(k[:, :, TEXT:])


def sort(k: Tensor) -> None:
    k[:, :, TEXT:] = k[:, :, TEXT:].sort(2).values


def transpose(k: Tensor) -> None:
    k[:, :, TEXT:] = k[:, :, TEXT:].unflatten(2, GRID).transpose(2, 3).flatten(2, 3)


class WrittenOver(ImageAttention):
    """Text before the picture's tokens; `write` changes the keys where they lie."""

    def __init__(self, write: Write) -> None:
        super().__init__()
        self.write = write
        self.text = nn.Parameter(torch.randn(1, TEXT, 8))

    def tokens(self, image: Tensor) -> Tensor:
        return torch.cat([self.text, super().tokens(image)], 1)

    def keys(self, x: Tensor) -> Tensor:
        keys = super().keys(x).contiguous()
        self.write(keys)
        return keys


def captured_as(model: nn.Module, dialect: str) -> Captured:
    given = (image(*GRID),)
    if dialect != "functional":
        return capture(model, given, dialect)
    with torch.no_grad():
        program = torch.export.export(model, given).run_decompositions({})
    return graphs._exported(program, given)  # pyright: ignore[reportPrivateUsage]


DIALECTS = ("export", "dynamo", "functional")


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("write", [turn, turn_some_channels, copy_over, halve_text])
def test_each_token_written_from_itself(write: Write, dialect: str) -> None:
    model = WrittenOver(write)
    captured = captured_as(model, dialect)
    before = captured.run()
    with torch.no_grad():
        assert_close(before, model(image(*GRID)))
    site = only_site(captured.rewrite(HALF))
    assert (site.action, site.grid) == ("rewritten", GRID), site.reason
    model.pool = lambda t: oracle.stand_ins(t, 2, GRID, (2, 2), offset=TEXT)
    with torch.no_grad():
        assert_close(captured.run(), model(image(*GRID)))
    once = captured.signature()
    captured.rewrite(HALF)
    assert captured.signature() == once


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("write", [flip, roll, shift, across, sort, transpose])
def test_tokens_written_from_elsewhere(write: Write, dialect: str) -> None:
    captured = captured_as(WrittenOver(write), dialect)
    before = captured.run()
    site = only_site(captured.rewrite(HALF))
    assert (site.action, site.grid) == ("refused", None)
    assert all(torch.equal(a, b) for a, b in zip(captured.run(), before, strict=True))
