"""Means with bootstrap intervals, and paired comparisons."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

_SAMPLES = 10_000


def interval(values: Sequence[float], seed: int = 0) -> tuple[float, float, float]:
    """Mean and its 95 % percentile bootstrap interval (Efron & Tibshirani 1993, chapter 13)."""
    x = np.asarray(values, float)
    drawn = np.random.default_rng(seed).integers(0, len(x), (_SAMPLES, len(x)))
    low, high = np.quantile(x[drawn].mean(1), (0.025, 0.975))
    return float(x.mean()), float(low), float(high)


def paired(values: Sequence[float], base: Sequence[float], seed: int = 0) -> dict[str, Any]:
    """`values` against `base` on the same pairs.

    Returns:
        ratio of the means with its 95 % paired bootstrap interval, the share of pairs where
        `values` is smaller, and the two-sided p of Wilcoxon's signed-rank test (None below 6 pairs,
        where it cannot reach 5 %).
    """
    from scipy.stats import wilcoxon

    x, y = np.asarray(values, float), np.asarray(base, float)
    drawn = np.random.default_rng(seed).integers(0, len(x), (_SAMPLES, len(x)))
    with np.errstate(divide="ignore", invalid="ignore"):
        ratios = x[drawn].mean(1) / y[drawn].mean(1)
        ratio = float(x.mean() / y.mean())
    low, high = np.nanquantile(ratios, (0.025, 0.975))
    p: float | None = None
    if len(x) >= 6 and np.any(x != y):
        tested: Any = wilcoxon(x, y)
        p = float(tested.pvalue)
    return {
        "ratio": ratio,
        "low": float(low),
        "high": float(high),
        "smaller": float((x < y).mean()),
        "p": p,
    }
