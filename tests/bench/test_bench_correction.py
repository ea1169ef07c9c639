"""The correction's regression and its sites, against what can be worked out by hand."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.models.attention_processor import Attention

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))

from correction_parts.ridge import fit
from correction_parts.sites import Gram, Site, features


def sums(features: torch.Tensor, targets: torch.Tensor) -> Gram:
    f, t = features.double(), targets.double()
    return Gram(f.mT @ f, f.mT @ t, t.square().sum().item(), len(f))


def folds(truth: torch.Tensor | None, noise: float, width: int = 4) -> dict[int, Gram]:
    generator = torch.Generator().manual_seed(0)
    found: dict[int, Gram] = {}
    for fold in range(3):
        pooled, x = torch.randn(2, 400, width, generator=generator)
        known = features(pooled, x)
        missing = noise * torch.randn(400, width, generator=generator)
        found[fold] = sums(known, missing if truth is None else missing + known @ truth)
    return found


def test_a_linear_law_is_found() -> None:
    truth = torch.randn(9, 4, generator=torch.Generator().manual_seed(1))
    weight, strength, share = fit(folds(truth, 0.01))
    torch.testing.assert_close(weight.float(), truth, atol=5e-3, rtol=0)
    assert strength <= 1e-3
    assert share == pytest.approx(1, abs=1e-3)


def test_what_is_no_law_is_left_out() -> None:
    weight, strength, share = fit(folds(None, 1.0))
    assert strength >= 1, "noise asks for a strong ridge"
    assert share < 0.02
    assert weight.abs().max() < 0.2


def test_a_thin_law_is_found_with_a_thin_map() -> None:
    truth = torch.zeros(9, 4)
    truth[4:8] = torch.outer(torch.tensor([1.0, 2.0, 0.0, -1.0]), torch.tensor([0.5, 0, 1, 2.0]))
    truth[8] = 3.0
    weight, _, share = fit(folds(truth, 0.01), rank=1)
    assert torch.linalg.matrix_rank(weight[4:8], tol=1e-6) == 1
    torch.testing.assert_close(weight.float(), truth, atol=5e-3, rtol=0)
    assert share > 0.999
    truth = torch.zeros(9, 4)
    truth[4:8] = torch.eye(4)
    assert fit(folds(truth, 0.01), rank=1)[2] < 0.5, "rank 1 holds a quarter of this"


def test_a_site_pools_learns_and_corrects() -> None:
    torch.manual_seed(0)
    cls: Any = Attention
    attention = cls(query_dim=8, heads=2, dim_head=4).eval().requires_grad_(False)
    x = 2 * torch.randn(2, 6 * 4, 8)
    dense = attention(x)
    site = Site("x", 6, 4, [(1, 1), (2, 2)])
    attention.set_processor(site)
    torch.testing.assert_close(attention(x), dense)
    site.phase, site.fold = 1, 0
    pooled = attention(x)
    kept = x.unflatten(1, (6, 4))[:, ::2, ::2].flatten(1, 2)
    attention.set_processor(cls(query_dim=8, heads=2, dim_head=4).processor)
    torch.testing.assert_close(pooled, attention(x, encoder_hidden_states=kept))
    attention.set_processor(site)
    learned = site.learn[1, 0]
    assert learned.count == 48
    assert learned.tt == pytest.approx((dense - pooled).double().square().sum().item(), rel=1e-5)
    site.fold, site.maps[1] = None, fit({0: learned, 1: learned})[0]
    assert (attention(x) - dense).square().sum() < 0.8 * learned.tt
