"""Attention that is no site is one row with a true reason; what is no attention is none."""

from __future__ import annotations

import logging
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from graphs import DIALECTS, ImageAttention, capture, image, only_site, sdpa
from torch import nn

from todo_compile.options import PlanOptions
from todo_compile.passes.find import sites

GRID, HEADS = (4, 6), 2
OPTIONS = PlanOptions(kv_tokens=6)
LINEAR = "keys and values are multiplied before the queries (linear attention)"

T = torch.Tensor


def mix(heads: int = HEADS) -> T:
    return torch.eye(heads) + 0.1


# Another function in the softmax's place, or more than one ----------------------------------------
def _sigmoid(q: T, k: T, v: T) -> T:
    return (q @ k.mT).sigmoid() @ v


def _relu(q: T, k: T, v: T) -> T:
    return (q @ k.mT).relu().square() @ v


def _nothing(q: T, k: T, v: T) -> T:
    return (q @ k.mT) / 24 @ v


def _written_out(q: T, k: T, v: T) -> T:
    weights = (q @ k.mT).exp()
    return (weights / weights.sum(-1, keepdim=True)) @ v


def _logsumexp(q: T, k: T, v: T) -> T:
    scores = q @ k.mT
    return (scores - scores.logsumexp(-1, keepdim=True)).exp() @ v


def _log_softmax(q: T, k: T, v: T) -> T:
    return (q @ k.mT).log_softmax(-1).exp() @ v


def _normalised(q: T, k: T, v: T) -> T:
    return F.normalize((q @ k.mT).relu(), p=1.0, dim=-1) @ v


def _mixed_heads(q: T, k: T, v: T) -> T:
    scores = torch.einsum("bhij,hg->bgij", q @ k.mT, mix())
    return torch.einsum("bhij,hg->bgij", scores.softmax(-1), mix()) @ v


def _mixed_heads_after(q: T, k: T, v: T) -> T:
    weights = (q @ k.mT).softmax(-1).permute(0, 2, 3, 1)
    return F.linear(weights, mix()).permute(0, 3, 1, 2) @ v


def _mixed_by_a_kernel(q: T, k: T, v: T) -> T:
    return F.conv2d(q @ k.mT, mix()[:, :, None, None]).softmax(-1) @ v


def _shared_by_heads(q: T, k: T, v: T) -> T:
    return (q @ k.mT).softmax(-1).mean(1, keepdim=True) @ v


def _renormalised(q: T, k: T, v: T) -> T:
    weights = (q @ k.mT).softmax(-1)
    return (weights / weights.sum(-2, keepdim=True)) @ v


def _difference(q: T, k: T, v: T) -> T:
    first, second = ((q[..., a : a + 2] @ k[..., a : a + 2].mT).softmax(-1) for a in (0, 2))
    return (first - 0.3 * second) @ v


def _parts_of_the_key_axis(q: T, k: T, v: T) -> T:
    scores = (q @ k.mT).view(1, HEADS, 24, *GRID)
    scores = scores + q.mean(-1)[..., None, None] * torch.ones(4, 1)
    return scores.relu().view(1, HEADS, 24, 24) @ v


def _distance(q: T, k: T, v: T) -> T:
    return (-torch.cdist(q, k)).softmax(-1) @ v


def _at_once(q: T, k: T, v: T) -> T:
    return torch.einsum("bhid,bhjd,bhje->bhie", q, k, v)


def _over_heads(q: T, k: T, v: T) -> T:
    return (q @ k.mT).softmax(1) @ v


# Linear attention ---------------------------------------------------------------------------------
def _linear_plain(q: T, k: T, v: T) -> T:
    return q.relu() @ (k.relu().mT @ v)


def _linear_normalised(q: T, k: T, v: T) -> T:
    q, k = F.elu(q) + 1, F.elu(k) + 1
    return (q @ (k.mT @ v)) / (q @ k.sum(-2).unsqueeze(-1))


def _linear_normalised_einsum(q: T, k: T, v: T) -> T:
    q, k = F.elu(q) + 1, F.elu(k) + 1
    weight = 1 / torch.einsum("bhnd,bhd->bhn", q, k.sum(-2))
    state = torch.einsum("bhnd,bhne->bhde", k, v)
    return torch.einsum("bhnd,bhde,bhn->bhne", q, state, weight)


def _linear_padded(q: T, k: T, v: T) -> T:
    """Sana: a column of ones among the values makes the normaliser."""
    v = F.pad(v.mT, (0, 0, 0, 1), value=1.0)
    out = (v @ k.relu()) @ q.relu().mT
    return (out[:, :, :-1] / (out[:, :, -1:] + 1e-6)).mT


def _efficient(q: T, k: T, v: T) -> T:
    return q.softmax(-1) @ (k.softmax(-2).mT @ v)


def _efficient_einsum(q: T, k: T, v: T) -> T:
    """LinearAttention of imagen-pytorch."""
    context = torch.einsum("bhnd,bhne->bhde", k.softmax(-2), v)
    return torch.einsum("bhde,bhnd->bhne", context, q.softmax(-1) * 0.5)


REASONS: dict[Callable[[T, T, T], T], str] = {
    _sigmoid: "sigmoid stands between its two products instead of a softmax",
    _relu: "relu and ",
    _nothing: "div stands between its two products",
    _written_out: "exp and div stand between its two products",
    _logsumexp: "sub and exp stand between",
    _log_softmax: "log_softmax and exp stand between",
    _normalised: "relu and ",
    _mixed_heads: "einsum with a weight",
    _mixed_heads_after: "linear",
    _mixed_by_a_kernel: "its scores come from conv2d",
    _shared_by_heads: "its probabilities go into mean",
    _renormalised: "the softmax feeds several operations",
    _difference: "its probabilities go into sub",
    _parts_of_the_key_axis: "relu",
    _distance: "its scores come from cdist",
    _at_once: "multiplied in one einsum, without a softmax",
    _over_heads: "runs over an axis that the product after it does not sum over",
    _linear_plain: LINEAR,
    _linear_normalised: LINEAR,
    _linear_normalised_einsum: LINEAR,
    _linear_padded: LINEAR,
    _efficient: LINEAR,
    _efficient_einsum: LINEAR,
}


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("attend", REASONS, ids=lambda f: f.__name__.strip("_"))
def test_one_row_with_the_reason(attend: Callable[[T, T, T], T], dialect: str) -> None:
    captured = capture(ImageAttention(attend, heads=HEADS), [image(*GRID)], dialect)
    before = captured.signature()
    site = only_site(captured.rewrite(OPTIONS))
    assert (site.action, site.kind) == ("refused", "unknown")
    assert REASONS[attend] in site.reason
    assert captured.signature() == before


class Layers(nn.Module):
    """Layers of linear attention with a normaliser, then one of attention, as in a network."""

    def __init__(self, *attends: Callable[[T, T, T], T]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(ImageAttention(a, heads=HEADS) for a in attends)

    def forward(self, x: T) -> T:
        for layer in self.layers:
            x = x + layer(x).mT.unflatten(2, GRID)[:, :3]
        return x


@pytest.mark.parametrize("dialect", DIALECTS)
def test_layers_do_not_join(dialect: str) -> None:
    """A normaliser that no product of its own layer reads finds none in the next layer either."""
    attends = (_linear_normalised, _linear_normalised, sdpa, _efficient, _sigmoid)
    report = capture(Layers(*attends), [image(*GRID)], dialect).rewrite(OPTIONS)
    assert report.rewritten == 1
    reasons = [s.reason for s in report.sites if s.action == "refused"]
    assert len(reasons) == 4
    assert sum(LINEAR in r for r in reasons) == 3


# What is no attention -----------------------------------------------------------------------------
def _similarity(q: T, k: T, v: T) -> T:
    return v + (q @ k.mT).mean(-1, keepdim=True)


def _gram(q: T, _: T, v: T) -> T:
    return v / (q.mT @ q).norm()


def _rotary(q: T, _: T, v: T) -> T:
    """A table of frequencies is a product of constants, or of one input with constants."""
    places = torch.arange(24.0)[:, None] @ torch.ones(1, 2)
    table = torch.cat([q[..., :1] @ torch.ones(1, 2), places.sin().expand(1, HEADS, -1, -1)], -1)
    return v * table


def _excitation(q: T, k: T, v: T) -> T:
    return torch.einsum("bhnd,bhd->bhnd", v, q.mean(2).sigmoid()) + k


def _low_rank(q: T, k: T, v: T) -> T:
    down, up = torch.ones(4, 2), torch.ones(2, 4)
    return (q @ down @ up).softmax(-1) + k + v


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("attend", [_similarity, _gram, _rotary, _excitation, _low_rank])
def test_no_row_for_what_is_no_attention(attend: Callable[[T, T, T], T], dialect: str) -> None:
    captured = capture(ImageAttention(attend, heads=HEADS), [image(*GRID)], dialect)
    assert captured.rewrite(OPTIONS).sites == ()


@pytest.mark.parametrize("stage", ["spelled_out", "unclaimed"])
def test_a_failing_search_costs_one_attention(
    stage: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object) -> None:
        raise ZeroDivisionError("an odd graph")

    monkeypatch.setattr(sites, stage, fail)
    attends = (sdpa, _mixed_heads)
    captured = capture(Layers(*attends), [image(*GRID)], "export")
    with caplog.at_level(logging.DEBUG, "todo_compile"):
        report = captured.rewrite(OPTIONS)
    assert report.rewritten == 1
    (miss,) = (s for s in report.sites if s.action == "refused")
    assert "the search failed here (internal error ZeroDivisionError: an odd graph)" in miss.reason
    assert "please report it" in miss.reason
    assert any(r.exc_info and r.name == "todo_compile" for r in caplog.records)


class Beside(ImageAttention):
    """Packed tokens whose keys are joined with those of a text, as in PRX."""

    def __init__(self, join: bool) -> None:
        super().__init__(heads=HEADS)
        self.join = join

    def forward(self, tokens: T, text: T) -> T:  # type: ignore[override]
        keys = torch.cat([text, tokens], 1) if self.join else torch.cat([text, text], 1)
        out = sdpa(self.split(self.to_q(tokens)), self.keys(keys), self.values(keys))
        return out.transpose(1, 2).flatten(2)


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("join", [True, False])
def test_keys_beside_others_are_no_cross_attention(join: bool, dialect: str) -> None:
    captured = capture(Beside(join), [torch.randn(1, 24, 8), torch.randn(1, 5, 8)], dialect)
    site = only_site(captured.rewrite(OPTIONS))
    if join:
        assert (site.kind, site.action) == ("joint", "refused")
        assert "its 29 keys are its 24 queries' tokens beside others" in site.reason
        assert "token_grids names it" in site.reason
    else:
        assert (site.kind, site.action) == ("cross", "dense")
        assert "its 10 keys are not the tokens of its 24 queries" in site.reason
