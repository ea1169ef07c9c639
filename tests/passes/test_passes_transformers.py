"""Transformers from diffusers, rewritten and equal to the oracle."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import oracle
import pytest
import torch
from graphs import DIALECTS, Captured, assert_close, capture
from torch import nn

from todo_compile.options import SAMPLINGS, PlanOptions, Sampling

TEXT = 5
SIDES = (12, 8)  # pixels of the latents; patches of 2 make a grid of 6×4
GRID, TOKENS = (6, 4), 24
FACTORS = (3, 2)


class Called(nn.Module):
    """A diffusers model called with keywords, as a function of tensors; its output as a tensor."""

    def __init__(self, model: nn.Module, names: tuple[str, ...], **fixed: Any) -> None:
        super().__init__()
        self.model, self.names, self.fixed = model, names, fixed
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1:
                parameter.data.normal_(0, parameter[0].numel() ** -0.5)
            if name.endswith(("to_q.weight", "to_k.weight")):  # attention far from uniform
                parameter.data *= 3

    def forward(self, *tensors: torch.Tensor) -> torch.Tensor:
        named = dict(zip(self.names, tensors, strict=True))
        return self.model(**named, **self.fixed, return_dict=False)[0]


def randn(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


Case = tuple[Called, list[torch.Tensor]]


def pixart() -> Case:
    from diffusers.models.transformers.pixart_transformer_2d import PixArtTransformer2DModel

    model = PixArtTransformer2DModel(
        num_attention_heads=2, attention_head_dim=4, in_channels=4, out_channels=4, num_layers=2,
        cross_attention_dim=8, sample_size=16, patch_size=2, caption_channels=6,
        use_additional_conditions=False, norm_num_groups=4,
    )  # fmt: skip
    names = ("hidden_states", "encoder_hidden_states", "timestep")
    inputs = [randn(2, 4, *SIDES), randn(2, TEXT, 6), torch.tensor([3, 500])]
    return Called(model.eval(), names, added_cond_kwargs={}), inputs


def dit() -> Case:
    from diffusers.models.transformers.dit_transformer_2d import DiTTransformer2DModel

    model = DiTTransformer2DModel(
        num_attention_heads=2, attention_head_dim=4, in_channels=4, num_layers=1,
        sample_size=SIDES[0], patch_size=2, num_embeds_ada_norm=10, norm_num_groups=4,
    )  # fmt: skip
    names = ("hidden_states", "timestep", "class_labels")
    inputs = [randn(2, 4, 12, 12), torch.tensor([3, 500]), torch.tensor([1, 2])]
    return Called(model.eval(), names), inputs


def sd3() -> Case:
    from diffusers.models.transformers.transformer_sd3 import SD3Transformer2DModel

    model = SD3Transformer2DModel(
        sample_size=16, patch_size=2, in_channels=4, out_channels=4, num_layers=2,
        attention_head_dim=4, num_attention_heads=2, joint_attention_dim=8, pos_embed_max_size=12,
        caption_projection_dim=8, pooled_projection_dim=8, qk_norm="rms_norm",
    )  # fmt: skip
    names = ("hidden_states", "encoder_hidden_states", "pooled_projections", "timestep")
    inputs = [randn(2, 4, *SIDES), randn(2, TEXT, 8), randn(2, 8), torch.tensor([3, 500])]
    return Called(model.eval(), names), inputs


def flux() -> Case:
    from diffusers.models.transformers.transformer_flux import FluxTransformer2DModel

    model = FluxTransformer2DModel(
        patch_size=1, in_channels=4, num_layers=1, num_single_layers=1, attention_head_dim=8,
        num_attention_heads=2, joint_attention_dim=8, pooled_projection_dim=8,
        axes_dims_rope=(2, 2, 4),
    )  # fmt: skip
    rows, columns = torch.meshgrid(torch.arange(GRID[0]), torch.arange(GRID[1]), indexing="ij")
    places = torch.stack([torch.zeros(TOKENS), rows.flatten(), columns.flatten()], dim=1)
    names = (
        "hidden_states", "encoder_hidden_states", "pooled_projections", "timestep", "img_ids",
        "txt_ids",
    )  # fmt: skip
    inputs = [
        randn(2, TOKENS, 4), randn(2, TEXT, 8), randn(2, 8), torch.tensor([0.3, 0.9]), places,
        torch.zeros(TEXT, 3),
    ]  # fmt: skip
    return Called(model.eval(), names), inputs


# The intercepted attention of this file's oracle does not know which site it is called from;
# `staggered` has its own oracle in test_passes_samplings.
UNIFORM = tuple(s for s in SAMPLINGS if s != "staggered")


def rewritten(
    case: Case,
    captured: Captured,
    segments: dict[int, tuple[int, oracle.Pair, oracle.Pair]],
    sampling: Sampling,
    sites: int,
    **keywords: Any,
) -> Captured:
    """Rewrite every attention with one of `segments`' key counts and compare with the oracle."""
    model, inputs = case
    (factors,) = {f for _, _, f in segments.values()}
    report = captured.rewrite(PlanOptions(factors=(factors,), sampling=sampling), **keywords)
    done = [s for s in report.sites if s.key_tokens in segments]
    assert [s.action for s in done] == ["rewritten"] * sites, [s.reason for s in report.sites]
    for site in done:
        _, grid, factors = segments[site.key_tokens]
        assert site.grid == grid
        after = oracle.cells(grid[0], factors[0]) * oracle.cells(grid[1], factors[1])
        assert site.key_tokens - site.key_tokens_after == grid[0] * grid[1] - after
    with torch.no_grad(), oracle.pooled_fused_attention(segments, sampling) as seen:
        expected = model(*inputs)
    assert len(seen) == sites
    dense = model(*inputs).detach()
    assert not torch.allclose(expected, dense, rtol=1e-3, atol=1e-3), "pooling must matter here"
    assert_close(captured.run(), expected)
    return captured


@pytest.mark.parametrize("dialect", DIALECTS)
def test_pixart(dialect: str) -> None:
    case = pixart()
    captured = capture(*case, dialect)
    assert captured.count("scaled_dot_product_attention") == 4
    for sampling in UNIFORM:
        rewritten(case, captured.copy(), {TOKENS: (0, GRID, FACTORS)}, sampling, sites=2)


@pytest.mark.parametrize("dialect", DIALECTS)
def test_dit(dialect: str) -> None:
    case = dit()
    captured = capture(*case, dialect)
    rewritten(case, captured, {36: (0, (6, 6), (4, 3))}, "nearest", sites=1)


@pytest.mark.parametrize("dialect", DIALECTS)
def test_sd3_pools_the_image_and_keeps_the_text(dialect: str) -> None:
    case = sd3()
    captured = capture(*case, dialect)
    for sampling in UNIFORM:
        segments = {TOKENS + TEXT: (0, GRID, FACTORS)}
        rewritten(case, captured.copy(), segments, sampling, sites=2)


@pytest.mark.parametrize("dialect", DIALECTS)
def test_flux_is_packed(dialect: str) -> None:
    """Without the grid all is refused; with it rotated keys of text and image are pooled right."""
    case = flux()
    captured = capture(*case, dialect)
    before = captured.signature()
    report = captured.rewrite(PlanOptions(kv_tokens=4))
    assert {s.action for s in report.sites} == {"refused"}
    assert captured.signature() == before
    segments = {TOKENS + TEXT: (TEXT, GRID, FACTORS)}
    for sampling in ("nearest-exact", "average"):
        again = captured.copy()
        rewritten(case, again, segments, sampling, sites=2, token_grids={TOKENS: GRID})


@pytest.mark.parametrize("build", [pixart, sd3])
def test_second_rewrite_of_a_transformer(build: Callable[[], Case]) -> None:
    model, inputs = build()
    captured = capture(model, inputs, "export")
    options = PlanOptions(factors=(FACTORS,))
    first = captured.rewrite(options)
    assert first.rewritten == 2
    signature = captured.signature()
    again = captured.rewrite(options)
    assert again.rewritten == 0
    assert captured.signature() == signature
    assert [s.key_tokens for s in again.sites] == [s.key_tokens_after for s in first.sites]
