"""Tiny pipelines around UNets."""

from __future__ import annotations

from typing import Any

import transformers as t
from zoo_parts import clip, d, t5, unet, vae, words

_IF: dict[str, Any] = {
    "sample_size": 16,
    "in_channels": 3,
    "out_channels": 6,
    "down_block_types": ("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"),
    "mid_block_type": "UNetMidBlock2DSimpleCrossAttn",
    "up_block_types": ("SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"),
    "attention_head_dim": 8,
    "addition_embed_type": "text",
    "addition_embed_type_num_heads": 2,
    "cross_attention_norm": "group_norm",
    "resnet_time_scale_shift": "scale_shift",
    "act_fn": "gelu",
    "encoder_hid_dim": 32,
    "encoder_hid_dim_type": "text_proj",
    "cross_attention_dim": 64,  # of 32 groups, so that none is the same number throughout
}


def deepfloyd() -> Any:
    return d.IFPipeline(
        unet=unet(**_IF), scheduler=d.DDPMScheduler(variance_type="learned_range"),
        text_encoder=t5(), tokenizer=words(), safety_checker=None, feature_extractor=None,
        watermarker=None, requires_safety_checker=False,
    )  # fmt: skip


def deepfloyd_2() -> Any:
    return d.IFSuperResolutionPipeline(
        unet=unet(**{**_IF, "in_channels": 6, "class_embed_type": "timestep", "sample_size": 32}),
        scheduler=d.DDPMScheduler(variance_type="learned_range"),
        image_noising_scheduler=d.DDPMScheduler(), text_encoder=t5(), tokenizer=words(),
        safety_checker=None, feature_extractor=None, watermarker=None,
        requires_safety_checker=False,
    )  # fmt: skip


def upscaler() -> Any:
    """The third stage of DeepFloyd IF: Stable Diffusion's upscaler by four."""
    return d.StableDiffusionUpscalePipeline(
        unet=unet(in_channels=7, num_class_embeds=1000), low_res_scheduler=d.DDPMScheduler(),
        scheduler=d.DDIMScheduler(), vae=vae(levels=3), text_encoder=clip(projected=False),
        tokenizer=words(), safety_checker=None, feature_extractor=None, watermarker=None,
    )  # fmt: skip


def _movq() -> Any:
    return d.VQModel(
        block_out_channels=(32, 32, 32, 32),
        down_block_types=("DownEncoderBlock2D",) * 3 + ("AttnDownEncoderBlock2D",),
        up_block_types=("AttnUpDecoderBlock2D",) + ("UpDecoderBlock2D",) * 3,
        latent_channels=4, num_vq_embeddings=12, norm_type="spatial", vq_embed_dim=4,
        norm_num_groups=4, layers_per_block=1,
    )  # fmt: skip


def kandinsky22() -> Any:
    return d.KandinskyV22Pipeline(
        unet=unet(
            in_channels=4, out_channels=8, addition_embed_type="image", encoder_hid_dim=32,
            encoder_hid_dim_type="image_proj", resnet_time_scale_shift="scale_shift",
            down_block_types=("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"),
            mid_block_type="UNetMidBlock2DSimpleCrossAttn",
            up_block_types=("SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"),
            class_embed_type=None,
        ),
        scheduler=d.DDPMScheduler(), movq=_movq(),
    )  # fmt: skip


def kandinsky3() -> Any:
    return d.Kandinsky3Pipeline(
        unet=d.Kandinsky3UNet(
            in_channels=4, time_embedding_dim=16, groups=2, attention_head_dim=8,
            layers_per_block=2, block_out_channels=(16, 32), cross_attention_dim=32,
            encoder_hid_dim=32,
        ),
        scheduler=d.DDPMScheduler(), movq=_movq(), text_encoder=t5(), tokenizer=words(128),
    )  # fmt: skip


def kolors() -> Any:
    from diffusers.pipelines.kolors.text_encoder import ChatGLMConfig, ChatGLMModel

    return d.KolorsPipeline(
        unet=unet(
            addition_embed_type="text_time", addition_time_embed_dim=8, encoder_hid_dim=16,
            encoder_hid_dim_type="text_proj", projection_class_embeddings_input_dim=6 * 8 + 16,
        ),
        scheduler=d.EulerDiscreteScheduler(), vae=vae(), tokenizer=words(256, positions=True),
        text_encoder=ChatGLMModel(
            ChatGLMConfig(
                num_layers=2, padded_vocab_size=8, hidden_size=16, ffn_hidden_size=16,
                kv_channels=8, num_attention_heads=2, seq_length=256, original_rope=True,
            )
        ),
    )  # fmt: skip


def karlo() -> Any:
    from diffusers.pipelines.deprecated.unclip.text_proj import UnCLIPTextProjModel

    def above() -> Any:
        return d.UNet2DModel(
            sample_size=32, layers_per_block=1, in_channels=6, out_channels=3, norm_num_groups=8,
            block_out_channels=(16, 32), down_block_types=("ResnetDownsampleBlock2D",) * 2,
            up_block_types=("ResnetUpsampleBlock2D",) * 2,
        )  # fmt: skip

    return d.UnCLIPPipeline(
        prior=d.PriorTransformer(
            num_attention_heads=2, attention_head_dim=8, embedding_dim=32, num_layers=1
        ),
        decoder=unet(
            in_channels=3, out_channels=6, cross_attention_dim=16, class_embed_type="identity",
            resnet_time_scale_shift="scale_shift", sample_size=16,
            down_block_types=("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"),
            mid_block_type="UNetMidBlock2DSimpleCrossAttn",
            up_block_types=("SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"),
        ),
        text_encoder=clip(), tokenizer=words(),
        text_proj=UnCLIPTextProjModel(
            clip_embeddings_dim=32, time_embed_dim=64, cross_attention_dim=16,
            clip_extra_context_tokens=2,
        ),
        super_res_first=above(), super_res_last=above(),
        prior_scheduler=d.UnCLIPScheduler(prediction_type="sample"),
        decoder_scheduler=d.UnCLIPScheduler(), super_res_scheduler=d.UnCLIPScheduler(),
    )  # fmt: skip


def sd15() -> Any:
    return d.StableDiffusionPipeline(
        unet=unet(), scheduler=d.DDIMScheduler(), vae=vae(), tokenizer=words(),
        text_encoder=clip(projected=False), safety_checker=None, feature_extractor=None,
        requires_safety_checker=False,
    )  # fmt: skip


def sdxl() -> Any:
    return d.StableDiffusionXLPipeline(
        unet=unet(
            addition_embed_type="text_time", addition_time_embed_dim=8, cross_attention_dim=64,
            projection_class_embeddings_input_dim=6 * 8 + 32, use_linear_projection=True,
            transformer_layers_per_block=(1, 2),
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        ),
        scheduler=d.EulerDiscreteScheduler(), vae=vae(), add_watermarker=False,
        text_encoder=clip(projected=False), tokenizer=words(),
        text_encoder_2=clip(), tokenizer_2=words(),
    )  # fmt: skip


def refiner() -> Any:
    return d.StableDiffusionXLImg2ImgPipeline(
        unet=unet(
            addition_embed_type="text_time", addition_time_embed_dim=8,
            projection_class_embeddings_input_dim=5 * 8 + 32,
        ),
        scheduler=d.EulerDiscreteScheduler(), vae=vae(), text_encoder=None, tokenizer=None,
        text_encoder_2=clip(), tokenizer_2=words(), requires_aesthetics_score=True,
        force_zeros_for_empty_prompt=False, add_watermarker=False,
    )  # fmt: skip


def svd() -> Any:
    return d.StableVideoDiffusionPipeline(
        unet=d.UNetSpatioTemporalConditionModel(
            block_out_channels=(32, 64), layers_per_block=2, sample_size=8, in_channels=8,
            out_channels=4, num_frames=2, cross_attention_dim=32, num_attention_heads=8,
            down_block_types=("CrossAttnDownBlockSpatioTemporal", "DownBlockSpatioTemporal"),
            up_block_types=("UpBlockSpatioTemporal", "CrossAttnUpBlockSpatioTemporal"),
            projection_class_embeddings_input_dim=96, addition_time_embed_dim=32,
        ),
        scheduler=d.EulerDiscreteScheduler(
            prediction_type="v_prediction", timestep_type="continuous", use_karras_sigmas=True
        ),
        vae=d.AutoencoderKLTemporalDecoder(
            block_out_channels=(32, 32, 32, 32), down_block_types=("DownEncoderBlock2D",) * 4,
            layers_per_block=1, latent_channels=4,
        ),
        image_encoder=t.CLIPVisionModelWithProjection(
            t.CLIPVisionConfig(
                hidden_size=32, projection_dim=32, num_hidden_layers=2, num_attention_heads=4,
                image_size=224, intermediate_size=37, patch_size=32,
            )
        ),
        feature_extractor=t.CLIPImageProcessor(),
    )  # fmt: skip


def animate_diff() -> Any:
    return d.AnimateDiffPipeline(
        unet=unet(), scheduler=d.DDIMScheduler(), vae=vae(), tokenizer=words(),
        text_encoder=clip(projected=False), motion_adapter=d.MotionAdapter(
            block_out_channels=(16, 32), motion_layers_per_block=1, motion_norm_num_groups=8,
            motion_num_attention_heads=2,
        ),
    )  # fmt: skip


def controlled() -> Any:
    denoiser = unet()
    return d.StableDiffusionControlNetPipeline(
        unet=denoiser, controlnet=d.ControlNetModel.from_unet(denoiser),
        scheduler=d.DDIMScheduler(), vae=vae(), text_encoder=clip(projected=False),
        tokenizer=words(), safety_checker=None, feature_extractor=None,
        requires_safety_checker=False,
    )  # fmt: skip


def cascade() -> Any:
    from diffusers.pipelines.deprecated.wuerstchen.modeling_paella_vq_model import PaellaVQModel

    return d.StableCascadeDecoderPipeline(
        decoder=d.StableCascadeUNet(
            in_channels=4, out_channels=4, conditioning_dim=32, block_out_channels=[16, 32],
            num_attention_heads=[-1, 2], down_num_layers_per_block=[1, 1],
            up_num_layers_per_block=[1, 1], down_blocks_repeat_mappers=[1, 1],
            up_blocks_repeat_mappers=[1, 1],
            block_types_per_layer=[
                ["SDCascadeResBlock", "SDCascadeTimestepBlock"],
                ["SDCascadeResBlock", "SDCascadeTimestepBlock", "SDCascadeAttnBlock"],
            ],
            switch_level=None, clip_text_pooled_in_channels=32, dropout=[0.1, 0.1],
            effnet_in_channels=16, pixel_mapper_in_channels=3, patch_size=2,
            timestep_conditioning_type=["sca"],
        ),
        scheduler=d.DDPMWuerstchenScheduler(), vqgan=PaellaVQModel(
            bottleneck_blocks=1, num_vq_embeddings=4, embed_dim=16,
        ),
        text_encoder=clip(), tokenizer=words(),
    )  # fmt: skip
