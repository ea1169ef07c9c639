"""Means with intervals over pairs of prompt and seed.

Pictures of one prompt are alike, so they are no independent draws: prompts are resampled, each with
all of its pictures (the cluster bootstrap; Davison & Hinkley 1997, section 3.8).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from todo_compile.bundle.plan_parts import Interval, Measured
from todo_compile.runtime.metrics import fidelity

_SAMPLES = 4000


def interval(values: Sequence[float], groups: Sequence[str]) -> Interval:
    """Mean of `values` and its 95 % percentile interval, `groups` resampled."""
    import numpy as np

    number = {group: i for i, group in enumerate(dict.fromkeys(groups))}
    index = np.array([number[group] for group in groups])
    sums, counts = np.bincount(index, np.asarray(values, float)), np.bincount(index).astype(float)
    size = len(counts)
    drawn = np.random.default_rng(0).multinomial(size, np.full(size, 1 / size), _SAMPLES)
    low, high = np.quantile(drawn @ sums / (drawn @ counts), (0.025, 0.975))
    mean = float(sums.sum() / counts.sum())
    # Rounding must not put a mean outside of the interval of equal values.
    return Interval(mean=mean, low=min(float(low), mean), high=max(float(high), mean))


def measure(pictures: Sequence[Any], dense: Sequence[Any], prompts: Sequence[str]) -> Measured:
    """A plan's pictures against the dense ones of the same pairs.

    Args:
        pictures, dense: (H, W, 3) in [0, 1].
        prompts: of each.
    """
    found = [fidelity(a, b) for a, b in zip(pictures, dense, strict=True)]
    drift = interval([f.mse for f in found], prompts)
    return Measured(
        pairs=len(found),
        prompts=len(set(prompts)),
        drift=drift,
        psnr=10 * math.log10(1 / drift.mean) if drift.mean else None,
        hpf=sum(f.hpf for f in found) / len(found),
        hpf_dense=sum(f.hpf_reference for f in found) / len(found),
    )
