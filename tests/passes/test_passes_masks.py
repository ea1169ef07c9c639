"""Masks over the keys: pooled only where the graph proves that no key can be lost."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from graphs import DIALECTS, ImageAttention, assert_close, capture, image, only_site
from oracle import stand_ins
from torch import nn

from todo_compile.options import PlanOptions

GRID, TOKENS, TEXT = (4, 6), 24, 5
HALF = PlanOptions(factors=((2, 2),))
Make = Callable[[torch.Tensor], torch.Tensor]


def _distance() -> torch.Tensor:
    place = torch.arange(TOKENS)
    return (place[:, None] - place[None]).abs()


def _floats(allowed: torch.Tensor, hidden: float = -math.inf) -> torch.Tensor:
    return torch.zeros(allowed.shape).masked_fill(~allowed, hidden)


HIDING: dict[str, torch.Tensor] = {
    "local window": _floats(_distance() < 3),
    "local window, −1e4": _floats(_distance() < 3, -1e4),
    "local window, −100": _floats(_distance() < 3, -100.0),
    "causal": _floats(_distance() == _distance().tril()),
    "own token": _floats(_distance() == 0),
    "own token, True and False": _distance() == 0,
    "local window, True and False": _distance() < 3,
    "a slope": -2.0 * _distance(),
    "not a number": torch.full((TOKENS, TOKENS), math.nan),
}


class Masked(ImageAttention):
    """Self-attention under a mask that is a buffer, an input or made in the graph."""

    def __init__(self, spelling: str, mask: torch.Tensor | None = None) -> None:
        super().__init__()
        self.spelling = spelling
        self.register_buffer("mask", mask)

    def forward(self, image: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        x = self.tokens(image)
        q, k, v = self.split(self.to_q(x)), self.pool(self.keys(x)), self.pool(self.values(x))
        found: Any = self.mask if mask is None else mask
        if self.spelling == "sdpa":
            out = F.scaled_dot_product_attention(q, k, v, attn_mask=found)
        else:
            if found.dtype is torch.bool:
                found = torch.zeros(found.shape).masked_fill(~found, -math.inf)
            out = (q @ k.mT * 0.5 + found).softmax(-1) @ v
        return self.to_out(out.transpose(1, 2).flatten(2))


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("given", ["buffer", "input"])
@pytest.mark.parametrize("mask", HIDING)
def test_a_mask_that_hides_keys_is_refused(mask: str, given: str, dialect: str) -> None:
    values = HIDING[mask]
    reasons = set[str]()
    for spelling in ("sdpa", "product"):
        model = Masked(spelling, values if given == "buffer" else None)
        inputs = [image(*GRID), *([values] if given == "input" else [])]
        captured = capture(model, inputs, dialect)
        before = captured.signature()
        site = only_site(captured.rewrite(HALF))
        assert site.action == "refused", site
        assert captured.signature() == before
        reasons.add(site.reason)
    assert all("could hide image keys" in reason for reason in reasons), reasons


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("spelling", ["sdpa", "product"])
def test_a_small_learned_bias_is_pooled(spelling: str, dialect: str) -> None:
    torch.manual_seed(5)
    bias = torch.randn(TOKENS, TOKENS)
    model, x = Masked(spelling, bias), image(*GRID)
    captured = capture(model, [x], dialect)
    site = only_site(captured.rewrite(HALF))
    assert site.action == "rewritten", site.reason
    model.mask = stand_ins(bias, 1, GRID, (2, 2))
    model.pool = lambda t: stand_ins(t, 2, GRID, (2, 2))
    with torch.no_grad():
        assert_close(captured.run(), model(x))


def test_at_the_users_own_risk() -> None:
    captured = capture(Masked("sdpa", HIDING["local window, −1e4"]), [image(*GRID)], "export")
    options = PlanOptions(factors=((2, 2),), masks="pool")
    site = only_site(captured.rewrite(options))
    assert site.action == "rewritten"
    assert 'masks="pool"' in site.reason


def _cat(text: torch.Tensor) -> torch.Tensor:
    seen = torch.ones(text.shape[0], TOKENS, dtype=torch.bool)
    return torch.cat([text > 0, seen], 1)[:, None, None, :]


def _pad(text: torch.Tensor) -> torch.Tensor:
    return F.pad(text > 0, (0, TOKENS), value=True).view(-1, 1, 1, TEXT + TOKENS)


def _numbers(text: torch.Tensor) -> torch.Tensor:
    whole = torch.cat([(text > 0).float(), text.new_ones(text.shape[0], TOKENS)], 1)
    return ((1 - whole) * -10000.0)[:, None, None].expand(-1, -1, TEXT + TOKENS, -1)


def _outer(text: torch.Tensor) -> torch.Tensor:
    whole = torch.cat([text > 0, torch.ones_like(text[:, :1]).repeat(1, TOKENS) > 0], 1)
    return (whole[:, :, None] & whole[:, None, :])[:, None]


def _where(text: torch.Tensor) -> torch.Tensor:
    whole = F.pad((text > 0).to(torch.int64), (0, TOKENS), value=1).bool()
    return torch.where(whole, 0.0, -torch.inf).unsqueeze(1).unsqueeze(1)


class Padded(nn.Module):
    """Joint attention whose text is padded: the mask hides text, and every image key is seen."""

    def __init__(self, make: Make) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.to_q, self.to_k, self.to_v = (nn.Linear(8, 8) for _ in range(3))
        self.make = make
        self.pool: Callable[[torch.Tensor], torch.Tensor] = lambda t: t

    def forward(self, image: torch.Tensor, text: torch.Tensor, length: torch.Tensor) -> Any:
        x = torch.cat([text, self.stem(image).flatten(2).mT], 1)
        q, k, v = (
            p(x).unflatten(-1, (2, 4)).transpose(1, 2) for p in (self.to_q, self.to_k, self.to_v)
        )
        mask = self.make(length)
        return F.scaled_dot_product_attention(q, self.pool(k), self.pool(v), attn_mask=mask)


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("make", [_cat, _pad, _numbers, _outer, _where], ids=lambda f: f.__name__)
def test_padded_text_beside_an_image_that_is_all_visible(make: Make, dialect: str) -> None:
    torch.manual_seed(2)
    model = Padded(make).eval()
    length = torch.tensor([[1.0, 1, 1, 0, 0], [1, 1, 1, 1, 0]])
    inputs = [image(*GRID, batch=2), torch.randn(2, TEXT, 8), length]
    captured = capture(model, inputs, dialect)
    site = only_site(captured.rewrite(HALF))
    assert site.action == "rewritten", site.reason
    model.pool = lambda t: stand_ins(t, 2, GRID, (2, 2), offset=TEXT)
    with torch.no_grad():
        expected = model(*inputs)
        seen = torch.isfinite(expected)  # a padded text query may see nothing at all
        assert_close((captured.run()[0][seen],), expected[seen])


@pytest.mark.parametrize("dialect", DIALECTS)
def test_padded_text_whose_mask_is_one_input_is_refused(dialect: str) -> None:
    model = Padded(lambda whole: whole[:, None, None] > 0).eval()
    inputs = [image(*GRID), torch.randn(1, TEXT, 8), torch.ones(1, TEXT + TOKENS)]
    site = only_site(capture(model, inputs, dialect).rewrite(HALF))
    assert site.action == "refused"
    assert "could hide image keys" in site.reason
