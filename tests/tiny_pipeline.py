"""A tiny Stable Diffusion in diffusers' folders, for whatever goes through the command line."""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.schedulers.scheduling_ddim import DDIMScheduler


def make_unet(folder: Path, seed: int = 1) -> None:
    """A UNet trained at 4×4 latent cells: 16 key tokens."""
    torch.manual_seed(seed)
    UNet2DConditionModel(
        sample_size=4,
        block_out_channels=(16, 32),
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        layers_per_block=1,
        cross_attention_dim=24,
        attention_head_dim=2,
        norm_num_groups=8,
    ).save_pretrained(folder / "unet")


def make_rest(folder: Path) -> None:
    """VAE of 4 pixels a cell trained at 16×16, CLIP, a tokenizer's files, a scheduler."""
    from transformers import CLIPTextConfig, CLIPTextModel

    torch.manual_seed(2)
    AutoencoderKL(
        block_out_channels=(8, 16, 16),
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        norm_num_groups=4,
        sample_size=16,
    ).save_pretrained(folder / "vae")
    text = CLIPTextConfig(
        vocab_size=99,
        hidden_size=24,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        bos_token_id=97,
        eos_token_id=98,
        pad_token_id=98,
    )
    CLIPTextModel(text).save_pretrained(folder / "text_encoder")
    (folder / "tokenizer").mkdir()
    (folder / "tokenizer" / "vocab.json").write_text("{}")
    (folder / "tokenizer" / "chat_template.jinja").write_text("{{ messages }}")
    (folder / "tokenizer" / "weights.bin").write_text("not a light file")
    DDIMScheduler().save_pretrained(folder / "scheduler")
