"""Half precision, captures that go on to other tools, dynamic sizes, and what the report says."""

from __future__ import annotations

import dataclasses
import json

import oracle
import pytest
import torch
from graphs import (
    DIALECTS,
    Attend,
    Captured,
    ImageAttention,
    assert_close,
    capture,
    image,
    make_unet,
    matmul_after,
    only_site,
    sdpa,
    softmax_dtype,
    unet_inputs,
)

from todo_compile.options import SAMPLINGS, PlanOptions
from todo_compile.passes.pipeline import rewrite_graph

GRID, FACTORS = (7, 6), (3, 2)
OPTIONS = PlanOptions(factors=(FACTORS,))


# Half precision -----------------------------------------------------------------------------------
@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("attend", [sdpa, softmax_dtype])
def test_half_precision(dialect: str, dtype: torch.dtype, attend: Attend) -> None:
    """Pooling adds no error of its own: as near the fp32 truth as the dtype allows."""
    x = image(*GRID, batch=2).to(dtype)
    whole = capture(ImageAttention(attend).to(dtype), [x], dialect)
    for sampling in SAMPLINGS:
        captured = whole.copy()
        options = dataclasses.replace(OPTIONS, sampling=sampling)
        assert only_site(captured.rewrite(options)).action == "rewritten"
        (got,) = captured.run()
        assert got.dtype == dtype
        model = ImageAttention(attend).to(dtype).float()
        model.pool = lambda t, s=sampling: oracle.stand_ins(t, 2, GRID, FACTORS, s)
        with torch.no_grad():
            expected = model(x.float())
        # Errors of a dozen roundings, relative to the size of the output as a whole.
        step = torch.finfo(dtype).eps
        assert (got.float() - expected).norm() < 4 * step * expected.norm()


def test_half_precision_would_notice_another_phase() -> None:
    """The tolerance above is tight enough to tell the samplings apart."""
    x = image(*GRID, batch=2)
    model, results = ImageAttention(sdpa), []
    for sampling in SAMPLINGS:
        model.pool = lambda t, s=sampling: oracle.stand_ins(t, 2, GRID, FACTORS, s)
        with torch.no_grad():
            results.append(model(x))
    step = torch.finfo(torch.bfloat16).eps
    for one, other in ((0, 1), (0, 2), (1, 2)):
        difference = (results[one] - results[other]).norm()
        assert difference > 8 * step * results[one].norm()


# Other tools --------------------------------------------------------------------------------------
def test_rewritten_program_decomposes_and_exports_again() -> None:
    x = image(*GRID, batch=2)
    model = ImageAttention(matmul_after)
    with torch.no_grad():
        program = torch.export.export(model, (x,))
        assert rewrite_graph(program.graph_module, OPTIONS).rewritten == 1
        program.validate()
        model.pool = lambda t: oracle.stand_ins(t, 2, GRID, FACTORS)
        expected = model(x)
        assert_close((program.run_decompositions({}).module()(x),), expected)
        assert_close((program.run_decompositions().module()(x),), expected)

        again = torch.export.export(program.module(), (x,))
        before = [str(n) for n in again.graph.nodes]
        report = rewrite_graph(again.graph_module, OPTIONS)
        assert report.rewritten == 0
        assert [str(n) for n in again.graph.nodes] == before
        assert_close((again.module()(x),), expected)


def test_nothing_random_gathered_or_resized_is_left() -> None:
    """Only slices, reshapes, means, joins, weighted sums and constants enter the graph."""
    for sampling in SAMPLINGS:
        captured = capture(ImageAttention(sdpa), [image(*GRID)], "export")
        before = {n.name for n in captured.nodes}
        captured.rewrite(dataclasses.replace(OPTIONS, sampling=sampling))
        new = {str(n.target) for n in captured.nodes if n.name not in before}
        assert new
        assert new <= {
            f"aten.{name}.{overload}"
            for name, overload in (("slice", "Tensor"), ("reshape", "default"), ("mean", "dim"),
                                   ("cat", "default"), ("mul", "Tensor"), ("add", "Tensor"),
                                   ("new_full", "default"))
        }  # fmt: skip
        for node in captured.nodes:
            if node.name not in before:
                assert node.meta["todo_rule"]
                assert "val" in node.meta


def test_a_dynamic_batch_is_rewritten_and_serves_every_batch() -> None:
    x = image(*GRID, batch=3)
    model = ImageAttention(sdpa)
    with torch.no_grad():
        batch = torch.export.Dim("batch", min=1, max=16)
        program = torch.export.export(model, (x,), dynamic_shapes=({0: batch},))
        assert rewrite_graph(program.graph_module, OPTIONS).rewritten == 1
        program.validate()
        model.pool = lambda t: oracle.stand_ins(t, 2, GRID, FACTORS)
        for size in (1, 3, 7):
            other = image(*GRID, batch=size, seed=size)
            assert_close((program.module()(other),), model(other))


def test_dynamic_sides_are_refused_and_untouched() -> None:
    x = image(8, 6, batch=2)
    model = ImageAttention(sdpa)
    with torch.no_grad():
        rows = torch.export.Dim("rows", min=4, max=64)
        program = torch.export.export(model, (x,), dynamic_shapes=({2: rows},))
        before = str(program.graph)
        site = only_site(rewrite_graph(program.graph_module, PlanOptions(kv_tokens=4)))
        assert (site.action, site.kind) == ("refused", "self")
        assert "dynamic" in site.reason
        assert str(program.graph) == before
        other = image(10, 6, batch=2)
        assert_close((program.module()(other),), model(other))


# The report ---------------------------------------------------------------------------------------
@pytest.mark.parametrize("dialect", DIALECTS)
def test_report_counts_flops_by_definition(dialect: str) -> None:
    """FLOPs, bytes and elements of a site, and of the graph, against sums done by hand."""
    batch, heads, dim, (rows, columns) = 2, 2, 4, GRID
    width, tokens = heads * dim, rows * columns
    captured = capture(ImageAttention(sdpa), [image(*GRID, batch=batch)], dialect)
    report = captured.rewrite(OPTIONS)
    site = only_site(report)
    after = oracle.cells(rows, FACTORS[0]) * oracle.cells(columns, FACTORS[1])
    products = 2 * batch * heads * tokens * 2 * dim
    assert (site.heads, site.head_dim, site.grid, site.factor) == (
        batch * heads,
        dim,
        GRID,
        FACTORS,
    )
    assert (site.query_tokens, site.key_tokens, site.key_tokens_after) == (tokens, tokens, after)
    assert (site.flops, site.flops_after) == (products * tokens, products * after)
    assert site.score_elements == batch * heads * tokens * tokens
    assert site.score_elements_after == batch * heads * tokens * after
    assert site.attention_bytes == 4 * batch * heads * 4 * tokens * dim
    assert site.attention_bytes_after == 4 * batch * heads * 2 * (tokens + after) * dim
    linear = 2 * batch * width * width
    convolution = 2 * batch * tokens * width * 3 * 9
    assert report.totals.flops == convolution + 4 * linear * tokens + site.flops
    assert report.totals.flops_after == (
        convolution + 2 * linear * (tokens + after) + site.flops_after
    )
    assert site.share == pytest.approx(site.flops / report.totals.flops)
    assert report.counts == {"rewritten": 1, "dense": 0, "refused": 0}
    assert report.rewritten == 1
    assert report.nearest_miss() is None
    assert json.loads(json.dumps(report.to_dict()))["sites"][0]["key_tokens_after"] == after


@pytest.fixture(scope="module")
def unet_graph() -> Captured:
    return capture(make_unet(), unet_inputs(8, 6), "export")


def test_every_pass_reports_its_count_and_time(unet_graph: Captured) -> None:
    captured = unet_graph.copy()
    report = captured.rewrite(PlanOptions(factors=((2, 2),)))
    found = {p.name: p for p in report.passes}
    assert list(found) == ["sites", "grids", "plan", "pool", "hoist", "lower", "refresh"]
    assert found["sites"].count == len(report.sites) == 14
    assert found["plan"].count == report.rewritten == 3
    assert found["pool"].count == 2 * report.rewritten
    # K and V of a site: linear, view and transpose each, then one pooling takes both over.
    assert found["hoist"].detail["linear"] == 2 * report.rewritten
    assert found["hoist"].detail["merged"] == report.rewritten
    assert found["lower"].count == report.rewritten
    assert all(p.seconds >= 0 for p in report.passes)
    assert report.seconds == pytest.approx(sum(p.seconds for p in report.passes))
    assert report.nodes == len(captured.nodes)
    assert "3 attention sites rewritten" in report.summary()


def test_nearest_miss_names_the_costliest_site_that_stayed(unet_graph: Captured) -> None:
    report = unet_graph.copy().rewrite(PlanOptions(factors=()))
    miss = report.nearest_miss()
    assert miss is not None
    path, _, reason = miss.partition(": ")
    assert path.endswith("attn1")
    costs = {s.module: s.flops for s in report.sites}
    assert costs[path] == max(costs.values())
    assert reason == "factors are off"


class Counted(ImageAttention):
    """Keys that pass through whole numbers on their way."""

    def keys(self, x: torch.Tensor) -> torch.Tensor:
        return self.split((self.to_k(x) * 3).to(torch.int32).float())


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("sampling", ["average", "blend:0.5", "nearest"])
def test_a_mean_does_not_move_above_a_cast_to_whole_numbers(sampling: str, dialect: str) -> None:
    model = Counted(sdpa)
    captured = capture(model, [image(*GRID)], dialect)
    report = captured.rewrite(PlanOptions(factors=(FACTORS,), sampling=sampling))
    (site,) = report.sites
    stopped = any("whole numbers" in stop.reason for stop in site.stops)
    assert (site.action, stopped) == ("rewritten", sampling != "nearest")
    model.pool = lambda t: oracle.stand_ins(t, 2, GRID, FACTORS, sampling)
    with torch.no_grad():
        assert_close(captured.run(), model(image(*GRID)))
