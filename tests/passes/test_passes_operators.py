"""The table of operators: one entry makes grids go through it and poolings move above it."""

from __future__ import annotations

import oracle
import pytest
import torch
import torch.nn.functional as F
from graphs import DIALECTS, ImageAttention, assert_close, capture, image, only_site

from todo_compile.options import PlanOptions
from todo_compile.passes import ops
from todo_compile.passes.operators.table import TABLE

GRID, FACTORS = (4, 6), (2, 3)


class New(ImageAttention):
    """Tokens and keys go through a function that the table does not have."""

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        x = torch.erfc(self.tokens(image))
        keys, values = self.pool(self.to_k(x).erfc()), self.pool(self.to_v(x))
        return F.scaled_dot_product_attention(
            self.split(self.to_q(x)), self.split(keys), self.split(values)
        )


@pytest.mark.parametrize("dialect", DIALECTS)
def test_a_new_operator_is_one_entry(dialect: str, monkeypatch: pytest.MonkeyPatch) -> None:
    options = PlanOptions(factors=(FACTORS,))
    model, x = New(), image(*GRID)
    assert "erfc" not in TABLE
    site = only_site(capture(model, (x,), dialect).rewrite(options))
    assert (site.action, site.grid) == ("refused", None), "nothing is known of it"

    monkeypatch.setitem(TABLE, "erfc", TABLE["erf"])
    captured = capture(model, (x,), dialect)
    report = captured.rewrite(options)
    site = only_site(report)
    assert (site.action, site.grid) == ("rewritten", GRID), "grids go down through it"
    moved = next(p.detail for p in report.passes if p.name == "hoist")
    assert moved["token-wise"] >= 1, "poolings move up above it"
    tokens = sorted(captured.shape(n)[1] for n in captured.nodes if ops.op(n) == "linear")
    assert tokens == [4, 4, 24], "keys and values are projected from fewer tokens"
    model.pool = lambda t: oracle.stand_ins(t, 1, GRID, FACTORS)
    with torch.no_grad():
        assert_close(captured.run(), model(x))


def test_averages_stop_at_what_is_not_linear(monkeypatch: pytest.MonkeyPatch) -> None:
    """The entry says it by itself: only what is known to be linear lets averages pass."""
    monkeypatch.setitem(TABLE, "erfc", TABLE["erf"])
    captured = capture(New(), (image(*GRID),), "export")
    report = captured.rewrite(PlanOptions(factors=(FACTORS,), sampling="average"))
    assert only_site(report).action == "rewritten"
    tokens = sorted(captured.shape(n)[1] for n in captured.nodes if ops.op(n) == "linear")
    assert tokens == [4, 24, 24], "keys are averaged below it"
