"""Where pooling ends up: each commutation rule fires where it is right and refuses elsewhere."""

from __future__ import annotations

from collections.abc import Callable

import oracle
import pytest
import torch
import torch.nn.functional as F
from graphs import Captured, ImageAttention, assert_close, capture, image, only_site
from torch import nn

from todo_compile.options import PlanOptions, Sampling
from todo_compile.passes.report import Report

GRID, FACTORS = (4, 6), (2, 3)
FEW = 4
Body = Callable[["Hoisted", torch.Tensor], tuple[torch.Tensor, torch.Tensor]]


class Hoisted(ImageAttention):
    """Keys and values as `body` makes them from the tokens, in heads after it."""

    def __init__(self, body: Body) -> None:
        super().__init__()
        self.body = body
        self.norm = nn.LayerNorm(8)
        self.head_norm = nn.LayerNorm(4)
        self.down, self.up = nn.Linear(8, 2, bias=False), nn.Linear(2, 8, bias=False)
        self.fused = nn.Linear(8, 16)
        self.token_table = nn.Parameter(torch.randn(1, 24, 8))
        self.channel_table = nn.Parameter(torch.randn(8))

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        x = self.tokens(image)
        keys, values = (self.pool(t) for t in self.body(self, x))
        query = self.split(self.to_q(x))
        return F.scaled_dot_product_attention(query, self.split(keys), self.split(values))


def checked(body: Body, sampling: Sampling = "nearest") -> tuple[Captured, Report]:
    model, x = Hoisted(body), image(*GRID, batch=2)
    captured = capture(model, (x,), "export")
    report = captured.rewrite(PlanOptions(factors=(FACTORS,), sampling=sampling))
    assert only_site(report).action == "rewritten", only_site(report).reason
    model.pool = lambda t: oracle.stand_ins(t, 1, GRID, FACTORS, sampling)
    with torch.no_grad():
        assert_close(captured.run(), model(x))
    return captured, report


def linear_tokens(captured: Captured) -> list[int]:
    """Token counts that the linear layers see, in order: the query's first."""
    found = [n for n in captured.nodes if "linear" in str(n.target)]
    return sorted(captured.shape(n)[1] for n in found)


def hoist_counts(report: Report) -> dict[str, int]:
    return next(p.detail for p in report.passes if p.name == "hoist")


def plain(self: Hoisted, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return self.to_k(x), self.to_v(x)


@pytest.mark.parametrize("sampling", ["nearest", "nearest-exact", "average"])
def test_one_pooling_feeds_both_projections(sampling: Sampling) -> None:
    captured, report = checked(plain, sampling)
    assert linear_tokens(captured) == [FEW, FEW, 24]
    counts = hoist_counts(report)
    assert counts["linear"] == 2
    assert counts["merged"] >= 1
    pooled = {n for n in captured.nodes if "todo_rule" in n.meta}
    results = {n for n in pooled if any(u not in pooled for u in n.users)}
    assert len(results) == 1, "keys and values read the same pooled tensor"


def lora(self: Hoisted, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return self.to_k(x) + 0.5 * self.up(self.down(x)), self.to_v(x)


@pytest.mark.parametrize("sampling", ["nearest", "average"])
def test_sum_of_linears(sampling: Sampling) -> None:
    captured, _ = checked(lora, sampling)
    assert linear_tokens(captured) == [FEW] * 4 + [24]


def normed(self: Hoisted, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return self.norm(self.to_k(x)), self.to_v(x)


def activated(self: Hoisted, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return F.silu(self.to_k(x)), self.to_v(x)


def multiplied(self: Hoisted, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return self.to_k(x) * self.token_table, self.to_v(x)


def head_normed(self: Hoisted, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return self.head_norm(self.to_k(x).unflatten(-1, (2, 4))).flatten(2), self.to_v(x)


@pytest.mark.parametrize("body", [normed, activated, multiplied, head_normed])
def test_token_wise_functions_let_selections_pass_and_stop_averages(body: Body) -> None:
    captured, _ = checked(body, "nearest")
    assert linear_tokens(captured) == [FEW, FEW, 24]
    captured, _ = checked(body, "average")
    assert linear_tokens(captured) == [FEW, 24, 24], "keys are averaged after what is not linear"


def shifted(self: Hoisted, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return (self.to_k(x) + self.token_table) / 3 - 1, self.to_v(x) * self.channel_table


def test_affine_functions_let_averages_pass() -> None:
    captured, report = checked(shifted, "average")
    assert linear_tokens(captured) == [FEW, FEW, 24]
    assert hoist_counts(report)["token-wise"] >= 3


def chunked(self: Hoisted, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    keys, values = self.fused(x).chunk(2, dim=-1)
    return keys, values


@pytest.mark.parametrize("sampling", ["nearest", "average"])
def test_fused_projection_stays_right(sampling: Sampling) -> None:
    checked(chunked, sampling)


def read_twice(self: Hoisted, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    keys = self.to_k(x)
    return keys, self.to_v(x) + keys.sum()


def test_work_that_others_read_is_not_done_twice() -> None:
    captured, _ = checked(read_twice)
    assert linear_tokens(captured) == [FEW, 24, 24]


def unit(self: Hoisted, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return F.normalize(self.to_k(x), dim=-1), self.to_v(x)


def by_hand(self: Hoisted, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    keys = self.to_k(x)
    return keys * (keys.pow(2).mean(-1, keepdim=True) + 1e-6).rsqrt(), self.to_v(x)


@pytest.mark.parametrize("body", [unit, by_hand])
def test_lengths_over_channels_let_selections_pass(body: Body) -> None:
    captured, report = checked(body, "nearest")
    assert linear_tokens(captured) == [FEW, FEW, 24]
    assert hoist_counts(report).get("expand", 0) == (body is unit)
    captured, _ = checked(body, "average")
    assert linear_tokens(captured) == [FEW, 24, 24]


def centred(self: Hoisted, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    keys = self.to_k(x)
    return keys - keys.mean(-1, keepdim=True).expand_as(keys), self.to_v(x)


def test_means_over_channels_let_averages_pass() -> None:
    captured, _ = checked(centred, "average")
    assert linear_tokens(captured) == [FEW, FEW, 24]


def over_tokens(self: Hoisted, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return F.normalize(self.to_k(x), dim=1), self.to_v(x)


def spread(self: Hoisted, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    keys = self.to_k(x)
    return keys * keys[:, :1].tanh().expand(-1, 24, -1), self.to_v(x)


@pytest.mark.parametrize("body", [over_tokens, spread])
def test_what_makes_tokens_alike_stops_a_pooling(body: Body) -> None:
    captured, report = checked(body, "nearest")
    assert linear_tokens(captured) == [FEW, 24, 24]
    reasons = [stop.reason for stop in only_site(report).stops]
    if body is spread:
        assert any("makes the token axis" in reason for reason in reasons)
