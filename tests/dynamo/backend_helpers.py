"""A UNet that is quick to trace, its inputs, and its truth."""

from __future__ import annotations

import copy
from typing import Any

import torch
from graphs import make_unet
from oracle import OracleProcessor
from torch import nn

import todo_compile
from todo_compile.passes.report import SiteReport

GRID = (6, 4)
TOKENS = 24


def small_unet(**changes: Any) -> Any:
    """One level, two transformer blocks on the way up and one down: three self-attentions."""
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

    torch.manual_seed(5)
    config: dict[str, Any] = {
        "sample_size": 8,
        "block_out_channels": (8,),
        "down_block_types": ("CrossAttnDownBlock2D",),
        "mid_block_type": None,
        "up_block_types": ("CrossAttnUpBlock2D",),
        "layers_per_block": 1,
        "cross_attention_dim": 12,
        "attention_head_dim": 2,
        "norm_num_groups": 4,
    }
    unet = UNet2DConditionModel(**{**config, **changes}).eval()
    for name, parameter in unet.named_parameters():  # so that attention is not nearly uniform
        if name.endswith(("to_q.weight", "to_k.weight")):
            parameter.data *= 4
    return unet


def inputs(batch: int = 2) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Latent on `GRID`, timestep, text."""
    generator = torch.Generator().manual_seed(6)
    return (
        torch.randn(batch, 4, *GRID, generator=generator),
        torch.tensor(500.0),
        torch.randn(batch, 5, 12, generator=generator),
    )


def with_oracle(unet: nn.Module, factors: tuple[int, int] = (2, 2), **keywords: Any) -> Any:
    """A copy whose self-attentions subsample their keys as the specification says."""
    other: Any = copy.deepcopy(unet)
    oracle = keywords.pop("oracle", OracleProcessor)({TOKENS: GRID}, {TOKENS: factors}, "nearest")
    other.set_attn_processor(
        {n: oracle if "attn1" in n else p for n, p in other.attn_processors.items()}
    )
    return other


GRIDS = {64: (8, 8), 16: (4, 4)}
"""Levels of `two_levels` and their grids."""


def two_levels(factors: dict[int, tuple[int, int]] | None = None, **changes: Any) -> Any:
    """A UNet with attention on both of its levels; with `factors`, its truth instead."""
    model = make_unet("both levels", **changes)
    if factors is not None:
        oracle = OracleProcessor(GRIDS, factors, "nearest")
        processors = model.unet.attn_processors  # type: ignore[union-attr]
        model.unet.set_attn_processor(  # type: ignore[operator]
            {n: oracle if "attn1" in n else p for n, p in processors.items()}  # type: ignore[operator, union-attr]
        )
    return model


def self_attention() -> list[SiteReport]:
    """Every site of self-attention that was reported, oldest first."""
    return [s for r in todo_compile.reports() for s in r.sites if s.kind != "cross"]
