"""Two pictures of one size in a graph: what they share does not make them one."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from graphs import DIALECTS, capture
from torch import Tensor, nn

from todo_compile.options import PlanOptions

SIDES = (4, 6)
HALF = PlanOptions(factors=((2, 2),), masks="pool")


class Two(nn.Module):
    """Attention of one picture's tokens to themselves, and to another picture's.

    Args:
        share: (this, tokens of both) → tokens of both, and a bias for both attentions.
    """

    def __init__(
        self, share: Callable[[Two, Tensor, Tensor], tuple[Tensor, Tensor, Tensor | None]]
    ) -> None:
        super().__init__()
        self.stems = nn.ModuleList([nn.Conv2d(3, 8, 3, padding=1) for _ in "xy"])
        self.q, self.k, self.v, self.mix = (nn.Linear(8, 8) for _ in "qkvm")
        self.rows, self.columns = (nn.Parameter(torch.randn(side, 8)) for side in SIDES)
        self.mixer = nn.Parameter(torch.randn(*SIDES, SIDES[0] * SIDES[1]))
        self.share = share
        self.eval()

    def table(self) -> Tensor:
        return (self.rows[:, None] + self.columns[None]).flatten(0, 1)

    def attend(self, x: Tensor, y: Tensor, bias: Tensor | None) -> Tensor:
        scores = self.q(x) @ self.k(y).mT * 0.3
        if bias is not None:
            scores = scores + bias
        return scores.softmax(-1) @ self.v(y)

    def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, ...]:
        a, b = (stem(t).flatten(2).mT for stem, t in zip(self.stems, (x, y), strict=True))
        a, b, bias = self.share(self, a, b)
        return self.attend(a, a, bias), self.attend(a, b, bias)


def _added(net: Two, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor, None]:
    table = net.table()
    return a + table, b + table, None


def _joined(net: Two, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor, None]:
    table = net.table()[None]
    a, b = (torch.cat([t[..., :4], table[..., 4:]], -1) for t in (a, b))
    return a, b, None


def _stacked(net: Two, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor, None]:
    table = net.table()[None]
    a, b = (torch.stack([t, table]).sum(0) for t in (a, b))
    return a, b, None


def _biased(net: Two, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return a, b, net.table()[:, 0]


def _multiplied(net: Two, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor, None]:
    mixer = net.mixer.flatten(0, 1)  # as many rows as tokens, which are summed over
    found = [(t.mT @ mixer).sum(-1) for t in (a, b)]
    return a + found[0][:, None], b + found[1][:, None], None


SHARED = {
    "nothing": lambda _, a, b: (a, b, None),
    "a dtype": lambda _, a, b: (a.type_as(b), b.to(a), None),
    "a table that is added": _added,
    "a table beside the channels": _joined,
    "a table on top": _stacked,
    "a bias of the scores": _biased,
    "a weight that mixes tokens": _multiplied,
}


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("share", SHARED.values(), ids=SHARED)
def test_a_weight_that_two_pictures_share_leaves_them_two(
    share: Callable[[Two, Tensor, Tensor], tuple[Tensor, Tensor, Tensor | None]], dialect: str
) -> None:
    given = torch.randn(1, 3, *SIDES), torch.randn(1, 3, *SIDES)
    own, other = capture(Two(share), given, dialect).rewrite(HALF).sites
    assert (own.kind, own.action, own.grid) == ("self", "rewritten", SIDES)
    assert (other.kind, other.action) == ("cross", "dense")
    assert other.reason == "cross-attention: the keys lie on another grid than the queries"


@pytest.mark.parametrize("dialect", DIALECTS)
def test_a_resized_table_still_proves_what_it_is_added_to(dialect: str) -> None:
    """Packed tokens get a table of positions that is resized as a picture: so they are one."""

    class Placed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Parameter(torch.randn(1, 8, 2, 3))
            self.q, self.k, self.v = (nn.Linear(8, 8) for _ in "qkv")

        def forward(self, x: Tensor) -> Tensor:
            table = nn.functional.interpolate(self.table, size=SIDES, mode="bilinear")
            grid = x.mT.unflatten(2, SIDES) + table
            x = grid.flatten(2).mT
            return (self.q(x) @ self.k(x).mT).softmax(-1) @ self.v(x)

    (site,) = capture(Placed().eval(), (torch.randn(1, 24, 8),), dialect).rewrite(HALF).sites
    assert (site.action, site.grid) == ("rewritten", SIDES)
