"""Tiny pipelines of videos, from text: frames × rows × columns in one sequence, or in turns."""

from __future__ import annotations

from typing import Any

import transformers as t
from zoo_parts import clip, d, flow, t5, vae, words


def ltx() -> Any:
    """Its tokens arrive packed; a patch is a cell of 8×8 pixels and two frames."""
    return d.LTXPipeline(
        transformer=d.LTXVideoTransformer3DModel(
            in_channels=8, out_channels=8, num_attention_heads=2, attention_head_dim=8,
            cross_attention_dim=16, num_layers=1, caption_channels=32,
            qk_norm="rms_norm_across_heads",
        ),
        scheduler=flow(),
        vae=d.AutoencoderKLLTXVideo(
            latent_channels=8, block_out_channels=(8, 8, 8, 8),
            decoder_block_out_channels=(8, 8, 8, 8), layers_per_block=(1,) * 5,
            decoder_layers_per_block=(1,) * 5, spatio_temporal_scaling=(True, False, False, False),
            decoder_spatio_temporal_scaling=(True, False, False, False), patch_size=4,
            patch_size_t=1, encoder_causal=True, decoder_causal=False,
        ),
        text_encoder=t5(), tokenizer=words(128),
    )  # fmt: skip


def wan() -> Any:
    return d.WanPipeline(
        transformer=d.WanTransformer3DModel(
            num_attention_heads=2, attention_head_dim=12, in_channels=4, out_channels=4,
            text_dim=32, freq_dim=16, ffn_dim=32, num_layers=1, rope_max_seq_len=1024,
        ),
        scheduler=flow(),
        vae=d.AutoencoderKLWan(
            base_dim=8, z_dim=4, dim_mult=[1, 1, 1, 1], num_res_blocks=1,
            temperal_downsample=[False, True, True], latents_mean=[0.0] * 4, latents_std=[1.0] * 4,
        ),
        text_encoder=t5(cls=t.UMT5EncoderModel), tokenizer=words(512),
    )  # fmt: skip


def cogvideox() -> Any:
    return d.CogVideoXPipeline(
        transformer=d.CogVideoXTransformer3DModel(
            num_attention_heads=2, attention_head_dim=16, in_channels=4, out_channels=4,
            time_embed_dim=2, text_embed_dim=32, num_layers=1, sample_width=12, sample_height=8,
            sample_frames=9, patch_size=2, temporal_compression_ratio=4, max_text_seq_length=226,
            use_rotary_positional_embeddings=True,
        ),
        scheduler=d.CogVideoXDDIMScheduler(),
        vae=d.AutoencoderKLCogVideoX(
            down_block_types=("CogVideoXDownBlock3D",) * 4,
            up_block_types=("CogVideoXUpBlock3D",) * 4, block_out_channels=(8, 8, 8, 8),
            latent_channels=4, layers_per_block=1, norm_num_groups=2, temporal_compression_ratio=4,
        ),
        text_encoder=t5(), tokenizer=words(226),
    )  # fmt: skip


def hunyuan_video() -> Any:
    return d.HunyuanVideoPipeline(
        transformer=d.HunyuanVideoTransformer3DModel(
            in_channels=4, out_channels=4, num_attention_heads=2, attention_head_dim=10,
            num_layers=1, num_single_layers=1, num_refiner_layers=1, patch_size=2, patch_size_t=1,
            guidance_embeds=True, text_embed_dim=16, pooled_projection_dim=32,
            rope_axes_dim=(2, 4, 4),
        ),
        scheduler=flow(),
        vae=d.AutoencoderKLHunyuanVideo(
            latent_channels=4, down_block_types=("HunyuanVideoDownBlock3D",) * 4,
            up_block_types=("HunyuanVideoUpBlock3D",) * 4, block_out_channels=(8, 8, 8, 8),
            layers_per_block=1, norm_num_groups=4, mid_block_add_attention=True,
        ),
        text_encoder=t.LlamaModel(
            t.LlamaConfig(
                hidden_size=16, intermediate_size=37, num_hidden_layers=4, num_attention_heads=2,
                vocab_size=8, pad_token_id=0,
            )
        ),
        tokenizer=words(1024),
        text_encoder_2=clip(projected=False), tokenizer_2=words(),
    )  # fmt: skip


def mochi() -> Any:
    return d.MochiPipeline(
        transformer=d.MochiTransformer3DModel(
            patch_size=2, num_attention_heads=2, attention_head_dim=8, num_layers=2,
            pooled_projection_dim=16, in_channels=4, qk_norm="rms_norm", text_embed_dim=32,
            time_embed_dim=4, activation_fn="swiglu", max_sequence_length=256,
        ),
        scheduler=flow(),
        vae=d.AutoencoderKLMochi(
            latent_channels=4, out_channels=3, encoder_block_out_channels=(32,) * 4,
            decoder_block_out_channels=(32,) * 4, layers_per_block=(1, 1, 1, 1, 1),
            latents_mean=(0.0,) * 4, latents_std=(1.0,) * 4,
        ),
        text_encoder=t5(), tokenizer=words(256),
    )  # fmt: skip


def allegro() -> Any:
    return d.AllegroPipeline(
        transformer=d.AllegroTransformer3DModel(
            num_attention_heads=2, attention_head_dim=12, in_channels=4, out_channels=4,
            num_layers=1, cross_attention_dim=24, sample_width=12, sample_height=8,
            sample_frames=2, caption_channels=32,
        ),
        scheduler=d.EulerAncestralDiscreteScheduler(),
        vae=d.AutoencoderKLAllegro(
            latent_channels=4, down_block_types=("AllegroDownBlock3D",) * 4,
            up_block_types=("AllegroUpBlock3D",) * 4, block_out_channels=(8, 8, 8, 8),
            layers_per_block=1, norm_num_groups=2, temporal_compression_ratio=4,
        ),
        text_encoder=t5(), tokenizer=words(512),
    )  # fmt: skip


def latte() -> Any:
    """Attention within every frame, then over frames."""
    return d.LattePipeline(
        transformer=d.LatteTransformer3DModel(
            sample_size=16, num_layers=1, patch_size=2, attention_head_dim=8,
            num_attention_heads=2, caption_channels=32, in_channels=4, cross_attention_dim=16,
            out_channels=8, attention_bias=True, activation_fn="gelu-approximate",
            num_embeds_ada_norm=1000, norm_type="ada_norm_single", norm_elementwise_affine=False,
            norm_eps=1e-6, video_length=2,
        ),
        scheduler=d.DDIMScheduler(), vae=vae(), text_encoder=t5(), tokenizer=words(120),
    )  # fmt: skip
