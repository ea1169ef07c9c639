"""Rewritten graph == eager truth, over sizes, factors, samplings, spellings and dialects."""

from __future__ import annotations

import copy
from functools import cache
from typing import Any

import oracle
import pytest
import torch
from diffusers.models.attention_processor import AttnProcessor, AttnProcessor2_0
from graphs import (
    DIALECTS,
    Captured,
    Decoder,
    Denoiser,
    ImageAttention,
    Tensors,
    assert_close,
    capture,
    image,
    make_unet,
    only_site,
    unet_inputs,
)
from hypothesis import example, given, settings
from hypothesis import strategies as st

from todo_compile.options import SAMPLINGS, PlanOptions, Sampling
from todo_compile.passes.report import Report

Pair = tuple[int, int]
PROCESSORS = {"sdpa": AttnProcessor2_0, "product": AttnProcessor}


def truth(
    model: Denoiser,
    inputs: tuple[torch.Tensor, ...],
    grids: dict[int, Pair],
    factors: dict[int, Pair],
    sampling: str,
) -> torch.Tensor:
    """What the UNet gives in eager mode with the oracle in place of every attention."""
    other = copy.deepcopy(model)
    processor = oracle.OracleProcessor(grids, factors, sampling)
    other.unet.set_attn_processor(processor)  # pyright: ignore[reportCallIssue]
    with torch.no_grad():
        result = other(*inputs)
    assert processor.calls or all(f == (1, 1) for f in factors.values())
    return result


def levels(rows: int, columns: int) -> list[Pair]:
    """Grids of the tiny UNet's two levels: its downsampling rounds up."""
    return [(rows, columns), (-(-rows // 2), -(-columns // 2))]


def attention_modules(model: Denoiser) -> dict[str, bool]:
    """Path of every attention module in the UNet → whether it is a self-attention."""
    return {
        name: name.endswith("attn1")
        for name, _ in model.named_modules()
        if name.endswith(("attn1", "attn2"))
    }


def assert_complete(report: Report, model: Denoiser) -> None:
    """Every attention of the UNet has one row with its module, an action and a reason."""
    expected = attention_modules(model)
    assert sorted(s.module for s in report.sites) == sorted(expected)
    for site in report.sites:
        assert site.action in ("rewritten", "dense", "refused")
        assert site.reason
        assert (site.kind == "self") == expected[site.module], site
        assert (site.kind == "cross") == (not expected[site.module]), site
        if site.kind == "cross":
            assert site.action == "dense"
            assert "cross-attention" in site.reason


@cache
def _captured_unet(
    variant: str, spelling: str, dialect: str, sides: Pair
) -> tuple[Denoiser, Tensors, Captured]:
    model, inputs = make_unet(variant, processor=PROCESSORS[spelling]()), unet_inputs(*sides)
    return model, inputs, capture(model, inputs, dialect)


def captured_unet(
    spelling: str, dialect: str, sides: Pair = (10, 6), variant: str = "both levels"
) -> tuple[Denoiser, Tensors, Captured]:
    """A tiny UNet, its inputs, and a graph of its own to edit."""
    model, inputs, captured = _captured_unet(variant, spelling, dialect, sides)
    return model, inputs, captured.copy()


# One attention ------------------------------------------------------------------------------------
@settings(max_examples=6)
@given(
    grid=st.tuples(st.integers(1, 13), st.integers(1, 13)),
    divisors=st.tuples(st.integers(1, 13), st.integers(1, 13)),
    batch=st.integers(1, 3),
    heads=st.integers(1, 3),
    sampling=st.sampled_from(SAMPLINGS),
    dialect=st.sampled_from(DIALECTS),
)
@example((7, 7), (2, 2), 2, 2, "nearest-exact", "export")
@example((5, 11), (3, 4), 2, 1, "average", "dynamo")
@example((11, 5), (4, 5), 1, 2, "average", "export")
@example((9, 4), (9, 4), 1, 1, "nearest", "dynamo")
def test_one_attention_on_any_grid(
    grid: Pair, divisors: Pair, batch: int, heads: int, sampling: Sampling, dialect: str
) -> None:
    factors = (min(divisors[0], grid[0]), min(divisors[1], grid[1]))
    model = ImageAttention(heads=heads, head_dim=3)
    inputs = (image(*grid, batch=batch),)
    captured = capture(model, inputs, dialect)
    report = captured.rewrite(PlanOptions(factors=(factors,), sampling=sampling))
    site = only_site(report)
    if grid != (1, 1):
        expected = oracle.cells(grid[0], factors[0]) * oracle.cells(grid[1], factors[1])
        rewritten = factors != (1, 1)
        one_row = 1 in grid
        if not one_row:
            assert site.grid == grid
            assert site.action == ("rewritten" if rewritten else "dense"), site.reason
        if site.action == "rewritten":
            assert (site.key_tokens, site.key_tokens_after) == (grid[0] * grid[1], expected)
            model.pool = lambda x: oracle.stand_ins(x, 2, grid, factors, sampling)
    with torch.no_grad():
        assert_close(captured.run(), model(*inputs), rtol=1e-5, atol=1e-5)


# UNets --------------------------------------------------------------------------------------------
CAPTURES = (  # spelling, dialect, sides, variant: few, since capturing is what takes the time
    ("sdpa", "export", (10, 6), "both levels"),
    ("product", "export", (10, 6), "both levels"),
    ("sdpa", "dynamo", (10, 6), "both levels"),
    ("product", "dynamo", (10, 6), "both levels"),
    ("product", "export", (14, 22), "upper level"),
    ("sdpa", "export", (10, 26), "lower level"),
)


@pytest.mark.parametrize("chosen", CAPTURES, ids=lambda c: "-".join(map(str, c)).replace(" ", ""))
@settings(max_examples=2)
@given(
    first=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    second=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    sampling=st.sampled_from(SAMPLINGS),
)
@example((3, 2), (2, 1), "average")
@example((4, 3), (1, 2), "nearest-exact")
@example((2, 2), (1, 1), "nearest")
def test_unet(
    chosen: tuple[str, str, Pair, str], first: Pair, second: Pair, sampling: Sampling
) -> None:
    spelling, dialect, sides, variant = chosen
    model, inputs, captured = captured_unet(*chosen)
    # Without attention on the upper level, the lower one is the largest grid.
    used = levels(*sides)[variant == "lower level" :]
    wanted = [first, second][: len(used)]
    report = captured.rewrite(PlanOptions(factors=tuple(wanted), sampling=sampling))
    assert_complete(report, model)
    by_grid = dict(zip(used, wanted, strict=True))
    for site in report.sites:
        assert site.spelling == spelling
        if site.kind == "self":
            assert site.grid in by_grid, site
            assert site.factor == by_grid[site.grid]
            assert site.action == ("dense" if site.factor == (1, 1) else "rewritten")
    assert {s.grid for s in report.sites if s.kind == "self"} == set(used)
    tokens = {r * c: (r, c) for r, c in used}
    factors = {r * c: by_grid[r, c] for r, c in used}
    assert captured.dialect == dialect
    assert_close(captured.run(), truth(model, inputs, tokens, factors, sampling))


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("spelling", list(PROCESSORS))
def test_bound_on_tokens_by_default(dialect: str, spelling: str) -> None:
    """The model's own token count bounds every site, at the gentlest factor of each grid."""
    model, inputs, captured = captured_unet(spelling, dialect)
    report = captured.rewrite(native_kv_tokens=15)
    assert all(s.key_tokens_after <= 15 for s in report.sites)
    assert {s.factor for s in report.sites if s.grid == (10, 6)} == {(2, 2)}
    assert {s.action for s in report.sites if s.grid == (5, 3)} == {"dense"}
    grids = {60: (10, 6), 15: (5, 3)}
    assert_close(captured.run(), truth(model, inputs, grids, {60: (2, 2)}, "nearest"))


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("spelling", list(PROCESSORS))
def test_off_is_bit_identical_and_touches_nothing(dialect: str, spelling: str) -> None:
    model, _, captured = captured_unet(spelling, dialect)
    before, dense = captured.signature(), captured.run()
    for options in (
        PlanOptions(factors=()),
        PlanOptions(factors=((1, 1), (1, 1)), sampling="average"),
        PlanOptions(kv_tokens=60),
    ):
        report = captured.rewrite(options)
        assert_complete(report, model)
        assert {s.action for s in report.sites} == {"dense"}
        assert report.totals.flops_after == report.totals.flops
        assert captured.signature() == before
    for one, other in zip(captured.run(), dense, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("sampling", SAMPLINGS)
@pytest.mark.parametrize("spelling", list(PROCESSORS))
def test_hoisted_equals_unhoisted(dialect: str, sampling: Sampling, spelling: str) -> None:
    results: list[Any] = []
    for hoist in (True, False):
        _, _, captured = captured_unet(spelling, dialect)
        options = PlanOptions(factors=((3, 2), (2, 1)), sampling=sampling, hoist=hoist)
        report = captured.rewrite(options)
        assert any(s.action == "rewritten" for s in report.sites)
        results.append((captured.run(), report.totals.flops_after))
    assert_close(results[0][0], results[1][0], rtol=1e-5, atol=1e-6)
    assert results[0][1] < results[1][1], "hoisting saves projections"


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("sampling", SAMPLINGS)
@pytest.mark.parametrize("spelling", list(PROCESSORS))
def test_a_second_rewrite_finds_nothing_to_do(
    dialect: str, sampling: Sampling, spelling: str
) -> None:
    _, _, captured = captured_unet(spelling, dialect)
    options = PlanOptions(kv_tokens=9, sampling=sampling)
    first = captured.rewrite(options)
    assert any(s.action == "rewritten" for s in first.sites)
    signature, result = captured.signature(), captured.run()
    second = captured.rewrite(options)
    assert not [s for s in second.sites if s.action == "rewritten"]
    assert len(second.sites) == len(first.sites)
    assert all(s.reason for s in second.sites)
    assert captured.signature() == signature
    assert all(torch.equal(a, b) for a, b in zip(captured.run(), result, strict=True))


@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_a_second_rewrite_with_explicit_factors(sampling: Sampling) -> None:
    """The same request again is no error just because everything is done already."""
    _, _, captured = captured_unet("sdpa", "export")
    options = PlanOptions(factors=((2, 2), (2, 2)), sampling=sampling)
    captured.rewrite(options)
    signature = captured.signature()
    second = captured.rewrite(options)
    assert not [s for s in second.sites if s.action == "rewritten"]
    assert captured.signature() == signature


def test_both_dialects_agree() -> None:
    """The same sites, the same plan, the same numbers."""
    rows: list[Any] = []
    results: list[Any] = []
    for dialect in DIALECTS:
        _, _, captured = captured_unet("sdpa", dialect)
        report = captured.rewrite(PlanOptions(kv_tokens=15))
        rows.append(
            [
                (s.module, s.kind, s.grid, s.level, s.factor, s.action, s.flops_after)
                for s in report.sites
            ]
        )
        results.append(captured.run())
    assert rows[0] == rows[1]
    assert_close(results[0], results[1], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("dialect", DIALECTS)
def test_vae_decoder(dialect: str) -> None:
    """One wide head on a 4-D tensor, behind a group norm over its tokens."""
    model, latents = Decoder().eval(), image(6, 7, channels=4)
    captured = capture(model, (latents,), dialect)
    site = only_site(captured.rewrite(PlanOptions(factors=((2, 3),))))
    assert (site.grid, site.action) == ((6, 7), "rewritten"), site.reason
    assert site.module.endswith("attentions.0")
    other = copy.deepcopy(model)
    attention: Any = other.vae.decoder.mid_block.attentions[0]  # pyright: ignore
    attention.set_processor(oracle.OracleProcessor({42: (6, 7)}, {42: (2, 3)}, "nearest"))
    with torch.no_grad():
        assert_close(captured.run(), other(latents))
