"""One key head for all query heads, text and null keys beside the image's, cosine similarity.

As Imagen's and DALL·E 2's open successors attend; the modules are ours.
"""

from __future__ import annotations

from collections.abc import Callable

import oracle
import pytest
import torch
import torch.nn.functional as F
from graphs import DIALECTS, ImageAttention, assert_close, capture, image, only_site
from torch import nn

from todo_compile.options import PlanOptions

GRID, FACTORS = (5, 6), (2, 3)
PLAN = PlanOptions(factors=(FACTORS,))
HEADS, CHANNELS = 3, 4
WORDS = 2
Attend = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
"""(B, heads, Nq, d), (B, Nk, d), (B, Nk, d) → (B, heads, Nq, d)."""


def by_einsum(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    weights = torch.einsum("bhid,bjd->bhij", q, k).softmax(-1, dtype=torch.float32).to(q.dtype)
    return torch.einsum("bhij,bjd->bhid", weights, v)


def by_matmul(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    return (q @ k.mT[:, None]).softmax(-1) @ v[:, None]


def by_rows(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """All heads' queries as rows of one product, apart again for the softmax."""
    b, h, n, d = q.shape
    scores = torch.bmm(q.reshape(b, h * n, d), k.mT).view(b, h, n, -1)
    weights = scores.softmax(-1).view(b, h * n, -1)
    return torch.bmm(weights, v).view(b, h, n, d)


def expanded(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    k, v = (t[:, None].expand(-1, q.shape[1], -1, -1) for t in (k, v))
    return F.scaled_dot_product_attention(q, k, v, scale=1.0)


def filled(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """The first key, which is no part of the image, is hidden."""
    hidden = torch.arange(k.shape[1])[None, None, None] < 1
    scores = torch.einsum("bhid,bjd->bhij", q, k).masked_fill(hidden, -torch.finfo(q.dtype).max)
    return torch.einsum("bhij,bjd->bhid", scores.softmax(-1), v)


def chosen(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """… by a choice between the scores and a number."""
    seen = torch.arange(k.shape[1]) >= 1
    scores = torch.where(seen, torch.einsum("bhid,bjd->bhij", q, k), -1e9)
    return torch.einsum("bhij,bjd->bhid", scores.softmax(-1), v)


ATTENDS: dict[str, Attend] = {f.__name__: f for f in (by_einsum, by_matmul, by_rows, expanded)}
MASKED: dict[str, Attend] = {f.__name__: f for f in (filled, chosen)}
ORDERS = ("null text image", "text null image", "image null", "null image text", "image text")


class MultiQuery(ImageAttention):
    """Keys and values of one head from one projection, unit lengths, learned scales."""

    def __init__(self, attend: Attend, order: str, *, over: int = -1) -> None:
        super().__init__(attend=attend, heads=1, head_dim=8)
        self.order, self.over = order.split(), over
        self.queries = nn.Linear(8, HEADS * CHANNELS, bias=False)
        self.both = nn.Linear(8, 2 * CHANNELS, bias=False)
        self.words = nn.Linear(6, 2 * CHANNELS)
        self.null = nn.Parameter(torch.randn(2, CHANNELS))
        self.scales = nn.Parameter(torch.randn(2, CHANNELS))
        self.back = nn.Linear(HEADS * CHANNELS, 8)
        self.eval()

    def before(self) -> int:
        """Keys before the image's."""
        ahead = self.order[: self.order.index("image")]
        return sum({"null": 1, "text": WORDS}[part] for part in ahead)

    def forward(self, image: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
        x = self.tokens(image)
        b = x.shape[0]
        q = self.queries(x).unflatten(-1, (HEADS, CHANNELS)).transpose(1, 2)
        null = [t.expand(b, 1, CHANNELS) for t in self.null.unbind()]
        parts = {
            "image": self.both(x).chunk(2, -1), "text": self.words(text).chunk(2, -1), "null": null,
        }  # fmt: skip
        k, v = (torch.cat([parts[name][i] for name in self.order], 1) for i in (0, 1))
        q, k = F.normalize(q, dim=-1) * self.scales[0], F.normalize(k, dim=self.over)
        k = k * self.scales[1] * 8
        out = self.attend(q, self.pool(k), self.pool(v))
        return self.back(out.transpose(1, 2).flatten(2))


def inputs() -> tuple[torch.Tensor, torch.Tensor]:
    return image(*GRID, batch=2), torch.randn(2, WORDS, 6)


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize(
    ("name", "order"),
    [*(("by_einsum", order) for order in ORDERS), *((name, ORDERS[0]) for name in ATTENDS)],
)
def test_one_key_head_beside_other_keys(name: str, order: str, dialect: str) -> None:
    net, given = MultiQuery(ATTENDS[name], order), inputs()
    captured = capture(net, given, dialect)
    report = captured.rewrite(PLAN)
    site = only_site(report)
    assert (site.action, site.kind, site.grid) == ("rewritten", "joint", GRID), site.reason
    assert site.image is not None
    assert site.image.offset == net.before()
    net.pool = lambda t: oracle.stand_ins(t, 1, GRID, FACTORS, offset=net.before())
    with torch.no_grad():
        assert_close(captured.run(), net(*given))
    ends = {stop.operand: stop.reason for stop in site.stops}
    if name == "by_einsum":  # the others put an axis in between by square brackets
        assert "chunk" in ends["key"], "moved above lengths, scales and the other keys"
    assert captured.rewrite(PLAN).rewritten == 0


@pytest.mark.parametrize("dialect", DIALECTS)
def test_lengths_over_tokens_stop_a_pooling(dialect: str) -> None:
    net, given = MultiQuery(by_einsum, ORDERS[0], over=1), inputs()
    captured = capture(net, given, dialect)
    site = only_site(captured.rewrite(PLAN))
    assert site.action == "rewritten"
    net.pool = lambda t: oracle.stand_ins(t, 1, GRID, FACTORS, offset=net.before())
    with torch.no_grad():
        assert_close(captured.run(), net(*given))
    key = next(stop for stop in site.stops if stop.operand == "key")
    assert "chunk" not in key.reason


@pytest.mark.parametrize("dialect", DIALECTS)
def test_averages_stop_below_lengths(dialect: str) -> None:
    net, given = MultiQuery(by_einsum, ORDERS[0]), inputs()
    captured = capture(net, given, dialect)
    site = only_site(captured.rewrite(PlanOptions(factors=(FACTORS,), sampling="average")))
    net.pool = lambda t: oracle.stand_ins(t, 1, GRID, FACTORS, "average", offset=net.before())
    with torch.no_grad():
        assert_close(captured.run(), net(*given))
    key = next(stop for stop in site.stops if stop.operand == "key")
    assert "does not commute with averages" in key.reason


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("name", MASKED)
def test_scores_of_other_keys_are_filled_with_a_number(name: str, dialect: str) -> None:
    net, given = MultiQuery(MASKED[name], ORDERS[0]), inputs()
    captured = capture(net, given, dialect)
    site = only_site(captured.rewrite(PLAN))
    assert (site.action, site.kind) == ("rewritten", "joint"), site.reason
    net.pool = lambda t: oracle.stand_ins(t, 1, GRID, FACTORS, offset=net.before())
    with torch.no_grad():
        assert_close(captured.run(), net(*given))


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("name", MASKED)
def test_scores_of_image_keys_that_are_filled_are_refused(name: str, dialect: str) -> None:
    captured = capture(MultiQuery(MASKED[name], "image null"), inputs(), dialect)
    before = captured.signature()
    site = only_site(captured.rewrite(PLAN))
    assert site.action == "refused"
    assert "could hide image keys" in site.reason
    assert captured.signature() == before
