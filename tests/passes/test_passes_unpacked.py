"""Tokens that are unpacked into rows and columns inside the graph, where a convolution says so."""

from __future__ import annotations

from collections.abc import Callable

import oracle
import pytest
import torch
from graphs import DIALECTS, ImageAttention, assert_close, capture, only_site
from torch import nn

import todo_compile
from todo_compile.options import PlanOptions

ROWS, COLUMNS = 6, 4


class Unpacked(ImageAttention):
    """(B, N, C) → (B, C, H, W) → convolution (or what `convolve` is) → (B, N, C) → attention."""

    def __init__(self, convolve: Callable[[torch.Tensor], torch.Tensor] | None = None) -> None:
        super().__init__()
        self.conv = nn.Conv2d(8, 8, 3, padding=1)
        self.convolve = convolve or self.conv

    def tokens(self, image: torch.Tensor) -> torch.Tensor:
        planes = image.mT.reshape(image.shape[0], 8, ROWS, COLUMNS)
        return self.convolve(planes).flatten(2).mT


@pytest.mark.parametrize("dialect", DIALECTS)
def test_convolved_after_unpacking(dialect: str) -> None:
    """The two parts of the tokens, once named, are not the nameless whole again."""
    packed = torch.randn(2, ROWS * COLUMNS, 8, generator=torch.Generator().manual_seed(1))
    captured = capture(Unpacked(), (packed,), dialect)
    site = only_site(captured.rewrite(PlanOptions(factors=((2, 2),))))
    assert (site.action, site.grid, site.factor) == ("rewritten", (ROWS, COLUMNS), (2, 2))
    truth = Unpacked()
    truth.pool = lambda t: oracle.stand_ins(t, 2, (ROWS, COLUMNS), (2, 2))
    with torch.no_grad():
        assert not torch.allclose(truth(packed), Unpacked()(packed), atol=1e-3)
        assert_close(captured.run(), truth(packed))


@pytest.mark.parametrize("dialect", DIALECTS)
def test_unpacked_and_packed_again_without_a_convolution(dialect: str) -> None:
    packed = torch.randn(2, ROWS * COLUMNS, 8)
    captured = capture(Unpacked(torch.tanh), (packed,), dialect)
    site = only_site(captured.rewrite(PlanOptions(factors=((2, 2),))))
    assert (site.action, site.grid) == ("refused", None)
    assert "cannot be proved" in site.reason


def test_a_convolution_over_one_sequence_without_a_batch() -> None:
    """`conv1d` takes (C, N) too: nothing is known of its axes, and nothing fails."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.mix = nn.Conv1d(8, 8, 3, padding=1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            q = self.mix(x[0]).mT[None, None]
            return torch.nn.functional.scaled_dot_product_attention(q, q, q)

    _, report = todo_compile.rewrite(Net().eval(), (torch.randn(1, 8, 36),))
    assert [site.action for site in report.sites] == ["refused"]
