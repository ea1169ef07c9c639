"""Every rewritten site against subsampling at the site: right rewrites pass, broken ones do not."""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import oracle
import pytest
import torch
import torch.nn.functional as F
from graphs import (
    Decoder,
    ImageAttention,
    baddbmm_empty,
    einsum_heads,
    image,
    make_unet,
    matmul_after,
    sdpa,
    sdpa_merged_heads,
    transposed_scores,
    unet_inputs,
    value_left,
)
from torch import nn
from torch.export import ExportedProgram
from torch.fx import GraphModule, Node

from todo_compile.build import site_proof, stand_ins, truth
from todo_compile.build.site_proof import SiteProof, dense_copy, prove_sites, relative
from todo_compile.build.verification import worst_site
from todo_compile.capture.trace import capture
from todo_compile.errors import PassError
from todo_compile.options import SAMPLINGS, PlanOptions, Sampling
from todo_compile.passes import ops
from todo_compile.passes.pipeline import rewrite_graph
from todo_compile.passes.report import Report

TOLERANCE = 1e-5
INPUTS = unet_inputs(8, 8)
ALL: tuple[Sampling, ...] = tuple(SAMPLINGS)


class Rewritten:
    """A model, captured, rewritten, and what is known of both."""

    def __init__(
        self,
        model: nn.Module | ExportedProgram,
        args: Sequence[Any],
        options: PlanOptions,
        **more: Any,
    ):
        self.args = args
        # Capturing is slow, copying is not.
        self.program: ExportedProgram = copy.deepcopy(
            model if isinstance(model, ExportedProgram) else capture(model.eval(), args)
        )
        self.dense: GraphModule = dense_copy(self.program)
        self.report: Report = rewrite_graph(self.program.graph_module, options, **more)
        assert self.report.rewritten

    def prove(self, tolerance: float = TOLERANCE, budget: int = 2**30) -> tuple[SiteProof, ...]:
        return prove_sites(
            self.program, self.dense, self.report, self.args, tolerance=tolerance, budget=budget
        )

    def nodes(self, wanted: Callable[[Node], bool]) -> list[Node]:
        return [n for n in self.program.graph.nodes if wanted(n)]


def options(sampling: Sampling = "nearest", factor: Any = (2, 2), **more: Any) -> PlanOptions:
    return PlanOptions(factors=(factor,), sampling=sampling, **more)


@cache
def captured(variant: str) -> ExportedProgram:
    return capture(make_unet(variant), INPUTS)


def unet(sampling: Sampling = "nearest") -> Rewritten:
    both = PlanOptions(factors=((4, 2), (2, 2)), sampling=sampling)
    return Rewritten(captured("both levels"), INPUTS, both)


def added_kv(sampling: Sampling = "nearest", **more: Any) -> Rewritten:
    """Keys of the text come before those of the image."""
    return Rewritten(captured("added kv"), INPUTS, options(sampling, **more))


@pytest.mark.parametrize("sampling", ALL)
def test_every_site_of_a_unet_is_proved(sampling: Sampling) -> None:
    rewritten = unet(sampling)
    found = rewritten.prove()
    sites = [s for s in rewritten.report.sites if s.action == "rewritten"]
    assert [(one.name, one.module) for one in found] == [(s.name, s.module) for s in sites]
    assert len(found) > 2
    for one in found:
        assert one.compared == "attention"
        assert one.error is not None
        assert 0 <= one.error <= TOLERANCE


@pytest.mark.parametrize("sampling", ALL)
def test_text_and_image_keys_with_kept_mass(sampling: Sampling) -> None:
    rewritten = added_kv(sampling)
    assert {s.kind for s in rewritten.report.sites if s.action == "rewritten"} == {"joint"}
    assert {one.compared for one in rewritten.prove()} == {"attention"}


def test_without_kept_mass_keys_and_values_are_compared() -> None:
    rewritten = added_kv(keep_mass=False)
    assert {one.compared for one in rewritten.prove()} == {"keys and values"}


def test_lost_mass_is_seen() -> None:
    """Where the report says that mass is kept and the graph does not keep it."""
    rewritten = added_kv()
    for node in rewritten.nodes(lambda n: "new_full" in str(n.target)):
        node.args = (*node.args[:2], 0.0)
    with pytest.raises(PassError, match="is wrong: compared by attention, it differs"):
        rewritten.prove()


@pytest.mark.parametrize("hoist", [True, False])
@pytest.mark.parametrize(
    "attend",
    [
        sdpa,
        sdpa_merged_heads,
        matmul_after,
        baddbmm_empty,
        einsum_heads,
        transposed_scores,
        value_left,
    ],
)
def test_spellings(attend: Any, hoist: bool) -> None:
    model = ImageAttention(attend)
    rewritten = Rewritten(model, (image(4, 6),), options("average", (2, 3), hoist=hoist))
    (one,) = rewritten.prove()
    assert one.compared == "attention"


@pytest.mark.parametrize("attend", [sdpa, matmul_after])
@pytest.mark.parametrize("sampling", ALL)
def test_smaller_cells_weigh_what_they_stand_for(sampling: Sampling, attend: Any) -> None:
    rewritten = Rewritten(ImageAttention(attend), (image(5, 7),), options(sampling, (2, 3)))
    assert [one.compared for one in rewritten.prove()] == ["attention"]


def test_scores_that_do_not_fit_are_not_made() -> None:
    spelled = Rewritten(ImageAttention(matmul_after), (image(4, 6),), options())
    assert [one.compared for one in spelled.prove(budget=100)] == ["keys and values"]
    fused = Rewritten(ImageAttention(sdpa), (image(4, 6),), options())
    assert [one.compared for one in fused.prove(budget=100)] == ["attention"]


def test_some_queries_of_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(truth, "QUERIES", 7)
    seen: list[torch.Size] = []
    real = stand_ins.every
    monkeypatch.setattr(
        stand_ins, "every", lambda x, axis, step: seen.append(x.shape) or real(x, axis, step)
    )
    Rewritten(ImageAttention(sdpa), (image(6, 6),), options()).prove()
    assert len(seen) == 1


def test_the_decoder_of_a_vae() -> None:
    latents = torch.randn(1, 4, 6, 8)
    assert Rewritten(Decoder(), (latents,), options("average")).prove()


def test_half_precision_within_its_tolerance() -> None:
    model = ImageAttention(sdpa).half()
    (one,) = Rewritten(model, (image(8, 8).half(),), options("average")).prove(2e-2)
    assert one.error is not None
    assert 0 < one.error < 1e-2


def test_explicit_casts_are_no_difference() -> None:
    class Mixed(ImageAttention):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            out = super().forward(x)
            return torch.cat([out.double(), out], 1)

    Rewritten(Mixed(sdpa), (image(4, 4),), options(), explicit_casts=True).prove()


# Broken rewrites ----------------------------------------------------------------------------------
def pools(rewritten: Rewritten, name: str = "slice") -> list[Node]:
    return rewritten.nodes(lambda n: "todo_rule" in n.meta and ops.op(n) == name)


@pytest.mark.parametrize("sampling", ["nearest", "nearest-exact", "staggered"])
@pytest.mark.parametrize("which", [0, -1])
def test_another_phase_is_seen(which: int, sampling: Sampling) -> None:
    rewritten = unet(sampling)
    node = [n for n in pools(rewritten) if n.args[4] != 1][which]
    source, dim, start, end, step = node.args
    node.args = (source, dim, 1 - min(int(start), 1), end, step)  # type: ignore[arg-type]
    with pytest.raises(PassError, match=r"attn1 is wrong: compared by attention, it differs"):
        rewritten.prove()


def test_another_mean_is_seen() -> None:
    rewritten = unet("average")
    node = pools(rewritten, "mean")[0]
    node.target = torch.ops.aten.amax.default
    with pytest.raises(PassError, match="is wrong"):
        rewritten.prove()


def test_a_transposed_grid_is_seen() -> None:
    """Rows taken for columns: the right number of keys, all of the wrong place."""
    rewritten = Rewritten(ImageAttention(sdpa), (image(4, 8),), options("nearest", (2, 2)))
    grid = next(n for n in pools(rewritten, "view") if len(rewritten_shape(n)) == 4)
    source, sizes = grid.args
    assert isinstance(sizes, list)
    grid.args = (source, [sizes[0], 8, 4, sizes[3]])
    with pytest.raises(PassError, match="is wrong"):
        rewritten.prove()


def rewritten_shape(node: Node) -> tuple[int, ...]:
    return tuple(node.meta["val"].shape)


def test_keys_of_another_projection_are_seen() -> None:
    rewritten = Rewritten(ImageAttention(sdpa), (image(4, 4),), options())
    query, key, *_ = rewritten.nodes(lambda n: ops.op(n) == "linear")
    key.args = (key.args[0], *query.args[1:])
    with pytest.raises(PassError, match="is wrong"):
        rewritten.prove()


def test_a_change_beside_the_sites_is_seen() -> None:
    rewritten = unet()
    node = rewritten.nodes(lambda n: ops.op(n) == "silu")[0]
    node.target = torch.ops.aten.relu.default
    with pytest.raises(PassError, match=f"changed {node.name}, which feeds no site"):
        rewritten.prove()


def test_a_reader_of_subsampled_keys_is_seen() -> None:
    class Sum(ImageAttention):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x) + self.to_v(self.tokens(x)).sum()

    rewritten = Rewritten(Sum(sdpa), (image(4, 4),), options())
    total = rewritten.nodes(lambda n: ops.op(n) == "sum")[0]
    pooled = pools(rewritten)[-1]
    total.args = (pooled, *total.args[1:])
    with pytest.raises(PassError, match=f"changed {total.name}"):
        rewritten.prove()


def test_a_write_after_the_projections_is_none_of_the_site_s_business() -> None:
    class Writes(ImageAttention):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            tokens = self.tokens(x)
            q, k, v = (self.split(p(tokens)) for p in (self.to_q, self.to_k, self.to_v))
            tokens.add_(1)
            return F.scaled_dot_product_attention(q, k, v) + tokens.sum()

    (one,) = Rewritten(Writes(sdpa), (image(4, 4),), options()).prove()
    assert one.compared == "attention"


def test_what_cannot_be_said_is_not_claimed(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if what a site reads had been written before it was compared."""
    writes = itertools.count()
    monkeypatch.setattr(site_proof, "_version", lambda _: next(writes))
    (one,) = Rewritten(ImageAttention(sdpa), (image(4, 4),), options()).prove()
    assert one.error is None
    assert one.compared == "nothing: what it reads is written in place"
    assert worst_site([one]) == "0 sites against subsampling at the site"


def test_the_worst_site_speaks_for_all() -> None:
    found = [SiteProof("a", "x.attn", 1e-6, "attention"), SiteProof("b", "", 2e-6, "attention")]
    assert worst_site(found) == "2 sites against subsampling at the site: worst 2.0e-06 (b)"


# The truth itself ---------------------------------------------------------------------------------
@pytest.mark.parametrize("sampling", ALL)
@pytest.mark.parametrize("grid", [(4, 6), (5, 7), (3, 2)])
@pytest.mark.parametrize("column_major", [False, True])
def test_subsampling_is_that_of_the_tests(
    sampling: Sampling, grid: tuple[int, int], column_major: bool
) -> None:
    phase = (1, 0) if sampling == "staggered" else (0, 0)
    given = stand_ins.Image(3, grid, (2, 3), phase, column_major, sampling)
    tokens = torch.randn(2, grid[0] * grid[1], 4)
    text, rest = torch.randn(2, 3, 4), torch.randn(2, 2, 4)
    own = tokens.unflatten(1, grid).transpose(1, 2).flatten(1, 2) if column_major else tokens
    found = stand_ins.subsample(torch.cat([text, own, rest], 1), 1, [given])
    expected = oracle.subsample(tokens, 1, grid, (2, 3), sampling, start=phase)
    if column_major:
        expected = expected.unflatten(1, given.cells).transpose(1, 2).flatten(1, 2)
    torch.testing.assert_close(found, torch.cat([text, expected, rest], 1))


def test_each_token_gets_what_stands_for_it() -> None:
    given = stand_ins.Image(1, (3, 5), (2, 3), (0, 0), False, "nearest")
    numbers = torch.arange(17.0)[None]
    found = stand_ins.spread(stand_ins.subsample(numbers, 1, [given]), 1, [given])
    assert found.int().tolist() == [
        [0, 1, 1, 1, 4, 4, 1, 1, 1, 4, 4, 11, 11, 11, 14, 14, 16]
    ]  # fmt: skip


def test_relative_errors() -> None:
    one = torch.tensor([4.0, -2.0])
    assert relative(one, one) == 0
    assert relative(one + torch.tensor([0.0, 1.0]), one) == 0.25
    assert relative(one[:1], one) == math.inf
    assert math.isnan(relative(one * math.nan, one))
