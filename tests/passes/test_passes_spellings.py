"""Every spelling of attention is found and rewritten right; what is none is left alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from graphs import (
    DIALECTS,
    SPELLINGS,
    Decoder,
    ImageAttention,
    assert_close,
    capture,
    image,
    make_unet,
    only_site,
    sdpa,
    unet_inputs,
)
from oracle import OracleProcessor, attention, stand_ins
from torch import nn

from todo_compile.options import PlanOptions

GRID, FACTORS = (6, 5), (2, 3)
HALF = PlanOptions(factors=(FACTORS,))


def truth(model: ImageAttention, x: torch.Tensor, sampling: str = "nearest") -> torch.Tensor:
    """`model` with keys and values subsampled by the oracle where they enter the attention."""
    model.pool = lambda t: stand_ins(t, 2, GRID, FACTORS, sampling)
    with torch.no_grad():
        return model(x)


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("name", sorted(SPELLINGS))
def test_spelling(name: str, dialect: str) -> None:
    x = image(*GRID, batch=2)
    captured = capture(ImageAttention(SPELLINGS[name]), [x], dialect)
    report = captured.rewrite(HALF)
    site = only_site(report)
    assert site.action == "rewritten", site.reason
    assert (site.kind, site.grid, site.key_tokens_after) == ("self", GRID, 6)
    assert_close(captured.run(), truth(ImageAttention(SPELLINGS[name]), x))


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("bias_keys", [True, False])
def test_additive_bias(dialect: str, bias_keys: bool) -> None:
    tokens = GRID[0] * GRID[1]
    bias = torch.randn(1, 1, tokens, tokens if bias_keys else 1, generator=torch.manual_seed(5))

    def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=bias.expand(-1, -1, -1, tokens))

    def spelled(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        return torch.matmul((torch.matmul(q, k.mT) * 0.5 + bias).softmax(-1), v)

    def expected(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        mine = stand_ins(bias, 3, GRID, FACTORS) if bias_keys else bias
        return attention(q, k, v, scale=0.5, bias=mine)

    x = image(*GRID)
    for attend_now in (attend, spelled):
        captured = capture(ImageAttention(attend_now), [x], dialect)
        site = only_site(captured.rewrite(HALF))
        assert site.action == "rewritten", site.reason
        assert_close(captured.run(), truth(ImageAttention(expected), x))


class AttnBlock(nn.Module):
    """The VAE attention of the CompVis code: 1×1 convolutions, value on the left."""

    def __init__(self, pool: Callable[[torch.Tensor], torch.Tensor] | None = None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.before = nn.Conv2d(6, 6, 3, padding=1)  # 1×1 convolutions tell nothing of position
        self.q, self.k, self.v = (nn.Conv2d(6, 6, 1) for _ in range(3))
        self.pool = pool or (lambda t: t)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        b, c, h, w = x.shape
        x = self.before(x)
        q = self.q(x).reshape(b, c, h * w).permute(0, 2, 1)
        k = self.pool(self.k(x).reshape(b, c, h * w))
        v = self.pool(self.v(x).reshape(b, c, h * w))
        weights = (torch.bmm(q, k) * c**-0.5).softmax(2).permute(0, 2, 1)
        return x + torch.bmm(v, weights).reshape(b, c, h, w)


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("sampling", ["nearest", "average"])
def test_compvis_vae_block(dialect: str, sampling: str) -> None:
    x = image(*GRID, batch=2, channels=6)
    captured = capture(AttnBlock().eval(), [x], dialect)
    report = captured.rewrite(PlanOptions(factors=(FACTORS,), sampling=sampling))  # type: ignore[arg-type]
    assert only_site(report).action == "rewritten"
    with torch.no_grad():
        expected = AttnBlock(lambda t: stand_ins(t, 2, GRID, FACTORS, sampling))(x)
    assert_close(captured.run(), expected)


@pytest.mark.parametrize("dialect", DIALECTS)
def test_vae_decoder(dialect: str) -> None:
    x = image(7, 5, channels=4)
    captured = capture(Decoder(), [x], dialect)
    site = only_site(captured.rewrite(PlanOptions(factors=((2, 2),))))
    assert (site.action, site.grid, site.heads) == ("rewritten", (7, 5), 1)
    model = Decoder()
    model.vae.decoder.mid_block.attentions[0].set_processor(  # type: ignore[union-attr, index]
        OracleProcessor({35: (7, 5)}, {35: (2, 2)}, "nearest")
    )
    with torch.no_grad():
        assert_close(captured.run(), model(x))


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("sampling", ["nearest", "average"])
def test_joint_attention_pools_the_image_only(dialect: str, sampling: str) -> None:
    inputs = unet_inputs(6, 7)
    captured = capture(make_unet("added kv"), inputs, dialect)
    options = PlanOptions(factors=((2, 2),), sampling=sampling)  # type: ignore[arg-type]
    report = captured.rewrite(options)
    joint = [s for s in report.sites if s.kind == "joint" and s.level == 1]
    assert joint
    assert all(s.action == "rewritten" for s in joint)
    assert all(s.key_tokens_after == s.key_tokens - 42 + 12 for s in joint)
    model = make_unet("added kv")
    model.unet.set_attn_processor(OracleProcessor({42: (6, 7)}, {42: (2, 2)}, sampling))  # type: ignore[operator]
    with torch.no_grad():
        assert_close(captured.run(), model(*inputs))


# What must not fire -------------------------------------------------------------------------------
def check_refused(model: nn.Module, inputs: list[Any], dialect: str, reason: str) -> None:
    """Nothing is rewritten, the reason names `reason`, and every bit stays."""
    captured = capture(model.eval(), inputs, dialect)
    before, nodes = captured.run(), captured.signature()
    report = captured.rewrite(PlanOptions(kv_tokens=4))
    assert report.rewritten == 0
    assert report.sites
    assert any(reason in s.reason for s in report.sites), [s.reason for s in report.sites]
    assert captured.signature() == nodes
    assert all(torch.equal(a, b) for a, b in zip(captured.run(), before, strict=True))


def _causal(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    return F.scaled_dot_product_attention(q, k, v, is_causal=True)


def _bool_mask(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    mask = torch.ones(q.shape[2], k.shape[2]).tril() > 0
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)


def _probabilities_used(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    weights = torch.matmul(q, k.mT).softmax(-1)
    return torch.matmul(weights, v) + weights.amax(-1, keepdim=True)


def _scores_used(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    scores = torch.matmul(q, k.mT)
    return torch.matmul(scores.softmax(-1), v) + scores.amax(-1, keepdim=True)


def _other_values(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    order = torch.arange(v.shape[2]).flip(0)
    return sdpa(q, k[:, :, order], v[:, :, order])


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize(
    ("attend", "reason"),
    [
        (_causal, "causal"),
        (_bool_mask, "mask could hide image keys"),
        (_probabilities_used, "probabilities are used elsewhere"),
        (_scores_used, "scores are used elsewhere"),
        (_other_values, "cannot be proved"),
    ],
)
def test_refused_spellings(attend: Any, reason: str, dialect: str) -> None:
    check_refused(ImageAttention(attend), [image(4, 3)], dialect, reason)


class Packed(nn.Module):
    """Tokens arrive as (B, N, C): no 4-D tensor tells their grid."""

    def __init__(self, pool: Callable[[torch.Tensor], torch.Tensor] | None = None) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.qkv = nn.ModuleList(nn.Linear(8, 8) for _ in range(3))
        self.pool = pool or (lambda t: t)

    def forward(self, x: torch.Tensor, context: torch.Tensor | None = None) -> torch.Tensor:
        own = x if context is None else context
        q, k, v = self.qkv[0](x), self.pool(self.qkv[1](own)), self.pool(self.qkv[2](own))
        return sdpa(*(t.unflatten(-1, (2, 4)).transpose(1, 2) for t in (q, k, v)))


@pytest.mark.parametrize("dialect", DIALECTS)
def test_packed_tokens_need_the_grid_from_the_caller(dialect: str) -> None:
    x = torch.randn(2, 12, 8, generator=torch.manual_seed(2))
    check_refused(Packed(), [x], dialect, "cannot be proved")
    captured = capture(Packed(), [x], dialect)
    report = captured.rewrite(PlanOptions(factors=((2, 2),)), token_grids={12: (3, 4)})
    assert only_site(report).grid == (3, 4)
    with torch.no_grad():
        assert_close(captured.run(), Packed(lambda t: stand_ins(t, 1, (3, 4), (2, 2)))(x))


@pytest.mark.parametrize("dialect", DIALECTS)
def test_cross_attention_with_as_many_text_tokens_as_pixels_is_left_alone(dialect: str) -> None:
    captured = capture(make_unet("upper level"), unet_inputs(4, 4, text=16), dialect)
    before = captured.run()
    report = captured.rewrite(PlanOptions(factors=()))
    assert {s.action for s in report.sites} <= {"dense", "refused"}
    report = captured.rewrite(PlanOptions(factors=((2, 2),)))
    assert all(s.module.endswith("attn1") for s in report.sites if s.action == "rewritten")
    assert not all(torch.equal(a, b) for a, b in zip(captured.run(), before, strict=True))


class TwoImages(ImageAttention):
    """Queries of one image, keys of another of the same size."""

    def forward(self, image: torch.Tensor, other: torch.Tensor | None = None) -> torch.Tensor:
        assert other is not None
        x, y = self.tokens(image), self.tokens(other)
        out = sdpa(self.split(self.to_q(x)), self.keys(y), self.values(y))
        return self.to_out(out.transpose(1, 2).flatten(2))


@pytest.mark.parametrize("dialect", DIALECTS)
def test_reference_attention_is_no_self_attention(dialect: str) -> None:
    inputs = [image(4, 4), image(4, 4, seed=1)]
    check_refused(TwoImages(), inputs, dialect, "another grid")


class WrittenInPlace(ImageAttention):
    """The keys' memory is overwritten after the key view was taken."""

    def keys(self, x: torch.Tensor) -> torch.Tensor:
        projected = self.to_k(x)
        keys = self.split(projected)
        projected.mul_(2.0)
        return keys


@pytest.mark.parametrize("dialect", DIALECTS)
def test_in_place_writes_stop_hoisting(dialect: str) -> None:
    x = image(*GRID)
    captured = capture(WrittenInPlace(), [x], dialect)
    assert only_site(captured.rewrite(HALF)).action == "rewritten"
    assert_close(captured.run(), truth(WrittenInPlace(), x))


class NoAttention(nn.Module):
    """A classifier's softmax, and attention over channels."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Conv2d(3, 8, 3, padding=1)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        tokens = self.stem(x).flatten(2)
        channels = (tokens @ tokens.mT).softmax(-1) @ tokens
        return channels, tokens.mean(-1).softmax(-1)


@pytest.mark.parametrize("dialect", DIALECTS)
def test_other_softmaxes_are_left_alone(dialect: str) -> None:
    captured = capture(NoAttention().eval(), [image(4, 4)], dialect)
    before = captured.run()
    report = captured.rewrite(PlanOptions(kv_tokens=2))
    assert report.rewritten == 0
    assert all(torch.equal(a, b) for a, b in zip(captured.run(), before, strict=True))


class Columns(ImageAttention):
    """Tokens in column-major order."""

    def tokens(self, image: torch.Tensor) -> torch.Tensor:
        return self.stem(image).permute(0, 3, 2, 1).flatten(1, 2)


@pytest.mark.parametrize("dialect", DIALECTS)
def test_column_major_tokens_have_their_own_grid(dialect: str) -> None:
    x = image(5, 6)
    captured = capture(Columns(), [x], dialect)
    site = only_site(captured.rewrite(PlanOptions(factors=((3, 2),))))
    assert (site.grid, site.factor) == ((5, 6), (3, 2))
    # Column after column: the slow axis is the width, whose factor is 2.
    assert_close(captured.run(), truth(Columns(), x))
