"""Blends, staggered phases, and factors of single sites."""

from __future__ import annotations

import math
from typing import Any

import oracle
import pytest
import torch
from graphs import DIALECTS, ImageAttention, assert_close, capture, image, make_unet, unet_inputs
from hypothesis import example, given, settings
from hypothesis import strategies as st

from todo_compile.errors import ConfigError
from todo_compile.options import PlanOptions, check_sampling
from todo_compile.passes.report import Report
from todo_compile.passes.rewrite.pooling import Pooling, pool_tokens, stagger_pattern

Pair = tuple[int, int]
GRIDS = {60: (10, 6), 15: (5, 3)}


@settings(max_examples=60)
@given(
    grid=st.tuples(st.integers(1, 13), st.integers(1, 13)),
    by=st.tuples(st.integers(1, 6), st.integers(1, 6)),
    phase=st.tuples(st.integers(0, 5), st.integers(0, 5)),
    weight=st.integers(1, 99),
)
@example((7, 5), (4, 3), (3, 2), 50)  # both phases beyond the last cell
@example((1, 11), (1, 4), (0, 3), 25)
@example((3, 2), (3, 2), (2, 1), 75)  # one cell
def test_pooling_is_the_specification(grid: Pair, by: Pair, phase: Pair, weight: int) -> None:
    by = (min(by[0], grid[0]), min(by[1], grid[1]))
    phase = (phase[0] % by[0], phase[1] % by[1])
    x = image(*grid, batch=2).flatten(2)
    arguments = (2, 0, *grid, *by)
    got = pool_tokens(x, *arguments, "staggered", *phase)
    assert torch.equal(got, oracle.subsample(x, 2, grid, by, "staggered", start=phase))
    assert got.shape[2] == math.ceil(grid[0] / by[0]) * math.ceil(grid[1] / by[1])
    turned = Pooling(*grid, *by, "staggered", 0, *phase).transposed()
    other = pool_tokens(x.unflatten(2, grid).mT.flatten(2), 2, *turned.arguments())
    cells = tuple(math.ceil(g / f) for g, f in zip(grid, by, strict=True))
    assert torch.equal(other.unflatten(2, cells[::-1]).mT.flatten(2), got)
    sampling = check_sampling(f"blend:{weight / 100}")
    torch.testing.assert_close(
        pool_tokens(x, *arguments, sampling), oracle.subsample(x, 2, grid, by, sampling)
    )
    ones = torch.ones(1, 1, grid[0] * grid[1])
    total = pool_tokens(ones, *arguments, sampling)
    torch.testing.assert_close(total, torch.ones_like(total), msg="weights sum to one")


@pytest.mark.parametrize("factors", [(1, 1), (2, 2), (3, 3), (4, 2), (1, 5), (3, 7)])
def test_stagger_pattern(factors: Pair) -> None:
    size = factors[0] * factors[1]
    pattern = stagger_pattern(*factors, 2 * size + 1)
    assert pattern == tuple(oracle.stagger_phases(factors, 2 * size + 1))
    assert len(set(pattern[:size])) == size, "every phase once before any twice"
    assert pattern[size : 2 * size] == pattern[:size]
    assert stagger_pattern(*factors, 1) == ((0, 0),), "the first site is the paper's"
    assert stagger_pattern(*factors, size)[:2] == pattern[: min(2, size)]


def test_factor_two_by_hand() -> None:
    assert stagger_pattern(2, 2, 5) == ((0, 0), (1, 1), (0, 1), (1, 0), (0, 0))


@pytest.mark.parametrize("given", ["blend", "blend:", "blend:x", "blend:0", "blend:1", "blend:-.5",
                                   "blend:1.5", "blend:nan", "stagger", "", None, 2])  # fmt: skip
def test_sampling_refuses(given: Any) -> None:
    with pytest.raises(ConfigError) as caught:
        PlanOptions(sampling=given)
    assert caught.value.remedy


def test_equal_blends_are_equal_options() -> None:
    one, other = PlanOptions(sampling="blend:.50"), PlanOptions(sampling="blend:0.5")
    assert one == other
    assert hash(one) == hash(other)
    assert one.describe()["sampling"] == "blend:0.5"
    assert PlanOptions.create(sampling="blend:0.25").sampling == "blend:0.25"


class TwoLayers(ImageAttention):
    """Two attentions on one grid, the second on the result of the first."""

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        x = self.tokens(image)
        for _ in range(2):
            out = self.attend(
                self.split(self.to_q(x)), self.pool(self.keys(x)), self.pool(self.values(x))
            )
            x = x + self.to_out(out.transpose(1, 2).flatten(2))
        return x


def phases(report: Report) -> list[str]:
    return [s.sampling for s in report.sites if s.action == "rewritten"]


@pytest.mark.parametrize("dialect", DIALECTS)
def test_staggered_layers(dialect: str) -> None:
    """Numbers, phases in the report, one pooling a site, no pooling of one site for the other."""
    grid, factors = (5, 7), (2, 3)
    model, x = TwoLayers(), image(*grid, batch=2)
    captured = capture(model, (x,), dialect)
    report = captured.rewrite(PlanOptions(factors=(factors,), sampling="staggered"))
    expected = oracle.stagger_phases(factors, 2)
    assert expected[0] != expected[1]
    assert phases(report) == [f"nearest +{r},+{c}" for r, c in expected]
    called = iter([expected[0]] * 2 + [expected[1]] * 2)
    model.pool = lambda t: oracle.stand_ins(t, 2, grid, factors, "staggered", start=next(called))
    with torch.no_grad():
        assert_close(captured.run(), model(x))
    counts = next(p.detail for p in report.passes if p.name == "hoist")
    assert counts["linear"] == 4
    assert counts["merged"] == 2, "K and V of each site, not the two sites"
    assert {p.name: p.count for p in report.passes}["lower"] == 2


class Shared(ImageAttention):
    """Two attentions that read the same tokens: with equal phases one pooling would do for both."""

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        x = self.tokens(image)
        outs = [
            self.attend(
                self.split(self.to_q(t)), self.pool(self.keys(x)), self.pool(self.values(x))
            )
            for t in (x, -x)
        ]
        return torch.cat(outs, dim=1)


def test_pools_with_other_phases_are_not_merged() -> None:
    grid, factors = (4, 6), (2, 2)
    lowered: dict[str, int] = {}
    for sampling in ("nearest", "staggered"):
        model, x = Shared(), image(*grid)
        captured = capture(model, (x,), "export")
        report = captured.rewrite(PlanOptions(factors=(factors,), sampling=sampling))
        lowered[sampling] = {p.name: p.count for p in report.passes}["lower"]
        starts = oracle.stagger_phases(factors, 2)
        called = iter([s for s in starts for _ in range(2)])
        model.pool = lambda t: oracle.stand_ins(
            t,
            2,
            grid,
            factors,
            "staggered",
            start=next(called) if sampling != "nearest" else (0, 0),  # noqa: B023
        )
        with torch.no_grad():
            assert_close(captured.run(), model(x))
    assert lowered == {"nearest": 1, "staggered": 2}


def test_blend_is_hoisted_like_an_average() -> None:
    model, x = ImageAttention(), image(5, 6)
    captured = capture(model, (x,), "export")
    report = captured.rewrite(PlanOptions(factors=((2, 2),), sampling="blend:0.3"))
    counts = next(p.detail for p in report.passes if p.name == "hoist")
    assert (counts["linear"], counts["merged"]) == (2, 1)
    (row,) = report.sites
    assert row.sampling == "blend:0.3"
    new = [n for n in captured.nodes if "todo_rule" in n.meta]
    assert {str(n.target).split(".")[1] for n in new} <= {
        "slice", "reshape", "cat", "mean", "mul", "add", "new_full"
    }  # fmt: skip


@pytest.mark.parametrize("sampling", ["blend:0.5", "staggered"])
def test_dynamic_batch(sampling: str) -> None:
    """One rewritten graph for every batch, by ``torch.compile``."""
    model = TwoLayers()
    grid, factors = (5, 6), (2, 2)
    torch.compiler.reset()
    compiled = torch.compile(
        model, backend="todo_inductor", dynamic=True,
        options={"factors": "2", "sampling": sampling, "inner": "eager"},
    )  # fmt: skip
    results: list[torch.Tensor] = []
    for batch in (2, 3):
        with torch.no_grad():
            results.append(compiled(image(*grid, batch=batch)))
    starts = oracle.stagger_phases(factors, 2)
    for batch, got in zip((2, 3), results, strict=True):
        called = iter([starts[0]] * 2 + [starts[1]] * 2)
        model.pool = lambda t: oracle.stand_ins(t, 2, grid, factors, sampling, start=next(called))  # noqa: B023
        with torch.no_grad():
            assert_close((got,), model(image(*grid, batch=batch)))


# Factors of single sites --------------------------------------------------------------------------
def self_sites(report: Report) -> list[Any]:
    return [s for s in report.sites if s.kind == "self"]


def test_a_factor_for_one_site() -> None:
    model, inputs = make_unet(), unet_inputs(10, 6)
    captured = capture(model, inputs, "export")
    rows = self_sites(captured.copy().rewrite(PlanOptions(factors=())))
    third = rows[2]
    for name in (third.name, third.module):
        report = captured.copy().rewrite(PlanOptions(factors=(), sites={name: (2, 1)}))
        changed = [s for s in report.sites if s.action == "rewritten"]
        assert [(s.name, s.factor) for s in changed] == [(third.name, (2, 1))]
    # It wins over the level's factor, and the phase does not depend on what the others do.
    every = PlanOptions(factors=((2, 2), (2, 2)), sampling="staggered")
    alone = PlanOptions(factors=(), sites={third.name: (2, 2)}, sampling="staggered")
    but = PlanOptions(factors=((2, 2), (2, 2)), sites={third.name: (1, 1)}, sampling="staggered")
    found = [
        {s.name: s.sampling for s in self_sites(captured.copy().rewrite(o))}
        for o in (every, alone, but)
    ]
    assert found[1][third.name] == found[0][third.name] != ""
    assert found[2] == {**found[0], third.name: ""}


def test_sites_are_part_of_the_options() -> None:
    options = PlanOptions(factors=(), sites={"b": (2, 2), "a": (1, 3)})
    assert options.sites == (("a", (1, 3)), ("b", (2, 2)))
    assert options == PlanOptions(factors=(), sites=[("b", [2, 2]), ("a", (1, 3))])
    assert hash(options) == hash(PlanOptions(factors=(), sites=options.sites))
    assert options.describe()["sites"] == {"a": [1, 3], "b": [2, 2]}
    assert "sites" not in PlanOptions().describe()
    with pytest.raises(ConfigError):
        PlanOptions(sites={"a": (0, 1)})


def test_sites_that_the_graph_cannot_follow() -> None:
    captured = capture(make_unet(), unet_inputs(10, 6), "export")
    rows = captured.copy().rewrite(PlanOptions(factors=())).sites
    cross = next(s for s in rows if s.kind == "cross")
    mine = next(s for s in rows if s.kind == "self")
    before = captured.signature()
    for sites, words in (
        ({mine.module + "x": (2, 2)}, "Did you mean"),
        ({cross.name: (2, 2)}, "cannot be downsampled: cross-attention"),
        ({mine.name: (99, 1)}, "exceeds its grid"),
    ):
        with pytest.raises(ConfigError, match=words) as caught:
            captured.rewrite(PlanOptions(factors=(), sites=sites))
        assert caught.value.remedy
        assert captured.signature() == before
    captured.rewrite(PlanOptions(factors=(), sites={cross.name: (1, 1)}))
    assert captured.signature() == before
