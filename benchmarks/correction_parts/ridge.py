"""Ridge regression from sums, its weight chosen by leaving out prompts."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from correction_parts.sites import Gram

STRENGTHS = tuple(10.0**e for e in (-5, -4, -3, -2, -1.5, -1, -0.5, 0, 0.5, 1))
"""Against the features' own variance."""


def fit(folds: Mapping[int, Gram], rank: int | None = None) -> tuple[Tensor, float, float]:
    """The map from features to what is missing.

    Args:
        folds: sums by group of prompts, two or more.
        rank: of the map's part that acts on the input; None leaves it whole.

    Returns:
        weight (k, c), the ridge's strength, and the share of the missing squares that the map
        explains in prompts which it was not fitted with.
    """
    whole = _total(folds)
    share, strength = 0.0, STRENGTHS[-1]
    for tried in STRENGTHS:
        left = sum(_squares(_solve(whole - one, tried, rank), one) for one in folds.values())
        if 1 - left / whole.tt > share:
            share, strength = 1 - left / whole.tt, tried
    weight = _solve(whole, strength, rank)
    # What explains nothing elsewhere is left out.
    return (weight if share > 0 else torch.zeros_like(weight)), strength, share


def _total(folds: Mapping[int, Gram]) -> Gram:
    first, *more = folds.values()
    for one in more:
        first = first + one
    return first


def _solve(gram: Gram, strength: float, rank: int | None) -> Tensor:
    # The last feature is 1: a constant is not held down. Others by their variance.
    mean = gram.ff[-1] / gram.count
    variance = (gram.ff.diagonal() / gram.count - mean.square()).clamp_min(1e-12)
    held = strength * gram.count * variance
    held[-1] = 0.0
    weight = torch.linalg.solve(gram.ff + torch.diag(held), gram.ft)
    if rank is None:
        return weight
    width = gram.ft.shape[1]
    part = weight[width:-1]  # acts on the input
    seen = gram.ff[width:-1, width:-1] - gram.count * torch.outer(mean[width:-1], mean[width:-1])
    _, ways = torch.linalg.eigh(part.mT @ seen @ part)
    ways = ways[:, -rank:]
    low = part @ ways @ ways.mT
    # What the rest misses on average goes into the constant.
    weight = weight.clone()
    weight[-1] += mean[width:-1] @ (part - low)
    weight[width:-1] = low
    return weight


def _squares(weight: Tensor, gram: Gram) -> float:
    fitted = (weight * (gram.ff @ weight)).sum().item()
    return gram.tt - 2 * (weight * gram.ft).sum().item() + fitted
