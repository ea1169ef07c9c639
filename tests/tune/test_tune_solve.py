"""The solver against trying every choice."""

from __future__ import annotations

import itertools
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("scipy")

from todo_compile.tuning.solve import Table, choose

GROUP = st.lists(st.tuples(st.integers(0, 1000), st.integers(0, 1000)), min_size=1, max_size=4)


def best(values: Table, weights: Table, most: float) -> float:
    """The least sum of values within the bound; infinite if there is none."""
    return min(
        (
            sum(v[i] for v, i in zip(values, picked, strict=True))
            for picked in itertools.product(*(range(len(v)) for v in values))
            if sum(w[i] for w, i in zip(weights, picked, strict=True)) <= most
        ),
        default=math.inf,
    )


@settings(max_examples=60, deadline=None)
@given(
    groups=st.lists(GROUP, min_size=1, max_size=5),
    share=st.floats(0, 1.1),
    scales=st.tuples(st.sampled_from((1e-9, 1.0)), st.sampled_from((1.0, 1e9))),
)
def test_no_choice_is_better(
    groups: list[list[tuple[int, int]]], share: float, scales: tuple[float, float]
) -> None:
    values = [[v * scales[0] for v, _ in group] for group in groups]
    weights = [[w * scales[1] for _, w in group] for group in groups]
    most = math.floor(share * sum(max(w for _, w in group) for group in groups)) * scales[1]
    truth = best(values, weights, most)
    picked = choose(values, weights, most)
    if truth == math.inf:
        assert picked is None
        return
    assert picked is not None
    assert sum(w[i] for w, i in zip(weights, picked, strict=True)) <= most * (1 + 1e-9)
    got = sum(v[i] for v, i in zip(values, picked, strict=True))
    assert got <= truth * (1 + 1e-6) + 1e-12 * scales[0]


def test_a_greedy_choice_is_not_enough() -> None:
    # By ratio the first group's cheap step looks best, and then the second no longer fits.
    values = [[10.0, 6.0], [10.0, 0.0]]
    weights = [[0.0, 3.0], [0.0, 8.0]]
    assert choose(values, weights, 8) == (0, 1)
    assert choose(values, weights, 11) == (1, 1)
    assert choose(values, weights, 2.9) == (0, 0)
    assert choose(values, weights, -1) is None
    assert choose([], [], 0) == ()


def test_of_equal_losses_the_cheaper_is_taken_where_all_fits() -> None:
    assert choose([[1.0, 1.0]], [[5.0, 2.0]], 100) == (1,)
