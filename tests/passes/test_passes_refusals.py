"""Where the rewrite must not fire, or must be right if it does."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import oracle
import pytest
import torch
import torch.nn.functional as F
from graphs import (
    DIALECTS,
    Captured,
    ImageAttention,
    assert_close,
    capture,
    image,
    only_site,
)
from torch import nn

from todo_compile.options import SAMPLINGS, PlanOptions, Sampling
from todo_compile.passes.report import Report

ROWS, COLUMNS = 4, 6
TOKENS = ROWS * COLUMNS
HALF = PlanOptions(kv_tokens=6)
Projections = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


class Variant(ImageAttention):
    """An `ImageAttention` whose forward is given."""

    def __init__(self, body: Callable[..., Any], **keywords: Any) -> None:
        super().__init__(**keywords)
        self.body = body

    def forward(self, *inputs: torch.Tensor) -> Any:
        return self.body(self, *inputs)

    def qkv(self, x: torch.Tensor, y: torch.Tensor | None = None) -> Projections:
        y = x if y is None else y
        return self.split(self.to_q(x)), self.pool(self.keys(y)), self.pool(self.values(y))


def attempt(
    body: Callable[..., Any],
    *inputs: torch.Tensor,
    dialect: str = "export",
    options: PlanOptions = HALF,
    **keywords: Any,
) -> tuple[Report, Captured]:
    """Rewrite; whatever was not rewritten must compute exactly what it did."""
    captured = capture(Variant(body), inputs or (image(ROWS, COLUMNS),), dialect)
    before = captured.run()
    report = captured.rewrite(options, **keywords)
    if not report.rewritten:
        assert all(torch.equal(a, b) for a, b in zip(captured.run(), before, strict=True))
    return report, captured


def assert_left(report: Report, action: str, *words: str) -> None:
    site = only_site(report)
    assert site.action == action, site
    assert any(word in site.reason for word in words), site.reason
    assert site.key_tokens_after == site.key_tokens
    assert site.factor == (1, 1)


@pytest.mark.parametrize("dialect", DIALECTS)
def test_causal(dialect: str) -> None:
    def body(self: Variant, x: torch.Tensor) -> torch.Tensor:
        return F.scaled_dot_product_attention(*self.qkv(self.tokens(x)), is_causal=True)

    assert_left(attempt(body, dialect=dialect)[0], "refused", "causal")


@pytest.mark.parametrize("dialect", DIALECTS)
def test_boolean_mask_over_keys(dialect: str) -> None:
    def body(self: Variant, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return F.scaled_dot_product_attention(*self.qkv(self.tokens(x)), attn_mask=mask)

    mask = torch.ones(TOKENS, TOKENS, dtype=torch.bool).tril()
    report, _ = attempt(body, image(ROWS, COLUMNS), mask, dialect=dialect)
    assert_left(report, "refused", "mask")


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("spelled", ["masked_fill", "where"])
def test_boolean_mask_spelled_out_is_reported(dialect: str, spelled: str) -> None:
    def body(self: Variant, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        q, k, v = self.qkv(self.tokens(x))
        scores = q @ k.mT
        if spelled == "where":
            scores = torch.where(mask, scores, -1e4)
        else:
            scores = scores.masked_fill(~mask, float("-inf"))
        return scores.softmax(-1) @ v

    mask = torch.ones(TOKENS, TOKENS, dtype=torch.bool).tril()
    report, _ = attempt(body, image(ROWS, COLUMNS), mask, dialect=dialect)
    assert not report.rewritten
    assert len(report.sites) == 1, "no attention may be missing from the report"
    assert only_site(report).reason


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("what", ["probabilities", "scores", "dropped"])
def test_scores_used_elsewhere(dialect: str, what: str) -> None:
    def body(self: Variant, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        q, k, v = self.qkv(self.tokens(x))
        scores = q @ k.mT
        weights = scores.softmax(-1)
        dropped = F.dropout(weights, 0.1, training=False)
        other = {"probabilities": weights, "scores": scores, "dropped": dropped}[what]
        return dropped @ v, other.sum(-2)

    assert_left(attempt(body, dialect=dialect)[0], "refused", "used elsewhere", "feeds several")


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("with_grid", [False, True])
def test_packed_tokens(dialect: str, with_grid: bool) -> None:
    """(B, N, C) tokens prove no grid; the caller may name one."""

    def body(self: Variant, x: torch.Tensor) -> torch.Tensor:
        return F.scaled_dot_product_attention(*self.qkv(x))

    generator = torch.Generator().manual_seed(1)
    x = torch.randn(2, TOKENS, 8, generator=generator)
    grids = {TOKENS: (ROWS, COLUMNS)} if with_grid else None
    report, captured = attempt(body, x, dialect=dialect, token_grids=grids)
    if not with_grid:
        assert_left(report, "refused", "cannot be proved")
        return
    site = only_site(report)
    assert (site.action, site.grid) == ("rewritten", (ROWS, COLUMNS)), site.reason
    truth = Variant(body)
    truth.pool = lambda t: oracle.stand_ins(t, 2, (ROWS, COLUMNS), site.factor, "nearest")
    with torch.no_grad():
        assert_close(captured.run(), truth(x))


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("with_grid", [False, True])
def test_cross_attention_with_as_many_text_tokens(dialect: str, with_grid: bool) -> None:
    def body(self: Variant, x: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
        return F.scaled_dot_product_attention(*self.qkv(self.tokens(x), text))

    text = torch.randn(1, TOKENS, 8, generator=torch.Generator().manual_seed(1))
    grids = {TOKENS: (ROWS, COLUMNS)} if with_grid else None
    report, _ = attempt(body, image(ROWS, COLUMNS), text, dialect=dialect, token_grids=grids)
    assert not report.rewritten
    assert only_site(report).kind != "self"


@pytest.mark.parametrize("dialect", DIALECTS)
def test_reference_attention_from_a_second_image(dialect: str) -> None:
    def body(self: Variant, x: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        return F.scaled_dot_product_attention(*self.qkv(self.tokens(x), self.tokens(other)))

    report, _ = attempt(body, image(ROWS, COLUMNS), image(ROWS, COLUMNS, seed=1), dialect=dialect)
    assert_left(report, "dense", "cross-attention")


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("how", ["index", "index_select", "gather", "sort", "roll"])
def test_permuted_tokens(dialect: str, how: str) -> None:
    """Tokens in another order lie on no grid."""
    order = torch.randperm(TOKENS, generator=torch.Generator().manual_seed(1))

    def body(self: Variant, x: torch.Tensor, order: torch.Tensor) -> torch.Tensor:
        tokens = self.tokens(x)
        if how == "index":
            tokens = tokens[:, order]
        elif how == "index_select":
            tokens = tokens.index_select(1, order)
        elif how == "gather":
            tokens = tokens.gather(1, order[None, :, None].expand_as(tokens))
        elif how == "sort":
            tokens = tokens.sort(1).values
        else:
            tokens = tokens.roll(3, 1)
        return F.scaled_dot_product_attention(*self.qkv(tokens))

    report, _ = attempt(body, image(ROWS, COLUMNS), order, dialect=dialect)
    assert_left(report, "refused", "cannot be proved")


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("what", ["keys", "tokens", "view"])
def test_write_in_place_between_projection_and_attention(dialect: str, what: str) -> None:
    def body(self: Variant, x: torch.Tensor) -> torch.Tensor:
        tokens = self.tokens(x)
        q, k, v = self.split(self.to_q(tokens)), self.to_k(tokens), self.values(tokens)
        if what == "keys":
            k.mul_(2.0)
        elif what == "view":
            k[:, 1::3] += 5.0
        else:
            tokens.add_(3.0)
        k = self.split(k)
        out = F.scaled_dot_product_attention(q, self.pool(k), self.pool(v))
        return out + self.split(tokens)

    report, captured = attempt(body, dialect=dialect)
    site = only_site(report)
    truth = Variant(body)
    if site.action == "rewritten":
        truth.pool = lambda t: oracle.stand_ins(t, 2, (ROWS, COLUMNS), site.factor, "nearest")
    with torch.no_grad():
        assert_close(captured.run(), truth(image(ROWS, COLUMNS)))


@pytest.mark.parametrize("dialect", DIALECTS)
def test_write_in_place_between_two_reads_of_one_tensor(dialect: str) -> None:
    """Keys and values are the same memory at different times: their poolings are not the same."""

    def body(self: Variant, x: torch.Tensor) -> torch.Tensor:
        tokens = self.tokens(x)
        scores = torch.einsum("bid,bjd->bij", self.to_q(tokens), self.pool(tokens))
        tokens.mul_(-2.0)
        return scores.softmax(-1) @ self.pool(tokens)

    report, captured = attempt(body, dialect=dialect)
    site = only_site(report)
    truth = Variant(body)
    if site.action == "rewritten":
        truth.pool = lambda t: oracle.stand_ins(t, 1, (ROWS, COLUMNS), site.factor, "nearest")
    with torch.no_grad():
        assert_close(captured.run(), truth(image(ROWS, COLUMNS)))


@pytest.mark.parametrize("dialect", DIALECTS)
def test_softmax_that_is_no_attention(dialect: str) -> None:
    def body(self: Variant, x: torch.Tensor) -> torch.Tensor:
        return self.to_out(self.tokens(x).mean(1)).softmax(-1)

    report, _ = attempt(body, dialect=dialect)
    assert not report.sites


@pytest.mark.parametrize("dialect", DIALECTS)
def test_channel_attention(dialect: str) -> None:
    """Scores of channels against channels: the tokens are what is summed over."""

    def body(self: Variant, x: torch.Tensor) -> torch.Tensor:
        q, k, v = self.qkv(self.tokens(x))
        return (v @ (q.mT @ k / 5).softmax(-1)).contiguous()

    def fused(self: Variant, x: torch.Tensor) -> torch.Tensor:
        q, k, v = (t.mT for t in self.qkv(self.tokens(x)))
        return F.scaled_dot_product_attention(q, k, v)

    for one in (body, fused):
        report, _ = attempt(one, dialect=dialect, options=PlanOptions(kv_tokens=2))
        assert not report.rewritten


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_columns_before_rows(dialect: str, sampling: Sampling) -> None:
    """Tokens that count columns first: factors still act on the image's rows and columns."""

    class Transposed(ImageAttention):
        def tokens(self, image: torch.Tensor) -> torch.Tensor:
            return self.stem(image).permute(0, 3, 2, 1).flatten(1, 2)

    model = Transposed()
    captured = capture(model, (image(5, 8),), dialect)
    site = only_site(captured.rewrite(PlanOptions(factors=((4, 2),), sampling=sampling)))
    assert (site.action, site.grid, site.factor) == ("rewritten", (5, 8), (4, 2)), site.reason
    model.pool = lambda t: oracle.stand_ins(t, 2, (8, 5), (2, 4), sampling)
    with torch.no_grad():
        assert_close(captured.run(), model(image(5, 8)))


@pytest.mark.parametrize("dialect", DIALECTS)
def test_queries_and_keys_in_different_order(dialect: str) -> None:
    """On a square image both have N tokens; only their order tells them apart."""

    def body(self: Variant, x: torch.Tensor) -> torch.Tensor:
        picture = self.stem(x)
        q = self.split(self.to_q(picture.flatten(2).mT))
        turned = picture.mT.flatten(2).mT
        return F.scaled_dot_product_attention(q, self.keys(turned), self.values(turned))

    report, _ = attempt(body, image(4, 4), dialect=dialect)
    assert not report.rewritten


@pytest.mark.parametrize("dialect", DIALECTS)
def test_keys_and_values_in_different_order(dialect: str) -> None:
    def body(self: Variant, x: torch.Tensor) -> torch.Tensor:
        picture = self.stem(x)
        tokens, turned = picture.flatten(2).mT, picture.mT.flatten(2).mT
        return F.scaled_dot_product_attention(
            self.split(self.to_q(tokens)), self.keys(tokens), self.values(turned)
        )

    assert_left(attempt(body, image(4, 4), dialect=dialect)[0], "refused", "same grid")


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("sampling", SAMPLINGS)
@pytest.mark.parametrize("shifted", [False, True])
def test_windows(dialect: str, sampling: Sampling, shifted: bool) -> None:
    """Window attention: the grid is the window's, and the numbers are right."""
    side, window = 8, 4

    def body(self: Variant, x: torch.Tensor) -> torch.Tensor:
        picture = self.stem(x)
        if shifted:
            picture = picture.roll((-2, -2), (2, 3))
        b, c, h, w = picture.shape
        parts = picture.view(b, c, h // window, window, w // window, window)
        tokens = parts.permute(0, 2, 4, 3, 5, 1).reshape(-1, window * window, c)
        return F.scaled_dot_product_attention(*self.qkv(tokens))

    report, captured = attempt(
        body,
        image(side, side),
        dialect=dialect,
        options=PlanOptions(kv_tokens=4, sampling=sampling),
    )
    site, truth = only_site(report), Variant(body)
    if site.action == "rewritten":
        assert site.grid == (window, window)
        truth.pool = lambda t: oracle.stand_ins(t, 2, (window, window), site.factor, sampling)
    with torch.no_grad():
        assert_close(captured.run(), truth(image(side, side)))


def test_a_graph_without_attention() -> None:
    captured = capture(nn.Conv2d(3, 4, 3), (image(5, 5),), "export")
    before = captured.signature()
    assert not captured.rewrite().sites
    assert captured.signature() == before
