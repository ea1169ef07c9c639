"""Where poolings stopped: what it costs, and how it is shown."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from graphs import DIALECTS, ImageAttention, capture, image
from torch import nn

from todo_compile.cli.options import print_passes
from todo_compile.cli.tables import stops_table
from todo_compile.options import PlanOptions
from todo_compile.passes.dump import Dumper
from todo_compile.passes.graph import GraphContext
from todo_compile.passes.report import HoistStop, Report
from todo_compile.passes.rewrite.pool import new_pool
from todo_compile.passes.rewrite.pooling import Pooling
from todo_compile.passes.rewrite.stops import extra_flops

POOLING = Pooling(4, 6, 2, 3)  # 24 tokens become 4
BATCH, TOKENS, KEPT, TEXT = 2, 24, 4, 5
LINEAR = 2 * BATCH * TOKENS * 8 * 8
DROPPED = 1 - KEPT / TOKENS


class Keys(nn.Module):
    """Keys that `body` makes from (B, 24, 8) tokens; its last line is pooled."""

    def __init__(self, body: Callable[[Keys, torch.Tensor, torch.Tensor], Any]) -> None:
        super().__init__()
        self.body = body
        self.to_k, self.to_q, self.add_k = (nn.Linear(8, 8) for _ in range(3))
        self.fused = nn.Linear(8, 24)
        self.conv = nn.Conv1d(8, 8, 1)
        self.norm = nn.LayerNorm(8)
        self.weight = nn.Parameter(torch.randn(8, 8))

    def forward(self, x: torch.Tensor, text: torch.Tensor) -> Any:
        found = self.body(self, x, text)
        keys, others = found if isinstance(found, tuple) else (found, ())
        return torch.erf(keys), *others


def cost_of(body: Any, dialect: str, offset: int = 0, axis: int = 1) -> int:
    inputs = torch.randn(BATCH, TOKENS, 8), torch.randn(BATCH, TEXT, 8)
    context = GraphContext(capture(Keys(body).eval(), inputs, dialect).module)
    end = next(n for n in context.graph.nodes if "erf" in str(n.target))
    source = end.all_input_nodes[0]
    pool = new_pool(
        context, source, axis, POOLING.at(offset), before=end, until=0, reads=(), rule="test"
    )
    end.replace_input_with(source, pool)
    return extra_flops(context, pool)


def one(m: Any, x: Any, text: Any) -> Any:
    del text
    return m.norm(m.to_k(x))


def two(m: Any, x: Any, text: Any) -> Any:
    del text
    return m.norm(m.to_q(m.to_k(x).sigmoid()))


def summed(m: Any, x: Any, text: Any) -> Any:
    del text
    low = m.to_k(x)
    return low.sigmoid() + low.tanh() * m.to_q(x)


def read_by_others(m: Any, x: Any, text: Any) -> Any:
    del text
    keys = m.to_k(x)
    return m.norm(keys), (keys.sum(),)


def multiplied(m: Any, x: Any, text: Any) -> Any:
    del text
    return m.norm(x @ m.weight)


def folded(m: Any, x: Any, text: Any) -> Any:
    del text
    return torch.addmm(m.to_k.bias, x.reshape(-1, 8), m.weight).view(BATCH, TOKENS, 8).cumsum(-1)


def convolved(m: Any, x: Any, text: Any) -> Any:
    del text
    return m.conv(x.mT).mT.cumsum(-1)


def with_text(m: Any, x: Any, text: Any) -> Any:
    return torch.cat([m.add_k(text), m.to_k(x)], 1).cumsum(-1)


def fused_chunk(m: Any, x: Any, text: Any) -> Any:
    del text
    q, k, v = m.fused(x).chunk(3, dim=-1)
    return k, (q, v)


def fused_slice(m: Any, x: Any, text: Any) -> Any:
    del text
    every = m.fused(x)
    return every[..., 8:16].sigmoid(), (every[..., :8], every[..., 16:])


def below_attention(m: Any, x: Any, text: Any) -> Any:
    del text
    mixed = nn.functional.scaled_dot_product_attention(m.to_q(x), x, x)
    return m.norm(m.to_k(mixed))


def nothing(m: Any, x: Any, text: Any) -> Any:
    del m, text
    return x.cumsum(-1)


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize(
    ("body", "offset", "projections"),
    [
        (one, 0, 1),
        (two, 0, 2),
        (summed, 0, 2),
        (read_by_others, 0, 0),
        (multiplied, 0, 1),
        (folded, 0, 1),
        (convolved, 0, 1),
        (with_text, TEXT, 1),
        (fused_chunk, 0, 1),
        (fused_slice, 0, 1),
        (below_attention, 0, 1),
        (nothing, 0, 0),
    ],
)
def test_projections_that_only_this_pooling_reads_count(
    body: Any, offset: int, projections: int, dialect: str
) -> None:
    assert cost_of(body, dialect, offset) == round(projections * LINEAR * DROPPED)


@pytest.fixture
def report() -> Report:
    model = ImageAttention()
    found = capture(model, (image(4, 6),), "export").rewrite(PlanOptions(factors=((2, 3),)))
    stops = (
        HoistStop("key", "layer_norm_3", "layer_norm is not linear", 12_300),
        HoistStop("value", "permute", "permute is where the tokens come from"),
    )
    sites = (dataclasses.replace(found.sites[0], stops=stops), *found.sites[1:])
    return dataclasses.replace(found, sites=sites)


def test_json_has_every_stop(report: Report) -> None:
    site = json.loads(json.dumps(report.to_dict()))["sites"][0]
    assert site["stops"] == [
        {
            "operand": "key", "node": "layer_norm_3", "reason": "layer_norm is not linear",
            "extra_flops": 12_300,
        },
        {
            "operand": "value", "node": "permute", "extra_flops": 0,
            "reason": "permute is where the tokens come from",
        },
    ]  # fmt: skip


def test_verbose_shows_those_that_cost_something(
    report: Report, capsys: pytest.CaptureFixture[str]
) -> None:
    print_passes(report)
    text = " ".join(capsys.readouterr().err.split())
    assert "key layer_norm_3 12.3 kFLOP" in text
    assert "layer_norm is not linear" in text
    assert "where the tokens come from" not in text
    sites = tuple(dataclasses.replace(s, stops=s.stops[1:]) for s in report.sites)
    assert stops_table(dataclasses.replace(report, sites=sites), 80) is None


def test_dump_ends_in_the_report(report: Report, tmp_path: Path) -> None:
    path = Dumper(tmp_path).write_report(report)
    lines = path.read_text().splitlines()
    assert lines[0] == report.summary()
    assert "self, rewritten, factor 2×3, 24 → 4 keys" in lines[1]
    assert lines[2:4] == [
        "    key pooled below layer_norm_3: layer_norm is not linear (costs 12300 FLOPs)",
        "    value pooled below permute: permute is where the tokens come from",
    ]


def test_rewriting_dumps_it_last(tmp_path: Path) -> None:
    captured = capture(ImageAttention(), (image(4, 6),), "export")
    done = captured.rewrite(PlanOptions(factors=((2, 3),)), dump=tmp_path)
    last = sorted(tmp_path.iterdir())[-1]
    assert last.name.endswith("-report.txt")
    assert last.read_text().splitlines()[0] == done.summary()
