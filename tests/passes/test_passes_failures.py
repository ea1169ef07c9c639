"""What fails inside the passes costs the sites behind it their rewrite, and nobody else."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import oracle
import pytest
import torch
from graphs import DIALECTS, ImageAttention, assert_close, capture, image
from torch import nn

from todo_compile.options import PlanOptions
from todo_compile.passes import ops
from todo_compile.passes.find.attention import AttentionSite
from todo_compile.passes.graph import GraphContext
from todo_compile.passes.plan import classify, cost
from todo_compile.passes.rewrite import hoist, lower, pool
from todo_compile.passes.rewrite.hoist_rules import Move
from todo_compile.passes.rewrite.pooling import Pooling

GRID, HALF = (4, 6), PlanOptions(factors=((2, 2),))


class Two(nn.Module):
    """Two attentions, one after the other, on one grid."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = ImageAttention(seed=1), ImageAttention(seed=2)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self.first(x), self.second(x)


def _actions(report: Any) -> list[str]:
    return [site.action for site in report.sites]


def _check(dialect: str, *, failing: int) -> None:
    model, x = Two().eval(), image(*GRID)
    captured = capture(model, [x], dialect)
    report = captured.rewrite(HALF)
    expected = ["rewritten", "rewritten"]
    expected[failing] = "refused"
    assert _actions(report) == expected
    reason = report.sites[failing].reason
    assert "failed a check" in reason
    assert "report" in reason
    (model.first, model.second)[1 - failing].pool = lambda t: oracle.stand_ins(t, 2, GRID, (2, 2))
    with torch.no_grad():
        assert_close(captured.run(), model(x))


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("failing", [0, 1])
def test_a_crash_while_a_site_is_pooled(
    dialect: str, failing: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen, pool_site = list[str](), pool._pool_site

    def broken(context: GraphContext, decision: Any) -> Any:
        site: AttentionSite = decision.site
        if site.name not in seen:
            seen.append(site.name)
        if seen.index(site.name) == failing:
            raise IndexError("list index out of range")
        return pool_site(context, decision)

    monkeypatch.setattr(pool, "_pool_site", broken)
    _check(dialect, failing=failing)


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("crashes", [True, False])
def test_a_hoisting_rule_that_is_wrong(
    crashes: bool, dialect: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It crashes, or the graph no longer runs: then the site behind the node is found."""
    original = hoist.exchange

    def wrong(context: GraphContext, node: Any, axis: int, pooling: Pooling) -> Any:
        move = original(context, node, axis, pooling)
        if (
            not isinstance(move, Move)
            or ops.op(node) != "linear"
            or "second" not in context.module_path(node)
        ):
            return move
        if crashes:
            raise RuntimeError("a rule that was not written for this")
        return replace(move, operands=((node.args[1], 0, pooling),))  # the weight

    monkeypatch.setattr(hoist, "exchange", wrong)
    _check(dialect, failing=1)


@pytest.mark.parametrize("dialect", DIALECTS)
def test_shapes_that_differ_from_what_was_recorded(
    dialect: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = lower.lowering_steps

    def wrong(shape: list[Any], dim: int, poolings: Sequence[Pooling]) -> Any:
        steps = original(shape, dim, poolings)
        target, arguments, result = steps[-1]
        return [*steps[:-1], (target, arguments, (*result[:-1], result[-1] + 1))]

    monkeypatch.setattr(lower, "lowering_steps", wrong)
    model, x = Two().eval(), image(*GRID)
    captured = capture(model, [x], dialect)
    before = captured.signature()
    assert _actions(captured.rewrite(HALF)) == ["refused", "refused"]
    assert captured.signature() == before, "the graph is put back as it was"


@pytest.mark.parametrize("dialect", DIALECTS)
def test_a_proof_that_fails_costs_one_site(dialect: str, monkeypatch: pytest.MonkeyPatch) -> None:
    original, seen = classify._classify, list[str]()

    def broken(context: GraphContext, grids: Any, site: AttentionSite) -> Any:
        if site.name not in seen:
            seen.append(site.name)
        if seen.index(site.name) == 1:
            raise KeyError("an odd mask")
        return original(context, grids, site)

    monkeypatch.setattr(classify, "_classify", broken)
    report = capture(Two().eval(), [image(*GRID)], dialect).rewrite(HALF)
    assert _actions(report) == ["rewritten", "refused"]
    assert "please report it" in report.sites[1].reason


@pytest.mark.parametrize("dialect", DIALECTS)
def test_a_failure_after_the_last_pass_is_undone(
    dialect: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cost, "graph_flops", lambda context: len(context.graph.nodes))
    captured = capture(Two().eval(), [image(*GRID)], dialect)
    before = captured.signature()
    report = captured.rewrite(HALF)
    assert _actions(report) == ["refused", "refused"]
    assert "more operations" in report.sites[0].reason
    assert captured.signature() == before


@pytest.mark.parametrize("dialect", DIALECTS)
def test_without_a_rule(dialect: str) -> None:
    captured = capture(ImageAttention(), [image(*GRID)], dialect)
    report = captured.rewrite(HALF, without_rules=frozenset(["linear"]))
    assert {stop.reason for stop in report.sites[0].stops} == {"the rule 'linear' is switched off"}
    model = ImageAttention()
    model.pool = lambda t: oracle.stand_ins(t, 2, GRID, (2, 2))
    with torch.no_grad():
        assert_close(captured.run(), model(image(*GRID)))
