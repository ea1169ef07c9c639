"""The choice itself: one candidate for every group, exactly (multiple-choice knapsack).

    minimise Σ loss[g, c]  subject to  Σ cost[g, c] ≤ most      one c for every group g

Groups are site × phase. It is a mixed-integer linear programme of a few hundred binary variables,
which scipy's HiGHS solves in milliseconds. Cost and loss may change places, which gives the
cheapest choice within a loss.
"""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from typing import Any

from todo_compile.packages import load

Table = Sequence[Sequence[float]]
"""For each group the value of each of its candidates."""
_SLACK = 1e-9


def choose(values: Table, weights: Table, most: float) -> tuple[int, ...] | None:
    """For each group the candidate so that the values' sum is least within the weights' bound.

    Args:
        values: what is minimised.
        weights: what is bounded, of the same shape; none negative.
        most: bound on the weights' sum.

    Returns:
        None if no choice is within the bound.

    Raises:
        MissingPackageError: scipy is absent.
    """
    least = [min(group) for group in weights]
    room = most - sum(least)
    if room < -_SLACK * max(abs(most), 1e-300):
        return None
    if not values:
        return ()
    lightest = [
        min(range(len(w)), key=lambda i, w=w, v=v: (w[i], v[i]))
        for v, w in zip(values, weights, strict=True)
    ]
    # In units of what the weights can differ by: a solver's tolerances are absolute.
    unit = sum(max(w) - low for w, low in zip(weights, least, strict=True))
    if unit == 0 or room >= unit:
        return tuple(
            min(range(len(v)), key=lambda i, v=v, w=w: (v[i], w[i]))
            for v, w in zip(values, weights, strict=True)
        )
    bound = room / unit
    for _ in range(40):
        picked = _solve(values, weights, least, unit, bound)
        if picked is None:
            break
        # Within tolerances the solver may overstep: what counts is the sum itself.
        if sum(w[i] for w, i in zip(weights, picked, strict=True)) <= most * (1 + _SLACK):
            return picked
        bound -= 1e-7 + bound * 1e-6
    return tuple(lightest)


def _solve(
    values: Table, weights: Table, least: Sequence[float], unit: float, bound: float
) -> tuple[int, ...] | None:
    numpy: Any = load("numpy", "Choosing a plan")
    optimize: Any = load("scipy.optimize", "Choosing a plan")
    sparse: Any = load("scipy.sparse", "Choosing a plan")
    sizes = [len(group) for group in values]
    scale = sum(max(v) - min(v) for v in values) or 1.0
    objective = numpy.array(
        [(x - min(group)) / scale for group in values for x in group], dtype=float
    )
    heavy = [(x - low) / unit for group, low in zip(weights, least, strict=True) for x in group]
    group_of = numpy.repeat(numpy.arange(len(sizes)), sizes)
    one_each = sparse.csr_matrix(
        (numpy.ones(len(objective)), (group_of, numpy.arange(len(objective))))
    )
    with _no_output():
        found: Any = optimize.milp(
            objective,
            integrality=numpy.ones(len(objective)),
            bounds=optimize.Bounds(0, 1),
            constraints=[
                optimize.LinearConstraint(one_each, 1, 1),
                optimize.LinearConstraint(numpy.array([heavy]), -math.inf, max(bound, 0.0)),
            ],
            options={"mip_rel_gap": 0.0},
        )
    if found.x is None:
        return None
    picked: list[int] = []
    start = 0
    for size in sizes:
        picked.append(int(found.x[start : start + size].argmax()))
        start += size
    return tuple(picked)


@contextmanager
def _no_output() -> Generator[None]:
    """HiGHS prints a remark of its own at times, past Python: JSON on standard output must not have
    it."""
    sys.stdout.flush()
    kept = os.dup(1)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 1)
        yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)
        os.close(nowhere)
