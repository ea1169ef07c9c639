"""Rotary embeddings as complex numbers: tokens stay a picture's, and pooling moves above them.

`torch.export` of a table that is a constant has them as real numbers (`capture.complex_numbers`);
here the table goes in, or Dynamo looks.
"""

from __future__ import annotations

import oracle
import pytest
import torch
from graphs import DIALECTS, ImageAttention, assert_close, capture, image, only_site
from torch import Tensor

from todo_compile.options import PlanOptions

GRID = (4, 6)
TOKENS = GRID[0] * GRID[1]


def angles() -> Tensor:
    turns = torch.outer(torch.arange(TOKENS, dtype=torch.float32), torch.tensor([0.7, 0.1]))
    return torch.polar(torch.ones_like(turns), turns)


class Turned(ImageAttention):
    """Keys of (B, heads, N, 4) as two complex numbers, turned by each token's own angles."""

    def keys(self, x: Tensor) -> Tensor:
        pairs = torch.view_as_complex(super().keys(x).unflatten(-1, (-1, 2)))
        return torch.view_as_real(pairs * self.table).flatten(-2)

    def forward(self, image: Tensor, table: Tensor) -> Tensor:
        self.table = table
        return super().forward(image)


class Held(ImageAttention):
    """The same with the table as a plain attribute."""

    def __init__(self) -> None:
        super().__init__()
        self.held = angles()

    def keys(self, x: Tensor) -> Tensor:
        pairs = torch.view_as_complex(super().keys(x).unflatten(-1, (-1, 2)))
        return torch.view_as_real(pairs * self.held).flatten(-2)


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("sampling", ["nearest", "average"])
@pytest.mark.parametrize("hoist", [True, False])
def test_numbers(dialect: str, sampling: str, hoist: bool) -> None:
    model, inputs = Turned(), (image(*GRID), angles())
    captured = capture(model, inputs, dialect)
    options = PlanOptions(factors=((2, 2),), sampling=sampling, hoist=hoist)
    site = only_site(captured.rewrite(options))
    assert (site.action, site.grid) == ("rewritten", GRID), site.reason
    model.pool = lambda t: oracle.stand_ins(t, 2, GRID, (2, 2), sampling)
    with torch.no_grad():
        assert_close(captured.run(), model(*inputs))
    once = captured.signature()
    captured.rewrite(options)
    assert captured.signature() == once


def test_nearest_moves_above_the_projection() -> None:
    """What picks tokens commutes with turning them; a mean of turned keys is no turned mean."""
    widths = {}
    for sampling in ("nearest", "average"):
        captured = capture(Turned(), (image(*GRID), angles()), "export")
        captured.rewrite(PlanOptions(factors=((2, 2),), sampling=sampling))
        turned = [n for n in captured.nodes if "view_as_complex" in n.name]
        widths[sampling] = captured.shape(turned[0])[2]
    assert widths == {"nearest": TOKENS // 4, "average": TOKENS}


def test_a_table_that_is_held() -> None:
    captured = capture(Held(), (image(*GRID),), "dynamo")
    assert only_site(captured.rewrite(PlanOptions(factors=((2, 2),)))).action == "rewritten"
