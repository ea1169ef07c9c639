"""Several pictures in one sequence (FLUX Kontext: what is drawn, then a reference), each pooled on
a grid of its own."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import oracle
import pytest
import torch
from graphs import DIALECTS, Captured, assert_close, capture, only_site
from torch import Tensor, nn

import todo_compile
from todo_compile.drift.measure import DriftMeter, Probe, measure, relative_error
from todo_compile.errors import ConfigError
from todo_compile.options import PlanOptions, check_token_grids

DRAWN, REFERENCE = (4, 6), (6, 5)  # a side that two does not divide too
TOKENS, TEXT = 24 + 30, 9
GRIDS = {TOKENS: (DRAWN, REFERENCE)}
HALF = PlanOptions(factors=((2, 2),))


def randn(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


def _ids(number: int, grid: tuple[int, int]) -> Tensor:
    """As FLUX counts them: (which picture, row, column)."""
    places = torch.cartesian_prod(torch.arange(grid[0]), torch.arange(grid[1]))
    return torch.cat([torch.full((len(places), 1), number), places], 1).float()


class Kontext(nn.Module):
    """FLUX's transformer with what Kontext passes it: one block with text apart, one without."""

    def __init__(self) -> None:
        super().__init__()
        from diffusers.models.transformers.transformer_flux import FluxTransformer2DModel

        torch.manual_seed(0)
        self.model = FluxTransformer2DModel(
            patch_size=1, in_channels=16, num_layers=1, num_single_layers=1, attention_head_dim=16,
            num_attention_heads=2, joint_attention_dim=32, pooled_projection_dim=32,
            axes_dims_rope=(4, 4, 8),
        )  # fmt: skip
        for parameter in self.model.parameters():
            if parameter.dim() > 1:
                parameter.data.normal_(0, parameter[0].numel() ** -0.5)
        self.register_buffer("ids", torch.cat([_ids(0, DRAWN), _ids(1, REFERENCE)]))
        self.eval()

    def forward(self, hidden: Tensor, text: Tensor, pooled: Tensor, time: Tensor) -> Tensor:
        return self.model(
            hidden_states=hidden, encoder_hidden_states=text, pooled_projections=pooled,
            timestep=time, img_ids=self.ids, txt_ids=torch.zeros(TEXT, 3), return_dict=False,
        )[0]  # fmt: skip


GIVEN = (randn(1, TOKENS, 16), randn(1, TEXT, 32), randn(1, 32), torch.tensor([0.5]))


@pytest.fixture(scope="module", params=DIALECTS)
def kontext(request: Any) -> tuple[Kontext, Captured]:
    model = Kontext()
    return model, capture(model, GIVEN, request.param)


def truth(model: nn.Module, segments: list[oracle.Segment], sampling: str, **more: bool) -> Tensor:
    with (
        torch.no_grad(),
        oracle.pooled_fused_attention({TEXT + TOKENS: segments}, sampling, **more) as seen,
    ):
        found = model(*GIVEN)
    assert len(seen) == 2
    return found


def both(factors: tuple[int, int]) -> list[oracle.Segment]:
    return [(TEXT, DRAWN, factors), (TEXT + 24, REFERENCE, factors)]


@pytest.mark.parametrize(
    ("sampling", "factors"),
    [("nearest", (2, 2)), ("nearest-exact", (3, 2)), ("average", (3, 2)), ("blend:0.5", (2, 2))],
)
def test_each_picture_is_pooled_on_its_own_grid(
    kontext: tuple[Kontext, Captured], sampling: str, factors: tuple[int, int]
) -> None:
    model, graph = kontext[0], kontext[1].copy()
    options = PlanOptions(factors=(factors,), sampling=sampling)
    report = graph.rewrite(options, token_grids=GRIDS)
    keys = oracle.cells(4, factors[0]) * 3 + oracle.cells(6, factors[0]) * 3
    for site in report.sites:
        assert (site.kind, site.action, site.grid, site.factor) == (
            "joint", "rewritten", DRAWN, factors,
        )  # fmt: skip
        (other,) = site.beside
        assert (other.grid, other.factor) == (REFERENCE, factors)
        assert site.key_tokens_after == TEXT + keys
    expected = truth(model, both(factors), sampling)
    with torch.no_grad():
        assert (expected - model(*GIVEN)).abs().max() > 0.01, "pooling must matter here"
    assert_close(graph.run(), expected)
    before = graph.signature()
    graph.rewrite(options, token_grids=GRIDS)
    assert graph.signature() == before, "a second run changes nothing"


def test_hoisted_is_unhoisted(kontext: tuple[Kontext, Captured]) -> None:
    plain, moved = kontext[1].copy(), kontext[1].copy()
    plain.rewrite(PlanOptions(factors=((2, 2),), hoist=False), token_grids=GRIDS)
    report = moved.rewrite(HALF, token_grids=GRIDS)
    assert next(p.count for p in report.passes if p.name == "hoist") > 20
    # Both pictures of a tensor went up together, the tables of positions too.
    tables = [stop.node for site in report.sites for stop in site.stops if "stack" in stop.node]
    assert tables
    assert_close(moved.run(), plain.run(), rtol=1e-5, atol=1e-6)


def test_the_native_budget_is_of_each_picture(kontext: tuple[Kontext, Captured]) -> None:
    """24 tokens are drawn within it, and 30 of the reference are not: only those are pooled."""
    model, graph = kontext[0], kontext[1].copy()
    report = graph.rewrite(PlanOptions(kv_tokens=24), token_grids=GRIDS)
    for site in report.sites:
        assert site.factor == (1, 1)
        assert site.reason == "24 tokens, 30 tokens, bound 24"
        assert site.beside[0].factor == (2, 1)
    expected = truth(model, [(TEXT + 24, REFERENCE, (2, 1))], "nearest")
    assert_close(graph.run(), expected)


def test_without_mass_a_cell_counts_as_one_key(kontext: tuple[Kontext, Captured]) -> None:
    model, graph = kontext[0], kontext[1].copy()
    graph.rewrite(PlanOptions(factors=((2, 1),), keep_mass=False), token_grids=GRIDS)
    assert_close(graph.run(), truth(model, both((2, 1)), "nearest", keep_mass=False))


def test_factor_one_is_the_same_graph(kontext: tuple[Kontext, Captured]) -> None:
    graph = kontext[1].copy()
    before = graph.signature()
    report = graph.rewrite(PlanOptions(factors=((1, 1),)), token_grids=GRIDS)
    assert {site.action for site in report.sites} == {"dense"}
    assert graph.signature() == before


@pytest.mark.parametrize(
    ("grids", "why"),
    [
        ({}, "nothing tells that the other 9 are the rows and columns|came in packed"),
        ({24: DRAWN}, "of several pictures in a row, as with a reference, it takes a list"),
    ],
)
def test_without_their_grids_they_stay(
    kontext: tuple[Kontext, Captured], grids: dict[int, Any], why: str
) -> None:
    report = kontext[1].copy().rewrite(HALF, token_grids=grids)
    for site in report.sites:
        assert site.action == "refused"
        assert re.search(why, site.reason), site.reason


@pytest.mark.parametrize(
    "grids",
    [{54: [(4, 6), (7, 4)]}, {54: [(4, 6), "x"]}, {54: [(4, 6), (30,)]}, {24: [[4, 6], [0, 5]]}],
)
def test_grids_that_are_none(grids: Any) -> None:
    with pytest.raises(ConfigError, match="of several pictures in a row a list"):
        check_token_grids(grids)


def test_grids_as_lists() -> None:
    assert check_token_grids({54: [[4, 6], [6, 5]], 6: [2, 3], 24: [[4, 6]]}) == {
        54: ((4, 6), (6, 5)), 6: (2, 3), 24: (4, 6),
    }  # fmt: skip


def test_a_list_of_grids_goes_through_torch_compile_and_onnx(tmp_path: Path) -> None:
    model = Kontext()
    expected = truth(model, both((2, 2)), "nearest")
    named: dict[str, Any] = {"token_grids": {TOKENS: [list(DRAWN), list(REFERENCE)]}}
    options = {**named, "factors": "2", "inner": "eager"}
    with torch.no_grad():
        found = torch.compile(model, backend="todo_inductor", options=options)(*GIVEN)
    assert_close((found,), expected)
    out = tmp_path / "kontext.onnx"
    built: Any = todo_compile.compile(model, args=GIVEN, out=out, factors="2", **named)
    assert built.report is not None
    assert built.report.rewritten == 2
    assert_close((todo_compile.load(out)(*GIVEN),), expected, rtol=1e-3, atol=1e-4)
    again: Any = todo_compile.compile(model, args=GIVEN, out=out, factors="2", **named)
    assert again.reused


class Joined(nn.Module):
    """Attention spelled out, over two pictures of equal size that come in apart as pictures do.

    Args:
        queries: of both, or of the first alone.
        swapped: values in another order than keys.
        masked: hide one token of the second picture.
    """

    def __init__(self, queries: str = "both", *, swapped: bool = False, masked: bool = False):
        super().__init__()
        torch.manual_seed(1)
        self.stems = nn.ModuleList([nn.Conv2d(3, 8, 3, padding=1) for _ in "xy"])
        self.q, self.k, self.v = (nn.Linear(8, 8) for _ in "qkv")
        self.queries, self.swapped, self.masked = queries, swapped, masked
        self.eval()

    def forward(self, x: Tensor, y: Tensor, visible: Tensor) -> Tensor:
        a, b = (stem(t).flatten(2).mT for stem, t in zip(self.stems, (x, y), strict=True))
        return self.attend(torch.cat([a, b], 1), torch.cat([b, a], 1), a, visible)

    def attend(self, both: Tensor, other: Tensor, first: Tensor, visible: Tensor) -> Tensor:
        query = both if self.queries == "both" else first
        scores = self.q(query) @ self.k(both).mT * 0.5
        if self.masked:
            scores = scores.masked_fill(~visible[:, None], -torch.inf)
        return scores.softmax(-1) @ self.v(other if self.swapped else both)


def joined(model: Joined, dialect: str, **options: Any) -> tuple[Any, Tensor]:
    visible = torch.ones(1, 48, dtype=torch.bool)
    given = (randn(1, 3, *DRAWN), randn(1, 3, *DRAWN) + 1, visible)
    graph = capture(model, given, dialect)
    report = graph.rewrite(PlanOptions(factors=((2, 2),), **options))
    return only_site(report), graph.run()[0]


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("sampling", ["nearest", "average"])
def test_two_pictures_that_the_graph_proves(sampling: str, dialect: str) -> None:
    model = Joined()
    site, found = joined(model, dialect, sampling=sampling)
    assert (site.kind, site.action, len(site.beside)) == ("joint", "rewritten", 1)
    with torch.no_grad():
        x, y = randn(1, 3, *DRAWN), randn(1, 3, *DRAWN) + 1
        a, b = (stem(t).flatten(2).mT for stem, t in zip(model.stems, (x, y), strict=True))
        both = torch.cat([a, b], 1)
        key, value = model.k(both), model.v(both)
        for offset in (0, 24):
            key, value = (
                oracle.stand_ins(t, 1, DRAWN, (2, 2), sampling, offset) for t in (key, value)
            )
        expected = oracle.attention(model.q(both), key, value, scale=0.5)
    assert_close((found,), expected)


def test_equal_tokens_give_the_dense_result() -> None:
    model = Joined()
    x, y = (torch.full((1, 3, *DRAWN), value) for value in (0.3, -0.7))
    model.stems[0].padding = model.stems[1].padding = (0, 0)
    wide = [nn.functional.pad(t, (1, 1, 1, 1), mode="replicate") for t in (x, y)]
    given = (*wide, torch.ones(1, 48, dtype=torch.bool))
    graph = capture(model, given, "export")
    with torch.no_grad():
        dense = model(*given)
    assert only_site(graph.rewrite(HALF)).action == "rewritten"
    assert_close(graph.run(), dense, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("model", "why"),
    [
        (Joined("first"), "several images, and its queries are not all of these"),
        (Joined(swapped=True), "keys and values do not lie on the same grid"),
        (Joined(masked=True), "its mask could hide image keys"),
    ],
)
def test_what_could_be_wrong_stays_dense(model: Joined, why: str) -> None:
    site, _ = joined(model, "export")
    assert site.action == "refused"
    assert why in site.reason


def test_drift_of_a_site_whose_pictures_have_factors_of_their_own() -> None:
    """Each site alone, pooled as the plan has it: the reference only."""
    model = Kontext()
    meter = DriftMeter(model, GIVEN, token_grids=GRIDS, native_kv_tokens=24)
    found = measure(meter, [Probe(0.5, GIVEN)], PlanOptions())
    with torch.no_grad():
        dense = model(*GIVEN)
    reference = truth(model, [(TEXT + 24, REFERENCE, (2, 1))], "nearest")
    assert found.total[0] == pytest.approx(relative_error(reference, dense), rel=1e-3)
    assert all(0 < site.output[0] < 2 * found.total[0] for site in found.sites)
