"""Biases, scales and functions between the products, wherever and in whatever rank they appear."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from graphs import DIALECTS, ImageAttention, assert_close, capture, image, only_site
from oracle import attention, stand_ins
from torch import nn

from todo_compile.options import PlanOptions

GRID, FACTORS, HEADS, BATCH = (5, 6), (2, 3), 2, 2
TOKENS = GRID[0] * GRID[1]
OPTIONS = PlanOptions(factors=(FACTORS,))

T = torch.Tensor
WithBias = Callable[[T, T, T, T], T]


class Biased(ImageAttention):
    """An attention with a bias or mask that is part of the model."""

    bias: T

    def __init__(self, attend: WithBias, bias: T) -> None:
        super().__init__(heads=HEADS)
        self.register_buffer("bias", bias)
        self.attend = lambda q, k, v: attend(q, k, v, self.bias)


def random_bias(*shape: int) -> T:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(7)) * 2


def truth(bias: T, x: T, sampling: str = "nearest", scale: float | None = None) -> T:
    """Keys, values and the bias's key axis (if it has one) subsampled by the oracle."""
    if bias.shape[-1] != 1:
        bias = stand_ins(bias, bias.dim() - 1, GRID, FACTORS, sampling)
    model = Biased(lambda q, k, v, b: attention(q, k, v, bias=b, scale=scale), bias)
    model.pool = lambda t: stand_ins(t, 2, GRID, FACTORS, sampling)
    with torch.no_grad():
        return model(x)


def flat(t: T) -> T:
    return t.flatten(0, 1)


def added(q: T, k: T, v: T, b: T) -> T:
    return (q @ k.mT / 2 + b).softmax(-1) @ v


def added_first(q: T, k: T, v: T, b: T) -> T:
    return (b + q @ k.mT / 2).softmax(-1) @ v


def subtracted(q: T, k: T, v: T, b: T) -> T:
    return (q @ k.mT / 2 - (-b)).softmax(-1) @ v


def added_in_place(q: T, k: T, v: T, b: T) -> T:
    scores = q @ k.mT / 2
    scores += b
    return scores.softmax(-1) @ v


def added_between_views(q: T, k: T, v: T, b: T) -> T:
    """T5, OPT, Swin: batch and heads apart for the bias, together for the products."""
    batch, heads, n, _ = q.shape
    scores = torch.bmm(flat(q), flat(k).mT) / 2
    scores = scores.view(batch, heads, n, k.shape[2]) + b
    weights = scores.view(batch * heads, n, k.shape[2]).softmax(-1)
    return torch.bmm(weights, flat(v)).view(batch, heads, n, -1)


def added_before_view(q: T, k: T, v: T, b: T) -> T:
    batch, heads, n, _ = q.shape
    scores = torch.bmm(flat(q), flat(k).mT) / 2 + b.expand(batch, heads, -1, -1).reshape(
        batch * heads, n, -1
    )
    return scores.view(batch, heads, n, k.shape[2]).softmax(-1) @ v


def baddbmm_bias(q: T, k: T, v: T, b: T) -> T:
    batch, heads, n, _ = q.shape
    bias = b.expand(batch, heads, n, k.shape[2]).reshape(batch * heads, n, k.shape[2])
    scores = torch.baddbmm(bias, flat(q), flat(k).mT, alpha=0.5)
    return torch.bmm(scores.softmax(-1), flat(v)).view(batch, heads, n, -1)


def fused(q: T, k: T, v: T, b: T) -> T:
    return F.scaled_dot_product_attention(q, k, v, attn_mask=b.expand(-1, -1, -1, k.shape[2]))


def fused_keywords(q: T, k: T, v: T, b: T) -> T:
    mask = b.expand(-1, -1, -1, k.shape[2])
    return F.scaled_dot_product_attention(q, attn_mask=mask, value=v, key=k)


BIASED: dict[str, WithBias] = {
    f.__name__: f
    for f in (
        added, added_first, subtracted, added_in_place, added_between_views, added_before_view,
        baddbmm_bias, fused, fused_keywords,
    )
}  # fmt: skip


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("name", sorted(BIASED))
@pytest.mark.parametrize("over_keys", [True, False])
def test_additive_bias(name: str, over_keys: bool, dialect: str) -> None:
    bias = random_bias(BATCH, HEADS, TOKENS, TOKENS if over_keys else 1)
    x = image(*GRID, BATCH)
    captured = capture(Biased(BIASED[name], bias), [x], dialect)
    site = only_site(captured.rewrite(OPTIONS))
    assert (site.action, site.key_tokens_after) == ("rewritten", 6), site.reason
    assert_close(captured.run(), truth(bias, x, scale=0.5))


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("name", ["added", "added_between_views", "baddbmm_bias", "fused"])
def test_bias_over_keys_cannot_be_averaged(name: str, dialect: str) -> None:
    bias = random_bias(BATCH, HEADS, TOKENS, TOKENS)
    x = image(*GRID, BATCH)
    captured = capture(Biased(BIASED[name], bias), [x], dialect)
    before = captured.signature()
    site = only_site(captured.rewrite(PlanOptions(factors=(FACTORS,), sampling="average")))
    assert site.action == "refused"
    assert "averaged" in site.reason
    assert captured.signature() == before


@pytest.mark.parametrize("dialect", DIALECTS)
def test_bias_without_a_key_axis_lets_averages_pass(dialect: str) -> None:
    bias = random_bias(1, HEADS, TOKENS, 1)
    x = image(*GRID, BATCH)
    captured = capture(Biased(added, bias), [x], dialect)
    site = only_site(captured.rewrite(PlanOptions(factors=(FACTORS,), sampling="average")))
    assert site.action == "rewritten", site.reason
    assert_close(captured.run(), truth(bias, x, "average", scale=0.5))


@pytest.mark.parametrize("dialect", DIALECTS)
def test_a_scale_that_is_learned_for_every_head(dialect: str) -> None:
    """Swin v2, and q and k normalised: the scale is a tensor (heads, 1, 1)."""
    scale = random_bias(HEADS, 1, 1)

    def scaled(q: T, k: T, v: T, b: T) -> T:
        return (F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).mT * b.exp()).softmax(-1) @ v

    x = image(*GRID, BATCH)
    captured = capture(Biased(scaled, scale), [x], dialect)
    assert only_site(captured.rewrite(OPTIONS)).action == "rewritten"
    model = Biased(scaled, scale)
    model.pool = lambda t: stand_ins(t, 2, GRID, FACTORS)
    with torch.no_grad():
        assert_close(captured.run(), model(x))


@pytest.mark.parametrize("dialect", DIALECTS)
def test_one_bias_table_serves_two_attentions(dialect: str) -> None:
    """It is pooled once, and whoever reads it elsewhere keeps the whole."""
    bias = random_bias(1, HEADS, TOKENS, TOKENS)

    class Twice(Biased):
        def forward(self, image: T) -> tuple[T, T]:  # type: ignore[override]
            x = self.tokens(image)
            q, k, v = self.split(self.to_q(x)), self.keys(x), self.values(x)
            pool = self.pool
            mask = pool(self.bias.mT).mT
            once = attend(q, pool(k), pool(v), mask)
            return attend(once, pool(k), pool(v), mask), self.bias.sum((0, 1))

    def attend(q: T, k: T, v: T, b: T) -> T:
        return (q @ k.transpose(-1, -2) + b).softmax(-1) @ v

    x = image(*GRID, BATCH)
    captured = capture(Twice(attend, bias), [x], dialect)
    report = captured.rewrite(OPTIONS)
    assert [s.action for s in report.sites] == ["rewritten", "rewritten"]
    model = Twice(attend, bias)
    model.pool = lambda t: stand_ins(t, 2, GRID, FACTORS)
    with torch.no_grad():
        assert_close(captured.run(), model(x))


# What stands between the products and is not understood is reported, never left out ------------
def masked(q: T, k: T, v: T, b: T) -> T:
    return (q @ k.mT).masked_fill(b > 1, -1e4).softmax(-1) @ v


def chosen(q: T, k: T, v: T, b: T) -> T:
    return torch.where(b > 1, -1e4, q @ k.mT).softmax(-1) @ v


def multiplied(q: T, k: T, v: T, b: T) -> T:
    return (q @ k.mT * b).softmax(-1) @ v


def capped(q: T, k: T, v: T, b: T) -> T:
    return ((q @ k.mT).tanh() * 5 + b).softmax(-1) @ v


def clamped(q: T, k: T, v: T, b: T) -> T:
    return (q @ k.mT + b).clamp(-5, 5).softmax(-1) @ v


def two_biases(q: T, k: T, v: T, b: T) -> T:
    return (q @ k.mT + b + b.mT).softmax(-1) @ v


def talking_heads(q: T, k: T, v: T, b: T) -> T:
    mix = b[0, :, :HEADS, 0]
    scores = torch.einsum("bhij,hg->bgij", q @ k.mT, mix)
    return scores.softmax(-1) @ v


def stabilised(q: T, k: T, v: T, b: T) -> T:
    scores = q @ k.mT + b
    return (scores - scores.amax(-1, keepdim=True)).softmax(-1) @ v


def renormalised(q: T, k: T, v: T, b: T) -> T:
    weights = (q @ k.mT + b).softmax(-1).pow(2)
    return weights @ v


ODD: dict[str, WithBias] = {
    f.__name__: f
    for f in (
        masked, chosen, multiplied, capped, clamped, two_biases, talking_heads, stabilised,
        renormalised,
    )
}  # fmt: skip


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("name", sorted(ODD))
def test_odd_attention_is_reported(name: str, dialect: str) -> None:
    """Whatever stands between the products: one row, and dense numbers unless it is rewritten."""
    bias = random_bias(BATCH, HEADS, TOKENS, TOKENS)
    x = image(*GRID, BATCH)
    captured = capture(Biased(ODD[name], bias), [x], dialect)
    dense = captured.run()
    site = only_site(captured.rewrite(OPTIONS))
    assert site.reason
    assert site.kind != "cross", "its keys are the image's own tokens"
    if site.action == "rewritten":
        pooled = stand_ins(bias, 3, GRID, FACTORS)
        model = Biased(ODD[name], pooled)
        model.pool = lambda t: stand_ins(t, 2, GRID, FACTORS)
        with torch.no_grad():
            assert_close(captured.run(), model(x))
    else:
        assert site.action == "refused"
        assert all(torch.equal(a, b) for a, b in zip(captured.run(), dense, strict=True))


class Classifier(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.head = nn.Conv2d(3, 8, 3, padding=1), nn.Linear(8, 30)

    def forward(self, x: T) -> T:
        return self.head(self.stem(x).mean((2, 3))).softmax(-1)


@pytest.mark.parametrize("dialect", DIALECTS)
def test_a_classifier_has_no_attention(dialect: str) -> None:
    captured = capture(Classifier().eval(), [image(*GRID, BATCH)], dialect)
    before, dense = captured.signature(), captured.run()
    assert captured.rewrite(PlanOptions(kv_tokens=2)).sites == ()
    assert captured.signature() == before
    assert all(torch.equal(a, b) for a, b in zip(captured.run(), dense, strict=True))
