"""The arithmetic under the passes: axes, factors, poolings, options, dumps, casts."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import oracle
import pytest
import torch
import torch.nn.functional as F
from graphs import ImageAttention, capture, image, make_unet, unet_inputs
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from todo_compile.errors import ConfigError
from todo_compile.options import PRESETS, SAMPLINGS, PlanOptions, Sampling, parse_factors
from todo_compile.passes.grid import axes
from todo_compile.passes.grid.axes import grid_of, image_segments
from todo_compile.passes.grid.reshapes import reshape
from todo_compile.passes.plan.choose import smallest_factors
from todo_compile.passes.rewrite.pooling import Pooling, pool_tokens

Pair = tuple[int, int]


# Axes ---------------------------------------------------------------------------------------------
@settings(max_examples=60)
@given(sizes=st.lists(st.integers(1, 6), min_size=1, max_size=5), data=st.data())
def test_reshape_keeps_every_size(sizes: list[int], data: st.DataObject) -> None:
    """Whatever the new shape, each dimension has its size; going back gives the same ranges."""
    before = tuple(axes.fresh_dim(s) for s in sizes)
    wanted: list[int] = []
    rest = math.prod(sizes)
    while rest > 1:
        divisors = [d for d in range(1, rest + 1) if rest % d == 0]
        wanted.append(data.draw(st.sampled_from(divisors)))
        rest //= wanted[-1]
    after = reshape(before, wanted)
    assert [axes.dim_size(d) for d in after] == wanted
    merged = reshape(before, [math.prod(sizes)])
    assert reshape(merged, sizes) == before


def test_flattened_grid_comes_apart_again() -> None:
    h, w = axes.fresh(5, "H"), axes.fresh(7, "W")
    flat = reshape((axes.fresh_dim(2), (h,), (w,), axes.fresh_dim(3)), (2, 35, 3))
    assert flat[1] == (h, w)
    assert grid_of(flat[1]) == (h, w)
    heads = reshape(flat, (2, 35, 1, 3))
    assert heads[1] == (h, w)
    assert heads[2] == ()


def test_a_cut_across_rows_loses_the_grid() -> None:
    """7 · 5 is not 5 · 7: the product is the same and the positions are not."""
    flat = ((axes.fresh(5, "H"), axes.fresh(7, "W")),)
    assert not any(axes.has_roles(d) for d in reshape(flat, (7, 5)))
    assert [d[0].role for d in reshape(flat, (5, 7))] == ["H", "W"]


def test_split_rows_join_again_in_order_only() -> None:
    h = axes.fresh(12, "H")
    outer, inner = reshape(((h,),), (3, 4))
    assert reshape((outer, inner), (12,)) == ((h,),)
    assert reshape((inner, outer), (12,)) != ((h,),)


def test_unifier() -> None:
    unifier = axes.Unifier()
    grid = (axes.fresh(4, "H"), axes.fresh(4, "W"))
    other = (axes.fresh(4, "H"), axes.fresh(4, "W"))
    turned = (axes.fresh(4, "W"), axes.fresh(4, "H"))
    assert not unifier.same_range(grid, other)
    assert unifier.unify(grid, other) == grid
    assert unifier.same_range(grid, other)
    assert not axes.has_roles(unifier.unify(grid, turned)), "contradicting orders prove nothing"
    assert not unifier.same_range(grid, turned)
    assert unifier.unify(axes.fresh_dim(16), grid) == grid, "the side that knows more wins"


def test_segments_of_a_concatenation() -> None:
    text = axes.fresh_dim(3)
    grid = (axes.fresh(4, "H"), axes.fresh(5, "W"))
    joined = axes.concatenated([text, grid])
    assert axes.dim_size(joined) == 23
    assert image_segments(joined) == [(3, grid)]
    assert image_segments(axes.concatenated([grid, text])) == [(0, grid)]
    assert image_segments(axes.concatenated([grid, text, grid])) == [(0, grid), (23, grid)]
    assert image_segments(axes.concatenated([joined, text])) == [(3, grid)]


# Factors ------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("side", "factor"), [(64, 1), (128, 2), (192, 3), (256, 4), (512, 8), (65, 2), (129, 3)]
)
def test_factor_of_square_grids(side: int, factor: int) -> None:
    assert smallest_factors(side, side, 4096) == (factor, factor)


@settings(max_examples=150)
@given(rows=st.integers(1, 40), columns=st.integers(1, 40), bound=st.integers(1, 300))
def test_factors_are_the_gentlest_within_the_bound(rows: int, columns: int, bound: int) -> None:
    def left(pair: Pair) -> int:
        return oracle.cells(rows, pair[0]) * oracle.cells(columns, pair[1])

    chosen = smallest_factors(rows, columns, bound)
    assert 1 <= chosen[0] <= rows
    assert 1 <= chosen[1] <= columns
    assert left(chosen) <= bound
    every = [(r, c) for r in range(1, rows + 1) for c in range(1, columns + 1)]
    if rows == columns:
        every = [(r, c) for r, c in every if r == c]
    best = min(r * r + c * c for r, c in every if left((r, c)) <= bound)
    assert chosen[0] ** 2 + chosen[1] ** 2 == best


# Pooling ------------------------------------------------------------------------------------------
def pooled(x: torch.Tensor, dim: int, offset: int, grid: Pair, by: Pair, how: Sampling) -> Any:
    return pool_tokens(x, dim, *Pooling(*grid, *by, how, offset).arguments())


@settings(max_examples=100)
@given(
    grid=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    by=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    sampling=st.sampled_from(SAMPLINGS),
    text=st.tuples(st.integers(0, 3), st.integers(0, 3)),
    dim=st.integers(0, 2),
)
def test_pooling_is_the_specification(
    grid: Pair, by: Pair, sampling: Sampling, text: Pair, dim: int
) -> None:
    by = (min(by[0], grid[0]), min(by[1], grid[1]))
    length = text[0] + grid[0] * grid[1] + text[1]
    x = torch.randn(2, 3, length, generator=torch.Generator().manual_seed(0)).movedim(-1, dim)
    got = pooled(x, dim, text[0], grid, by, sampling)
    expected = oracle.subsample(x, dim, grid, by, sampling, text[0])
    torch.testing.assert_close(got, expected, rtol=1e-6, atol=1e-6)
    spec = Pooling(*grid, *by, sampling, text[0])
    assert got.shape[dim] == spec.length_after(length) >= 1
    if spec.picks_tokens:
        assert torch.equal(got, expected)


@pytest.mark.parametrize("factor", [2, 3, 4])
@pytest.mark.parametrize("sampling", ["nearest", "nearest-exact"])
def test_pooling_is_torch_interpolate(factor: int, sampling: Sampling) -> None:
    picture = image(2 * factor, 3 * factor)
    expected = F.interpolate(picture, size=(2, 3), mode=sampling)
    got = pooled(picture.flatten(2), 2, 0, (2 * factor, 3 * factor), (factor, factor), sampling)
    assert torch.equal(got.view_as(expected), expected)


@pytest.mark.parametrize("grid", [(7, 5), (8, 6), (3, 11), (1, 5)])
@pytest.mark.parametrize("by", [(2, 2), (3, 4), (5, 1)])
def test_average_is_torch_avg_pool(grid: Pair, by: Pair) -> None:
    by = (min(by[0], grid[0]), by[1])
    picture = image(*grid)
    expected = F.avg_pool2d(picture, by, by, ceil_mode=True, count_include_pad=False)
    got = pooled(picture.flatten(2), 2, 0, grid, by, "average")
    torch.testing.assert_close(got.view_as(expected), expected, rtol=1e-6, atol=1e-6)


# Options ------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("text", "factors"),
    [
        (None, None),
        ("off", ()),
        (" OFF ", ()),
        ("4,2,1", ((4, 4), (2, 2), (1, 1))),
        ("4x2, 3", ((2, 4), (3, 3))),
        ("4×2", ((2, 4),)),
        (2, ((2, 2),)),
        ((4, (2, 1)), ((4, 4), (2, 1))),
        ([3], ((3, 3),)),
        ((), ()),
    ],
)
def test_parse_factors(text: Any, factors: Any) -> None:
    assert parse_factors(text) == factors


@pytest.mark.parametrize(
    "text",
    ["", "0", "-1", "two", "2,", "2x", "x2", "2x3x4", "1.5", 0, -2, True, (0,), ((2,),), (2.5,)],
)
def test_parse_factors_refuses(text: Any) -> None:
    with pytest.raises(ConfigError, match="factor") as caught:
        parse_factors(text)
    assert caught.value.remedy


@pytest.mark.parametrize(
    "options",
    [
        {"kv_tokens": 0},
        {"kv_tokens": -4},
        {"kv_tokens": True},
        {"kv_tokens": 2.5},
        {"kv_tokens": 64, "factors": ((2, 2),)},
        {"sampling": "bilinear"},
        {"factors": ((0, 2),)},
        {"factors": ((2, 2, 2),)},
    ],
)
def test_options_refuse(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError) as caught:
        PlanOptions(**options)
    assert caught.value.remedy


def test_presets() -> None:
    for name, (factor, sampling) in {
        "todo-2x": (2, "nearest"),
        "todo-3x": (3, "nearest"),
        "todo-4x": (4, "nearest"),
        "todo-repo-2x": (2, "nearest-exact"),
    }.items():
        options = PlanOptions.create(preset=name)
        assert (options.factors, options.sampling) == (((factor, factor),), sampling)
        assert PRESETS[name] is options
    for wrong in ({"preset": "todo-9x"}, {"preset": "todo-2x", "sampling": "average"}):
        with pytest.raises(ConfigError):
            PlanOptions.create(**wrong)
    assert PlanOptions.create(factors="3", sampling="average") == PlanOptions(
        factors=((3, 3),), sampling="average"
    )


@pytest.mark.parametrize(
    ("factors", "words"),
    [
        (((5, 1),), "exceeds its grid of 6×4"),
        (((1, 7),), "exceeds its grid of 6×4"),
        (((2, 2), (2, 2)), "1 level here"),
    ],
)
def test_factors_that_the_graph_cannot_follow(factors: Any, words: str) -> None:
    captured = capture(ImageAttention(), (image(4, 6),), "export")
    before = captured.signature()
    with pytest.raises(ConfigError, match=words) as caught:
        captured.rewrite(PlanOptions(factors=factors))
    assert caught.value.remedy
    assert captured.signature() == before, "an error leaves the graph alone"


# Dumps and casts ----------------------------------------------------------------------------------
def test_dump(tmp_path: Path) -> None:
    folder = tmp_path / "deep" / "dump"
    captured = capture(ImageAttention(), (image(4, 6),), "export")
    report = captured.rewrite(PlanOptions(kv_tokens=6), dump=folder, explicit_casts=True)
    names = sorted(p.name for p in folder.iterdir())
    passes = [p.name for p in report.passes]
    written = ["captured", *passes, "report"]
    assert names == [f"{i:02d}-{name}.txt" for i, name in enumerate(written)]
    texts = {name: (folder / name).read_text() for name in names}
    assert "pool_tokens" not in texts[names[0]]
    pooled_text = next(t for n, t in texts.items() if n.endswith("-pool.txt"))
    assert pooled_text.count("pool_tokens(") == 2
    hoisted = next(t for n, t in texts.items() if n.endswith("-hoist.txt"))
    assert hoisted.count("pool_tokens(") == 1
    last = texts[names[-2]]
    assert "pool_tokens" not in last
    assert len(last.splitlines()) == len(captured.nodes)
    assert "scaled_dot_product_attention" in last
    assert {p.name: p.count for p in report.passes}["pool"] == 2
    assert all(p.seconds >= 0 for p in report.passes)


def test_dump_into_a_file_is_an_error(tmp_path: Path) -> None:
    taken = tmp_path / "taken"
    taken.write_text("mine")
    captured = capture(ImageAttention(), (image(4, 6),), "export")
    with pytest.raises(ConfigError, match="cannot be made"):
        captured.rewrite(dump=taken)
    assert taken.read_text() == "mine"


class Mixed(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([x.half(), x, torch.cat([x.half(), x.half()])])


def test_mixed_concatenation_is_promoted() -> None:
    captured = capture(Mixed(), (image(2, 2),), "export")
    before = captured.run()
    assert captured.count("cat") == 2
    report = captured.rewrite(explicit_casts=True)
    assert {p.name: p.count for p in report.passes}["casts"] == 2
    for node in captured.nodes:
        if "cat" in node.name:
            assert len({n.meta["val"].dtype for n in node.all_input_nodes}) == 1
    assert all(torch.equal(a, b) for a, b in zip(captured.run(), before, strict=True))
    again = captured.rewrite(explicit_casts=True)
    assert {p.name: p.count for p in again.passes}["casts"] == 0


def test_fake_values_are_the_real_shapes() -> None:
    """What the rewritten graph says of its shapes is what a second look finds."""
    from torch.fx.passes.shape_prop import ShapeProp

    captured = capture(make_unet("lower level"), unet_inputs(6, 10, batch=1), "dynamo")
    captured.rewrite(PlanOptions(kv_tokens=4))
    said = {n.name: captured.shape(n) for n in captured.nodes if "todo_rule" in n.meta}
    assert said
    real: list[Any] = [
        torch.zeros(tuple(n.meta["example_value"].shape), dtype=n.meta["example_value"].dtype)
        for n in captured.nodes
        if n.op == "placeholder"
    ]
    ShapeProp(captured.module).propagate(*real)
    for node in captured.nodes:
        if node.name in said:
            assert tuple(node.meta["tensor_meta"].shape) == said[node.name]
