"""Means with bootstrap intervals, and paired comparisons, over prompts.

Pictures of one prompt are alike, so they are no independent draws: prompts are resampled, each with
all of its pictures (the cluster bootstrap; Davison & Hinkley 1997, section 3.8).
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
_SAMPLES = 10_000


def interval(
    values: Sequence[float], groups: Sequence[Hashable] | None = None, seed: int = 0
) -> tuple[float, float, float]:
    """Mean and its 95 % percentile interval.

    Args:
        groups: what each value belongs to, e.g. its prompt; None: every value stands alone.
    """
    sums, counts = _by_group(np.asarray(values, float), groups)
    drawn = resampled(len(counts), seed)
    low, high = np.quantile(drawn @ sums / (drawn @ counts), (0.025, 0.975))
    return float(sums.sum() / counts.sum()), float(low), float(high)


def paired(
    values: Sequence[float],
    base: Sequence[float],
    groups: Sequence[Hashable] | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """`values` against `base` on the same pairs.

    Returns:
        ratio of the means with its 95 % paired bootstrap interval, the share of pairs where
        `values` is smaller, and the two-sided p of Wilcoxon's signed-rank test on the groups' means
        (None below 6 groups, where it cannot reach 5 %, and where all are equal).
    """
    from scipy.stats import wilcoxon

    x, y = np.asarray(values, float), np.asarray(base, float)
    (x_sums, counts), (y_sums, _) = _by_group(x, groups), _by_group(y, groups)
    drawn = resampled(len(counts), seed)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratios = (drawn @ x_sums) / (drawn @ y_sums)
        ratio = float(x_sums.sum() / y_sums.sum())
    low, high = np.nanquantile(ratios, (0.025, 0.975))
    p: float | None = None
    if len(counts) >= 6 and np.any(x_sums != y_sums):
        tested: Any = wilcoxon(x_sums / counts, y_sums / counts)
        p = float(tested.pvalue)
    return {
        "ratio": ratio,
        "low": float(low),
        "high": float(high),
        "smaller": float((x < y).mean()),
        "p": p,
    }


def resampled(groups: int, seed: int = 0) -> Array:
    """How often each group is drawn in each bootstrap sample: (samples, groups)."""
    drawn = np.random.default_rng(seed).multinomial(groups, np.full(groups, 1 / groups), _SAMPLES)
    return drawn.astype(float)


def indices(groups: Sequence[Hashable]) -> Array:
    """For each value the number of its group, in order of appearance."""
    number = {group: i for i, group in enumerate(dict.fromkeys(groups))}
    return np.array([number[group] for group in groups])


def _by_group(values: Array, groups: Sequence[Hashable] | None) -> tuple[Array, Array]:
    """Sum and count of each group."""
    if groups is None:
        return values, np.ones(len(values))
    index = indices(groups)
    return np.bincount(index, values), np.bincount(index).astype(float)
