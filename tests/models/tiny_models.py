"""Tiny models, and the layouts that they come in."""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

TINY = {
    "sample_size": 16,
    "block_out_channels": (16, 32),
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    "layers_per_block": 1,
    "cross_attention_dim": 24,
    "attention_head_dim": 2,
    "norm_num_groups": 8,
}
TINY_XL = {
    **TINY,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 8,
    "projection_class_embeddings_input_dim": 6 * 8 + 20,
}


def make_unet(**changes: object) -> UNet2DConditionModel:
    torch.manual_seed(1)
    return UNet2DConditionModel(**{**TINY, **changes}).eval()  # pyright: ignore[reportArgumentType]


def cache_snapshot(hub: Path, hub_id: str, unet: UNet2DConditionModel) -> Path:
    """Lay out one snapshot as huggingface_hub does."""
    repo = hub / f"models--{hub_id.replace('/', '--')}"
    (repo / "refs").mkdir(parents=True)
    (repo / "refs" / "main").write_text("0" * 40)
    unet.save_pretrained(repo / "snapshots" / ("0" * 40) / "unet")
    return repo
