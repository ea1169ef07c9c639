"""What fails inside the passes costs the sites behind it their rewrite, and nobody else."""

from __future__ import annotations

from typing import Any

import oracle
import pytest
import torch
from graphs import DIALECTS, ImageAttention, assert_close, capture, image
from torch import nn

from todo_compile.options import PlanOptions
from todo_compile.passes.find.attention import AttentionSite
from todo_compile.passes.graph import GraphContext
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
    original, seen = pool.weigh_keys, list[str]()
    shrink = pool._pool_site

    def broken(context: GraphContext, decision: Any, pooling: Pooling) -> Any:
        site: AttentionSite = decision.site
        if site.name not in seen:
            seen.append(site.name)
        if seen.index(site.name) == failing:
            raise IndexError("list index out of range")
        return shrink(context, decision, pooling)

    monkeypatch.setattr(pool, "_pool_site", broken)
    assert original is pool.weigh_keys
    _check(dialect, failing=failing)


@pytest.mark.parametrize("dialect", DIALECTS)
def test_a_rule_that_pools_the_wrong_axis(dialect: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The graph no longer runs; which of the sites is behind it is found from the node."""
    original = hoist.RULES["linear"]

    def wrong(context: GraphContext, node: Any, axis: int, pooling: Pooling) -> Any:
        move = original(context, node, axis, pooling)
        if isinstance(move, Move) and "second" in context.module_path(node):
            raise RuntimeError("a rule that was not written for this")
        return move

    monkeypatch.setitem(hoist.RULES, "linear", wrong)
    _check(dialect, failing=1)


@pytest.mark.parametrize("dialect", DIALECTS)
def test_shapes_that_differ_from_what_was_recorded(
    dialect: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = lower.lowering_steps

    def wrong(shape: list[Any], dim: int, pooling: Pooling) -> Any:
        steps = original(shape, dim, pooling)
        target, arguments, result = steps[-1]
        return [*steps[:-1], (target, arguments, (*result[:-1], result[-1] + 1))]

    monkeypatch.setattr(lower, "lowering_steps", wrong)
    model, x = Two().eval(), image(*GRID)
    captured = capture(model, [x], dialect)
    before = captured.signature()
    assert _actions(captured.rewrite(HALF)) == ["refused", "refused"]
    assert captured.signature() == before, "the graph is put back as it was"


@pytest.mark.parametrize("dialect", DIALECTS)
def test_without_a_rule(dialect: str) -> None:
    captured = capture(ImageAttention(), [image(*GRID)], dialect)
    report = captured.rewrite(HALF, without_rules=frozenset(["linear"]))
    assert {stop.reason for stop in report.sites[0].stops} == {"the rule 'linear' is switched off"}
    model = ImageAttention()
    model.pool = lambda t: oracle.stand_ins(t, 2, GRID, (2, 2))
    with torch.no_grad():
        assert_close(captured.run(), model(image(*GRID)))
