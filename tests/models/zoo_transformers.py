"""Tiny pipelines around transformers."""

from __future__ import annotations

from typing import Any

import transformers as t
from zoo_parts import clip, d, flow, t5, vae, words


def sd3() -> Any:
    return d.StableDiffusion3Pipeline(
        transformer=d.SD3Transformer2DModel(
            sample_size=16, patch_size=2, in_channels=4, out_channels=4, num_layers=2,
            attention_head_dim=8, num_attention_heads=4, joint_attention_dim=32,
            caption_projection_dim=32, pooled_projection_dim=64, pos_embed_max_size=32,
        ),
        scheduler=flow(),
        vae=vae(shift_factor=0.06, scaling_factor=1.5),
        text_encoder=clip(), tokenizer=words(),
        text_encoder_2=clip(), tokenizer_2=words(),
        text_encoder_3=t5(), tokenizer_3=words(),
    )  # fmt: skip


def sd35() -> Any:
    """With a second attention, over the picture alone, in its first block."""
    pipeline = sd3()
    config = {**pipeline.transformer.config, "dual_attention_layers": (0,), "qk_norm": "rms_norm"}
    pipeline.transformer = d.SD3Transformer2DModel.from_config(config)
    return pipeline


def flux(guided: bool = True, cls: Any = None) -> Any:
    cls = cls or d.FluxPipeline
    return cls(
        transformer=d.FluxTransformer2DModel(
            patch_size=1, in_channels=16, num_layers=1, num_single_layers=1,
            attention_head_dim=16, num_attention_heads=2, joint_attention_dim=32,
            pooled_projection_dim=32, axes_dims_rope=(4, 4, 8), guidance_embeds=guided,
        ),
        scheduler=flow(),
        vae=vae(shift_factor=0.06, scaling_factor=1.5),
        text_encoder=clip(projected=False), tokenizer=words(),
        text_encoder_2=t5(), tokenizer_2=words(),
    )  # fmt: skip


def schnell() -> Any:
    return flux(guided=False)


def kontext() -> Any:
    return flux(cls=d.FluxKontextPipeline)


def flux_fill() -> Any:
    """A masked picture and the mask's pixels, beside the channels of what is drawn."""
    return _wider(flux(cls=d.FluxFillPipeline), 16 + 16 + 8 * 8 * 4)


def flux_control() -> Any:
    return _wider(flux(cls=d.FluxControlPipeline), 16 + 16)


def _wider(pipeline: Any, channels: int) -> Any:
    own = {k: v for k, v in pipeline.transformer.config.items() if not k.startswith("_")}
    config = {**own, "in_channels": channels, "out_channels": 16}
    pipeline.register_modules(transformer=d.FluxTransformer2DModel.from_config(config))
    return pipeline


def flux2() -> Any:
    """The small one: states of three layers of a language model are its text."""
    return d.Flux2KleinPipeline(
        transformer=d.Flux2Transformer2DModel(
            patch_size=1, in_channels=16, num_layers=1, num_single_layers=1,
            attention_head_dim=16, num_attention_heads=2, joint_attention_dim=48,
            timestep_guidance_channels=16, axes_dims_rope=(4, 4, 4, 4), guidance_embeds=False,
        ),
        scheduler=flow(),
        vae=d.AutoencoderKLFlux2(
            block_out_channels=(8, 8, 8, 8), layers_per_block=1, latent_channels=4,
            norm_num_groups=4, sample_size=64,
        ),
        text_encoder=t.Qwen3ForCausalLM(
            t.Qwen3Config(
                hidden_size=16, intermediate_size=16, num_hidden_layers=28, vocab_size=8,
                num_attention_heads=2, num_key_value_heads=2, head_dim=8,
            )
        ),
        tokenizer=words(512, chat=True),
    )  # fmt: skip


def chroma() -> Any:
    return d.ChromaPipeline(
        transformer=d.ChromaTransformer2DModel(
            patch_size=1, in_channels=16, num_layers=1, num_single_layers=1,
            attention_head_dim=16, num_attention_heads=2, joint_attention_dim=32,
            axes_dims_rope=(4, 4, 8), approximator_hidden_dim=32, approximator_layers=1,
            approximator_num_channels=64,
        ),
        scheduler=flow(), vae=vae(shift_factor=0.06, scaling_factor=1.5),
        text_encoder=t5(), tokenizer=words(),
    )  # fmt: skip


def _qwen_text() -> Any:
    return t.Qwen2_5_VLForConditionalGeneration(
        t.Qwen2_5_VLConfig(
            text_config={
                "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2,
                "num_attention_heads": 2, "num_key_value_heads": 2, "vocab_size": 8,
                "rope_parameters": {
                    "mrope_section": [1, 1, 2], "rope_type": "default", "rope_theta": 1e6,
                },
            },
            vision_config={
                "depth": 2, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2,
                "out_hidden_size": 16,
            },
        )
    )  # fmt: skip


def qwen_image() -> Any:
    return d.QwenImagePipeline(
        transformer=d.QwenImageTransformer2DModel(
            patch_size=2, in_channels=16, out_channels=4, num_layers=2, attention_head_dim=16,
            num_attention_heads=3, joint_attention_dim=16, guidance_embeds=False,
            axes_dims_rope=(8, 4, 4),
        ),
        scheduler=flow(),
        vae=d.AutoencoderKLQwenImage(
            base_dim=8, z_dim=4, dim_mult=[1, 2, 4], num_res_blocks=1,
            temperal_downsample=[False, True], latents_mean=[0.0] * 4, latents_std=[1.0] * 4,
        ),
        text_encoder=_qwen_text(), tokenizer=words(1024),
    )  # fmt: skip


def z_image() -> Any:
    return d.ZImagePipeline(
        transformer=d.ZImageTransformer2DModel(
            all_patch_size=(2,), all_f_patch_size=(1,), in_channels=4, dim=32, n_layers=2,
            n_refiner_layers=1, n_heads=2, n_kv_heads=2, qk_norm=True, cap_feat_dim=16,
            rope_theta=256.0, t_scale=1000.0, axes_dims=[8, 4, 4], axes_lens=[1024, 64, 64],
        ),
        scheduler=flow(), vae=vae(shift_factor=0.06, scaling_factor=1.5),
        text_encoder=t.Qwen3Model(
            t.Qwen3Config(
                hidden_size=16, intermediate_size=16, num_hidden_layers=2, vocab_size=8,
                num_attention_heads=2, num_key_value_heads=2, head_dim=8,
            )
        ),
        tokenizer=words(1024),
    )  # fmt: skip


def pixart() -> Any:
    return d.PixArtSigmaPipeline(
        transformer=d.PixArtTransformer2DModel(
            sample_size=8, num_layers=2, patch_size=2, attention_head_dim=8, num_attention_heads=4,
            caption_channels=32, in_channels=4, cross_attention_dim=32, out_channels=8,
            attention_bias=True, activation_fn="gelu-approximate", num_embeds_ada_norm=1000,
            norm_type="ada_norm_single", norm_elementwise_affine=False, norm_eps=1e-6,
            use_additional_conditions=False,
        ),
        scheduler=d.DDIMScheduler(), vae=vae(), text_encoder=t5(), tokenizer=words(300),
    )  # fmt: skip


def hunyuan_dit() -> Any:
    bert = t.BertModel(
        t.BertConfig(
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=32,
            vocab_size=8,
        )
    )
    return d.HunyuanDiTPipeline(
        transformer=d.HunyuanDiT2DModel(
            sample_size=16, num_layers=2, patch_size=2, attention_head_dim=8,
            num_attention_heads=3, in_channels=4, cross_attention_dim=32,
            cross_attention_dim_t5=32, pooled_projection_dim=16, hidden_size=24,
            activation_fn="gelu-approximate", text_len=77, text_len_t5=256,
        ),
        scheduler=d.DDPMScheduler(), vae=vae(), text_encoder=bert, tokenizer=words(),
        text_encoder_2=t5(), tokenizer_2=words(256), safety_checker=None,
        feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip


def aura_flow() -> Any:
    return d.AuraFlowPipeline(
        transformer=d.AuraFlowTransformer2DModel(
            sample_size=32, patch_size=2, in_channels=4, num_mmdit_layers=1,
            num_single_dit_layers=1, attention_head_dim=8, num_attention_heads=4,
            caption_projection_dim=32, joint_attention_dim=32, pos_embed_max_size=256,
        ),
        scheduler=flow(), vae=vae(), text_encoder=t5(cls=t.UMT5EncoderModel),
        tokenizer=words(256),
    )  # fmt: skip


def _gemma() -> Any:
    return t.Gemma2Model(
        t.Gemma2Config(
            hidden_size=8, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2,
            num_key_value_heads=2, head_dim=4, vocab_size=8,
        )
    )  # fmt: skip


def lumina() -> Any:
    return d.Lumina2Pipeline(
        transformer=d.Lumina2Transformer2DModel(
            sample_size=8, patch_size=2, in_channels=4, hidden_size=24, num_layers=2,
            num_refiner_layers=1, num_attention_heads=3, num_kv_heads=1, multiple_of=2,
            ffn_dim_multiplier=None, norm_eps=1e-6, scaling_factor=1.0, axes_dim_rope=(4, 2, 2),
            axes_lens=(512, 64, 64), cap_feat_dim=8,
        ),
        scheduler=flow(), vae=vae(shift_factor=0.06, scaling_factor=1.5), text_encoder=_gemma(),
        tokenizer=words(256),
    )  # fmt: skip


def lumina_next() -> Any:
    transformer = d.LuminaNextDiT2DModel(
        sample_size=8, hidden_size=24, num_layers=2, num_attention_heads=3, num_kv_heads=1,
        multiple_of=2, cross_attention_dim=8,
    )  # fmt: skip
    return d.LuminaPipeline(
        transformer=transformer, scheduler=flow(), vae=vae(), text_encoder=_gemma(),
        tokenizer=words(256),
    )  # fmt: skip


def sana() -> Any:
    return d.SanaPipeline(
        transformer=d.SanaTransformer2DModel(
            sample_size=8, patch_size=1, in_channels=4, out_channels=4, num_layers=2,
            num_attention_heads=2, attention_head_dim=4, num_cross_attention_heads=2,
            cross_attention_head_dim=4, cross_attention_dim=8, caption_channels=8, mlp_ratio=2.5,
        ),
        scheduler=flow(),
        vae=d.AutoencoderDC(
            in_channels=3, latent_channels=4, attention_head_dim=2,
            encoder_block_types=("ResBlock",) * 2, decoder_block_types=("ResBlock",) * 2,
            encoder_block_out_channels=(8, 8), decoder_block_out_channels=(8, 8),
            encoder_layers_per_block=(1, 1), decoder_layers_per_block=(1, 1),
            encoder_qkv_multiscales=((), ()), decoder_qkv_multiscales=((), ()),
            decoder_norm_types=("rms_norm",) * 2, decoder_act_fns=("silu",) * 2,
            upsample_block_type="pixel_shuffle", downsample_block_type="pixel_unshuffle",
        ),
        text_encoder=_gemma(), tokenizer=words(300),
    )  # fmt: skip
