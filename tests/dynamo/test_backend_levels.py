"""Factors go by the levels of the model, also where a graph is only a part of it."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from backend_helpers import GRIDS, self_attention, two_levels
from graphs import ImageAttention, assert_close, image, make_unet, unet_inputs
from oracle import stand_ins
from torch import nn

import todo_compile

X = unet_inputs(8, 8)
FIRST = {64: (2, 2)}
BOTH = {64: (4, 4), 16: (2, 2)}


def called(model: Any, *arguments: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return model(*(arguments or X))


def untraced(*_: Any) -> None:
    """A forward hook; Dynamo breaks the graph at it."""


def break_at(*modules: Any) -> None:
    hook: Any = torch.compiler.disable(untraced)
    for module in modules:
        module.register_forward_hook(hook)


@pytest.mark.parametrize("dynamic", [None, True, False])
@pytest.mark.parametrize(("factors", "truth"), [("2", FIRST), ("4,2", BOTH)])
def test_blocks_compiled_one_by_one(dynamic: bool | None, factors: str, truth: Any) -> None:
    model = two_levels()
    options = {"factors": factors, "token_grids": GRIDS, "inner": "eager"}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that the second level's graph has nothing rewritten
        model.unet.compile_repeated_blocks(
            backend="todo_inductor", dynamic=dynamic, fullgraph=True, options=options
        )
        assert_close((called(model),), called(two_levels(truth)))
    sites = self_attention()
    assert [(s.grid, s.level) for s in sites] == [((8, 8), 1), ((4, 4), 2)]
    assert [s.factor for s in sites] == [truth[64], truth.get(16, (1, 1))]


def test_level_1_is_the_largest_grid_of_attention_not_of_the_latent() -> None:
    """SDXL has no attention at full latent resolution: its level 1 is the second grid."""
    model = make_unet("lower level")
    options = {"factors": 2, "token_grids": GRIDS, "inner": "eager"}
    model.unet.compile_repeated_blocks(backend="todo_inductor", options=options)  # type: ignore[operator]
    called(model)
    assert {(s.grid, s.level, s.factor) for s in self_attention()} == {((4, 4), 1, (2, 2))}


def test_graph_break_with_the_resolution() -> None:
    model = two_levels()
    break_at(model.unet.mid_block)
    run = torch.compile(
        model, backend="todo_inductor", options={"factors": "4,2", "res": "64", "inner": "eager"}
    )
    assert_close((called(run),), called(two_levels(BOTH)))
    assert len(todo_compile.reports()) > 1
    assert {(s.grid, s.level, s.factor) for s in self_attention()} == {
        ((8, 8), 1, (4, 4)), ((4, 4), 2, (2, 2))
    }  # fmt: skip


@pytest.mark.slow
def test_graph_break_without_it_warns() -> None:
    """Dynamo gives up the loop over blocks and compiles each: level 2 is then taken for level 1."""
    model = two_levels()
    break_at(model.unet.down_blocks[0], model.unet.up_blocks[0])
    run = torch.compile(model, backend="todo_inductor", options={"factors": "2", "inner": "eager"})
    with pytest.warns(UserWarning, match="levels are counted in each graph alone.*res") as caught:
        called(run)
    assert sum("counted in each graph" in str(w.message) for w in caught) == 1
    reasons = {s.reason for s in self_attention() if s.grid == (4, 4)}
    assert reasons == {"factor given for level 1 of this graph"}


def test_subgraphs_do_not_fail_for_factors_of_levels_that_they_lack() -> None:
    """The first graph has no attention at all, the second one level, the third the rest."""
    model = two_levels()
    break_at(model.unet.conv_in, model.unet.mid_block)
    run = torch.compile(
        model, backend="todo_inductor", options={"factors": "4,2,1", "inner": "eager"}
    )
    with pytest.warns(UserWarning, match="levels are counted in each graph alone"):
        called(run)
    assert sum(s.action == "rewritten" for s in self_attention()) >= 4


def test_second_size_smaller_than_the_factor() -> None:
    """The first call fails, as a typing error should; a later one is in the middle of a run."""
    run = torch.compile(
        ImageAttention(), backend="todo_inductor", options={"factors": 4, "inner": "eager"}
    )
    truth, small = ImageAttention(), image(2, 8)
    truth.pool = lambda t: stand_ins(t, 2, (8, 8), (4, 4))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert_close((called(run, image(8, 8)),), called(truth, image(8, 8)))
        assert_close((called(run, small),), called(ImageAttention(), small))
    first, second = self_attention()
    assert (first.action, second.action) == ("rewritten", "refused")
    assert "exceeds its grid of 8×2 tokens" in second.reason


def test_two_models_under_equal_options_warn() -> None:
    """The second one's only level would count as the second level of the first."""

    def compiled(model: nn.Module) -> Any:
        options = {"factors": "4", "res": "64", "inner": "eager"}
        return torch.compile(model, backend="todo_inductor", options=options)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        called(compiled(two_levels()))
    torch.compiler.reset()
    with pytest.warns(UserWarning, match=r"64 tokens, met in another .*clear_reports\(\)"):
        called(compiled(ImageAttention()), image(4, 4))
    assert self_attention()[-1].level == 2
    torch.compiler.reset()
    todo_compile.clear_reports()
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "Levels are counted over")
        called(compiled(ImageAttention()), image(4, 4))
    assert self_attention()[-1].factor == (4, 4)


def test_larger_grid_after_a_smaller_one_warns() -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = ImageAttention()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            inner = self.inner
            return inner.attend(inner.split(inner.to_q(x)), inner.keys(x), inner.values(x))

    options = {"factors": 2, "token_grids": GRIDS, "inner": "eager"}
    run = torch.compile(Block(), backend="todo_inductor", dynamic=False, options=options)
    called(run, torch.randn(1, 16, 8))
    with pytest.warns(UserWarning, match="over 64 tokens was met only after .* 16 tokens"):
        called(run, torch.randn(1, 64, 8))
