"""From samples to what is claimed: ratios, the share of what could be removed, exponents."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from race_parts.clock import Sample, quartiles
from race_parts.variants import BOUND, DENSE


def ratios(samples: Mapping[str, Sequence[Sample]]) -> dict[str, dict[str, Any]]:
    """Dense over each other variant, one ratio a round.

    ``ratio`` is of the processor's seconds on a CPU and of the clock's on a GPU, ``clock`` of the
    clock's. ``removed`` is the share of the removable time (dense less bound) that is gone.
    """
    dense, bound = samples.get(DENSE), samples.get(BOUND)
    if dense is None:
        return {}
    found: dict[str, dict[str, Any]] = {}
    for name, own in samples.items():
        if name == DENSE:
            continue
        pairs = list(zip(dense, own, strict=False))
        found[name] = {
            "ratio": quartiles([d.cost / o.cost for d, o in pairs]),
            "clock": quartiles([d.seconds / o.seconds for d, o in pairs]),
            "removed": None,
        }
        if bound is not None and name != BOUND:
            shares = [
                (d.cost - o.cost) / (d.cost - b.cost)
                for d, o, b in zip(dense, own, bound, strict=False)
                if d.cost > b.cost
            ]
            found[name]["removed"] = quartiles(shares) if shares else None
    return found


def ours(
    samples: Mapping[str, Sequence[Sample]], alone: Mapping[str, Sequence[Sample]]
) -> dict[str, dict[str, Any]]:
    """What the compiler itself costs: a plan over the bound and the plan's attentions together.

    1 is a plan that costs nothing beyond the attentions that it leaves. One ratio a round.
    """
    bound = samples.get(BOUND)
    if bound is None:
        return {}
    return {
        name: {
            "attentions": quartiles([a.cost for a in own]),
            "ratio": quartiles(
                [
                    s.cost / (b.cost + a.cost)
                    for s, b, a in zip(samples[name], bound, own, strict=False)
                ]
            ),
        }
        for name, own in alone.items()
    }


def cost_of(facts: Mapping[str, Any]) -> float | None:
    """Median seconds of a variant: the processor's on a CPU, the clock's on a GPU."""
    taken = facts["processor_seconds"] or facts["seconds"]
    return float(taken["median"]) if taken else None


def exponents(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Time over pixels as a power: the slope of log time over log pixels, by least squares.

    One for each variant that was measured at two sizes at least and all else equal; 1 is a time
    that grows as the picture does, 2 is all attention.
    """
    groups: dict[tuple[Any, ...], dict[int, float]] = {}
    for row in rows:
        for name, facts in row["variants"].items():
            key = (row["workload"], row["batch"], row["precision"], row["runtime"], name)
            cost = cost_of(facts)
            if cost is not None:
                groups.setdefault(key, {})[row["px"]] = cost
    fitted: list[dict[str, Any]] = []
    for (workload, batch, precision, runtime, name), times in groups.items():
        if len(times) < 2:
            continue
        xs = [2 * math.log(px) for px in times]
        ys = [math.log(seconds) for seconds in times.values()]
        x, y = sum(xs) / len(xs), sum(ys) / len(ys)
        slope = sum((a - x) * (b - y) for a, b in zip(xs, ys, strict=True))
        slope /= sum((a - x) ** 2 for a in xs)
        fitted.append(
            {
                "workload": workload,
                "batch": batch,
                "precision": precision,
                "runtime": runtime,
                "variant": name,
                "px": sorted(times),
                "exponent": slope,
            }
        )
    return fitted
