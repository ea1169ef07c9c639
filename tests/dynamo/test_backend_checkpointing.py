"""Gradient checkpointing: each block is a graph that Dynamo's graph calls; none is lost."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from backend_helpers import GRIDS, self_attention, two_levels
from graphs import assert_close, make_unet, unet_inputs
from oracle import OracleProcessor
from torch import nn

import todo_compile

X = unet_inputs(8, 8)


def compiled(model: nn.Module, **options: Any) -> Any:
    return torch.compile(model, backend="todo_inductor", options={"inner": "eager", **options})


def gradients(run: Any, model: nn.Module, *arguments: torch.Tensor) -> list[torch.Tensor | None]:
    run(*arguments).square().mean().backward()
    return [p.grad for p in model.parameters()]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("factors", "truth"), [("2", {64: (2, 2)}), ("4,2", {64: (4, 4), 16: (2, 2)})]
)
def test_levels_count_over_all_blocks(factors: str, truth: dict[int, tuple[int, int]]) -> None:
    model, oracle = two_levels().train(), two_levels(truth).train()
    model.unet.enable_gradient_checkpointing()
    run = compiled(model, factors=factors, inner="aot_eager")
    for got, expected in zip(gradients(run, model, *X), gradients(oracle, oracle, *X), strict=True):
        assert (got is None) == (expected is None)
        if got is not None and expected is not None:
            assert_close((got,), expected)
    assert {(s.grid, s.level, s.factor) for s in self_attention()} == {
        ((8, 8), 1, truth[64]), ((4, 4), 2, truth.get(16, (1, 1)))
    }  # fmt: skip


def test_several_blocks_in_a_row() -> None:
    """As in SDXL: what comes out of the first block enters the second."""
    model, oracle = (make_unet("lower level").train() for _ in range(2))
    processor = OracleProcessor(GRIDS, {16: (2, 2)}, "nearest")
    processors: Any = oracle.unet.attn_processors
    oracle.unet.set_attn_processor(  # type: ignore[operator]
        {n: processor if "attn1" in n else p for n, p in processors.items()}
    )
    model.unet.enable_gradient_checkpointing()  # type: ignore[operator]
    assert_close((compiled(model, kv_tokens=4)(*X),), oracle(*X))
    assert [(s.grid, s.action) for s in self_attention()] == [((4, 4), "rewritten")] * 8


class Blocks(nn.Module):
    """A convolution, and blocks of which each is checkpointed; between them, what `step` does."""

    def __init__(self, step: Any = None, *, checkpointed: bool = True, pool: Any = None) -> None:
        super().__init__()
        torch.manual_seed(4)
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.blocks = nn.ModuleList(nn.Linear(8, 16) for _ in range(3))
        self.step, self.checkpointed, self.pool = step, checkpointed, pool

    def block(self, x: torch.Tensor, index: int) -> torch.Tensor:
        q, k = (3 * self.blocks[index](x)).chunk(2, dim=-1)
        v = x
        if self.pool is not None:
            k, v = self.pool(k), self.pool(v)
        out = nn.functional.scaled_dot_product_attention(q[:, None], k[:, None], v[:, None])
        return x + out[:, 0]

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        from torch.utils.checkpoint import checkpoint

        x = self.first(image).flatten(2).mT
        for index in range(len(self.blocks)):
            if self.checkpointed:
                x = checkpoint(self.block, x, index, use_reentrant=False)
            else:
                x = self.block(x, index)
            if self.step is not None:
                x = self.step(x)
        return x


@pytest.mark.parametrize("dynamic", [None, True])
def test_axes_pass_through_blocks_at_every_size(dynamic: bool | None) -> None:
    from oracle import stand_ins

    run = torch.compile(
        Blocks(), backend="todo_inductor", dynamic=dynamic, options={"factors": 2, "inner": "eager"}
    )
    for rows, columns in ((6, 4), (4, 4), (8, 6)):
        image = torch.randn(2, 3, rows, columns)
        truth = Blocks(
            checkpointed=False, pool=lambda t, g=(rows, columns): stand_ins(t, 1, g, (2, 2))
        )
        assert_close((run(image),), truth(image))
        found = [s.grid for s in self_attention()[-3:]]
        assert found == [(rows, columns)] * 3


def test_what_loses_the_tokens_between_blocks_is_seen() -> None:
    """Tokens in another order are no grid: the blocks after it stay dense, with a reason."""

    def sorted_by_channel(x: torch.Tensor) -> torch.Tensor:
        return x.gather(1, x[..., :1].argsort(1).expand_as(x))

    image = torch.randn(1, 3, 6, 4)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        got = compiled(Blocks(sorted_by_channel), factors=1)(image)
        assert_close((got,), Blocks(sorted_by_channel, checkpointed=False)(image))
        todo_compile.clear_reports()
        torch.compiler.reset()
        compiled(Blocks(sorted_by_channel), factors=2)(image)
    assert [s.action for s in self_attention()] == ["rewritten", "refused", "refused"]


class Mixed(Blocks):
    """The blocks in bfloat16, by a region of autocast around their calls."""

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return super().forward(image).float()


def test_a_block_runs_in_the_autocast_around_its_call() -> None:
    """Else its projections would become float32 where the passes renew their values."""
    from oracle import stand_ins

    image = torch.randn(2, 3, 6, 4)
    run = torch.compile(Mixed(), backend="todo_inductor", options={"factors": 2, "inner": "eager"})
    result = run(image)
    assert [(s.action, s.reason) for s in self_attention()] == [
        ("rewritten", "factor given for level 1")
    ] * 3
    truth = Mixed(checkpointed=False, pool=lambda t: stand_ins(t, 1, (6, 4), (2, 2)))(image)
    assert float((result - truth).abs().max()) < 0.03 * float(truth.abs().max())
