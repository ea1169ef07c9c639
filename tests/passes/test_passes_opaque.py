"""Kernels that hold attention but cannot be edited: in the report, never silent."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from graphs import DIALECTS, ImageAttention, capture, image, only_site
from torch import nn

import todo_compile
from todo_compile.options import PlanOptions


@torch.library.custom_op("todo_tests::my_attn_fwd", mutates_args=())
def my_attn_fwd(q: torch.Tensor) -> torch.Tensor:
    return q.softmax(-1)


@my_attn_fwd.register_fake
def _(q: torch.Tensor) -> torch.Tensor:
    return torch.empty_like(q)


@torch.library.custom_op("todo_tests::my_norm", mutates_args=())
def my_norm(q: torch.Tensor) -> torch.Tensor:
    return q.softmax(-1)


@my_norm.register_fake
def _(q: torch.Tensor) -> torch.Tensor:
    return torch.empty_like(q)


@torch.library.custom_op("bitsandbytes::gemm_4bit", mutates_args=())
def gemm_4bit(
    rows: torch.Tensor, weight: torch.Tensor, shape: list[int], bias: torch.Tensor | None = None
) -> torch.Tensor:
    """In the place of bitsandbytes' own, with a weight that is not packed."""
    return nn.functional.linear(rows, weight.view(shape), bias)


@gemm_4bit.register_fake
def _(rows: torch.Tensor, _weight: Any, shape: list[int], _bias: Any = None) -> torch.Tensor:
    return rows.new_empty((*rows.shape[:-1], shape[0]))


class FourBits(nn.Module):
    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.linear = linear

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weight = self.linear.weight
        return gemm_4bit(x, weight.flatten(), list(weight.shape), self.linear.bias)


class Custom(nn.Module):
    def __init__(self, op: str) -> None:
        super().__init__()
        self.op = op

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        tokens = nn.functional.avg_pool2d(x, 2).flatten(2).mT
        return my_attn_fwd(tokens) if self.op == "attention" else my_norm(tokens)


class FastPath(nn.Module):
    """``nn.TransformerEncoderLayer`` in evaluation is one operator."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        self.eval().requires_grad_(False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(self.stem(x).flatten(2).mT)


@pytest.mark.parametrize("dialect", DIALECTS)
def test_custom_operators(dialect: str) -> None:
    captured = capture(Custom("attention"), (image(8, 8),), dialect)
    before = captured.run()
    site = only_site(captured.rewrite())
    assert (site.action, site.kind) == ("refused", "unknown")
    assert "todo_tests.my_attn_fwd is a fused kernel" in site.reason
    assert all(torch.equal(a, b) for a, b in zip(captured.run(), before, strict=True))
    assert capture(Custom("norm"), (image(8, 8),), dialect).rewrite().sites == ()


@pytest.mark.parametrize("dialect", DIALECTS)
def test_layers_of_four_bits_are_linear(dialect: str) -> None:
    """Grids go through them and poolings above them, as with torch's."""
    plain, packed = ImageAttention(), ImageAttention()
    layers = [n for n, layer in packed.named_modules() if isinstance(layer, nn.Linear)]
    for name in layers:
        packed.set_submodule(name, FourBits(packed.get_submodule(name)))
    given = image(8, 8)
    usual, captured = (capture(m, (given,), dialect) for m in (plain, packed))
    reports = [one.rewrite(PlanOptions(factors=((2, 2),))) for one in (usual, captured)]
    assert captured.count("bitsandbytes.gemm_4bit") == len(layers)
    assert [only_site(r).action for r in reports] == ["rewritten", "rewritten"]
    assert reports[0].totals == reports[1].totals  # so poolings ended at the same places
    assert reports[1].totals.flops_after < reports[1].totals.flops
    assert all(torch.equal(a, b) for a, b in zip(captured.run(), usual.run(), strict=True))


@pytest.mark.parametrize("dialect", DIALECTS)
def test_transformer_encoder_layer(dialect: str) -> None:
    """Its fast path is reported; where it is traced as what it does, so is its attention."""
    captured = capture(FastPath(), (image(4, 6),), dialect)
    before = captured.run()
    site = only_site(captured.rewrite())
    fused = captured.count("_transformer_encoder_layer_fwd")
    if fused:
        assert site.action == "refused"
        assert "_transformer_encoder_layer_fwd is a fused kernel" in site.reason
    assert all(torch.equal(a, b) for a, b in zip(captured.run(), before, strict=True))


def test_the_fast_path_by_itself() -> None:
    layer = FastPath().layer
    attn = layer.self_attn

    class Fused(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = layer

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.ops.aten._transformer_encoder_layer_fwd(
                x, 8, 2, attn.in_proj_weight, attn.in_proj_bias, attn.out_proj.weight,
                attn.out_proj.bias, False, False, 1e-5, layer.norm1.weight, layer.norm1.bias,
                layer.norm2.weight, layer.norm2.bias, layer.linear1.weight, layer.linear1.bias,
                layer.linear2.weight, layer.linear2.bias,
            )  # fmt: skip

    captured = capture(Fused(), (torch.randn(1, 24, 8),), "export")
    site = only_site(captured.rewrite())
    assert site.action == "refused"
    assert "_transformer_encoder_layer_fwd is a fused kernel" in site.reason


class Autocast(nn.Module):
    """Attention under autocast, which `torch.export` puts into a graph of its own."""

    def __init__(self, grad: bool) -> None:
        super().__init__()
        self.inner = ImageAttention()
        self.grad = grad

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        context = torch.enable_grad() if self.grad else torch.autocast("cpu", torch.bfloat16)
        with context:
            y = self.inner(x * 1)
        return y + 1


@pytest.mark.parametrize("grad", [False, True])
def test_attention_in_a_graph_of_its_own_is_told(grad: bool) -> None:
    with torch.no_grad():
        module, report = todo_compile.rewrite(Autocast(grad), (image(8, 8),))
    assert report.counts == {"rewritten": 0, "dense": 0, "refused": 1}
    assert "1 attention site lies in a graph of its own" in report.sites[0].reason
    assert "todo_inductor" in report.sites[0].reason
    del module
