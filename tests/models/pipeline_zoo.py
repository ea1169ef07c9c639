"""Tiny pipelines of many families, real and whole, with tokenizers of three words."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers as t

d: Any = diffusers  # its classes are loaded lazily, which type checkers cannot follow

Make = Callable[[], Any]


def words(limit: int = 77) -> Any:
    """A tokenizer as in the recordings, so that equal texts give equal lengths."""
    from todo_compile.capture.recording.words import tokenizer

    return tokenizer(limit)


def _clip(width: int = 32, projected: bool = True) -> Any:
    config = t.CLIPTextConfig(
        vocab_size=8,
        hidden_size=width,
        intermediate_size=37,
        num_hidden_layers=2,
        num_attention_heads=4,
        projection_dim=32,
        max_position_embeddings=77,
        eos_token_id=1,
        bos_token_id=1,
        pad_token_id=0,
    )
    return (t.CLIPTextModelWithProjection if projected else t.CLIPTextModel)(config)


def _t5(width: int = 32, cls: Any = t.T5EncoderModel) -> Any:
    config = cls.config_class(
        vocab_size=8, d_model=width, d_kv=8, d_ff=37, num_layers=2, num_heads=4
    )
    return cls(config)


def _vae(latent: int = 4, **more: Any) -> Any:
    return d.AutoencoderKL(
        block_out_channels=(8, 8, 8, 8),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=1,
        latent_channels=latent,
        norm_num_groups=4,
        sample_size=64,
        **more,
    )


def _flow() -> Any:
    return d.FlowMatchEulerDiscreteScheduler()


_UNET: dict[str, Any] = {
    "sample_size": 8,
    "block_out_channels": (16, 32),
    "layers_per_block": 1,
    "norm_num_groups": 8,
    "attention_head_dim": 8,
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    "cross_attention_dim": 32,
}


def _unet(**changes: Any) -> Any:
    return d.UNet2DConditionModel(**{**_UNET, **changes})


def sd3() -> Any:
    return d.StableDiffusion3Pipeline(
        transformer=d.SD3Transformer2DModel(
            sample_size=16, patch_size=2, in_channels=4, out_channels=4, num_layers=2,
            attention_head_dim=8, num_attention_heads=4, joint_attention_dim=32,
            caption_projection_dim=32, pooled_projection_dim=64, pos_embed_max_size=32,
        ),
        scheduler=_flow(),
        vae=_vae(shift_factor=0.06, scaling_factor=1.5),
        text_encoder=_clip(), tokenizer=words(),
        text_encoder_2=_clip(), tokenizer_2=words(),
        text_encoder_3=_t5(), tokenizer_3=words(),
    )  # fmt: skip


def flux(guided: bool = True, cls: Any = None) -> Any:
    cls = cls or d.FluxPipeline
    return cls(
        transformer=d.FluxTransformer2DModel(
            patch_size=1, in_channels=16, num_layers=1, num_single_layers=1,
            attention_head_dim=16, num_attention_heads=2, joint_attention_dim=32,
            pooled_projection_dim=32, axes_dims_rope=(4, 4, 8), guidance_embeds=guided,
        ),
        scheduler=_flow(),
        vae=_vae(shift_factor=0.06, scaling_factor=1.5),
        text_encoder=_clip(projected=False), tokenizer=words(),
        text_encoder_2=_t5(), tokenizer_2=words(),
    )  # fmt: skip


def schnell() -> Any:
    return flux(guided=False)


def kontext() -> Any:
    return flux(cls=d.FluxKontextPipeline)


def chroma() -> Any:
    return d.ChromaPipeline(
        transformer=d.ChromaTransformer2DModel(
            patch_size=1, in_channels=16, num_layers=1, num_single_layers=1,
            attention_head_dim=16, num_attention_heads=2, joint_attention_dim=32,
            axes_dims_rope=(4, 4, 8), approximator_hidden_dim=32, approximator_layers=1,
            approximator_num_channels=64,
        ),
        scheduler=_flow(), vae=_vae(shift_factor=0.06, scaling_factor=1.5),
        text_encoder=_t5(), tokenizer=words(),
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
        scheduler=_flow(),
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
        scheduler=_flow(), vae=_vae(shift_factor=0.06, scaling_factor=1.5),
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
        scheduler=d.DDIMScheduler(), vae=_vae(), text_encoder=_t5(), tokenizer=words(300),
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
        scheduler=d.DDPMScheduler(), vae=_vae(), text_encoder=bert, tokenizer=words(),
        text_encoder_2=_t5(), tokenizer_2=words(256), safety_checker=None,
        feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip


def aura_flow() -> Any:
    return d.AuraFlowPipeline(
        transformer=d.AuraFlowTransformer2DModel(
            sample_size=32, patch_size=2, in_channels=4, num_mmdit_layers=1,
            num_single_dit_layers=1, attention_head_dim=8, num_attention_heads=4,
            caption_projection_dim=32, joint_attention_dim=32, pos_embed_max_size=256,
        ),
        scheduler=_flow(), vae=_vae(), text_encoder=_t5(cls=t.UMT5EncoderModel),
        tokenizer=words(256),
    )  # fmt: skip


def lumina() -> Any:
    gemma = t.Gemma2Model(
        t.Gemma2Config(
            hidden_size=8,
            intermediate_size=16,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=2,
            head_dim=4,
            vocab_size=8,
        )
    )
    return d.Lumina2Pipeline(
        transformer=d.Lumina2Transformer2DModel(
            sample_size=8, patch_size=2, in_channels=4, hidden_size=24, num_layers=2,
            num_refiner_layers=1, num_attention_heads=3, num_kv_heads=1, multiple_of=2,
            ffn_dim_multiplier=None, norm_eps=1e-6, scaling_factor=1.0, axes_dim_rope=(4, 2, 2),
            axes_lens=(512, 64, 64), cap_feat_dim=8,
        ),
        scheduler=_flow(), vae=_vae(shift_factor=0.06, scaling_factor=1.5), text_encoder=gemma,
        tokenizer=words(256),
    )  # fmt: skip


def sana() -> Any:
    gemma = t.Gemma2Model(
        t.Gemma2Config(
            hidden_size=8,
            intermediate_size=16,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=2,
            head_dim=4,
            vocab_size=8,
        )
    )
    return d.SanaPipeline(
        transformer=d.SanaTransformer2DModel(
            sample_size=8, patch_size=1, in_channels=4, out_channels=4, num_layers=2,
            num_attention_heads=2, attention_head_dim=4, num_cross_attention_heads=2,
            cross_attention_head_dim=4, cross_attention_dim=8, caption_channels=8, mlp_ratio=2.5,
        ),
        scheduler=_flow(),
        vae=d.AutoencoderDC(
            in_channels=3, latent_channels=4, attention_head_dim=2,
            encoder_block_types=("ResBlock",) * 2, decoder_block_types=("ResBlock",) * 2,
            encoder_block_out_channels=(8, 8), decoder_block_out_channels=(8, 8),
            encoder_layers_per_block=(1, 1), decoder_layers_per_block=(1, 1),
            encoder_qkv_multiscales=((), ()), decoder_qkv_multiscales=((), ()),
            decoder_norm_types=("rms_norm",) * 2, decoder_act_fns=("silu",) * 2,
            upsample_block_type="pixel_shuffle", downsample_block_type="pixel_unshuffle",
        ),
        text_encoder=gemma, tokenizer=words(300),
    )  # fmt: skip


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
        unet=_unet(**_IF), scheduler=d.DDPMScheduler(variance_type="learned_range"),
        text_encoder=_t5(), tokenizer=words(), safety_checker=None, feature_extractor=None,
        watermarker=None, requires_safety_checker=False,
    )  # fmt: skip


def deepfloyd_2() -> Any:
    return d.IFSuperResolutionPipeline(
        unet=_unet(**{**_IF, "in_channels": 6, "class_embed_type": "timestep", "sample_size": 32}),
        scheduler=d.DDPMScheduler(variance_type="learned_range"),
        image_noising_scheduler=d.DDPMScheduler(), text_encoder=_t5(), tokenizer=words(),
        safety_checker=None, feature_extractor=None, watermarker=None,
        requires_safety_checker=False,
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
        unet=_unet(
            in_channels=4, out_channels=8, addition_embed_type="image", encoder_hid_dim=32,
            encoder_hid_dim_type="image_proj", resnet_time_scale_shift="scale_shift",
            down_block_types=("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"),
            mid_block_type="UNetMidBlock2DSimpleCrossAttn",
            up_block_types=("SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"),
            class_embed_type=None,
        ),
        scheduler=d.DDPMScheduler(), movq=_movq(),
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
        decoder=_unet(
            in_channels=3, out_channels=6, cross_attention_dim=16, class_embed_type="identity",
            resnet_time_scale_shift="scale_shift", sample_size=16,
            down_block_types=("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"),
            mid_block_type="UNetMidBlock2DSimpleCrossAttn",
            up_block_types=("SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"),
        ),
        text_encoder=_clip(), tokenizer=words(),
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
        unet=_unet(), scheduler=d.DDIMScheduler(), vae=_vae(), tokenizer=words(),
        text_encoder=_clip(projected=False), safety_checker=None, feature_extractor=None,
        requires_safety_checker=False,
    )  # fmt: skip


def sdxl() -> Any:
    return d.StableDiffusionXLPipeline(
        unet=_unet(
            addition_embed_type="text_time", addition_time_embed_dim=8, cross_attention_dim=64,
            projection_class_embeddings_input_dim=6 * 8 + 32, use_linear_projection=True,
            transformer_layers_per_block=(1, 2),
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        ),
        scheduler=d.EulerDiscreteScheduler(), vae=_vae(), add_watermarker=False,
        text_encoder=_clip(projected=False), tokenizer=words(),
        text_encoder_2=_clip(), tokenizer_2=words(),
    )  # fmt: skip


def refiner() -> Any:
    return d.StableDiffusionXLImg2ImgPipeline(
        unet=_unet(
            addition_embed_type="text_time", addition_time_embed_dim=8,
            projection_class_embeddings_input_dim=5 * 8 + 32,
        ),
        scheduler=d.EulerDiscreteScheduler(), vae=_vae(), text_encoder=None, tokenizer=None,
        text_encoder_2=_clip(), tokenizer_2=words(), requires_aesthetics_score=True,
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


def controlled() -> Any:
    unet = _unet()
    return d.StableDiffusionControlNetPipeline(
        unet=unet, controlnet=d.ControlNetModel.from_unet(unet), scheduler=d.DDIMScheduler(),
        vae=_vae(), text_encoder=_clip(projected=False), tokenizer=words(), safety_checker=None,
        feature_extractor=None, requires_safety_checker=False,
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
        text_encoder=_clip(), tokenizer=words(),
    )  # fmt: skip


FAMILIES: dict[str, Make] = {
    make.__name__: make
    for make in (
        sd3, flux, schnell, kontext, chroma, qwen_image, z_image, pixart, hunyuan_dit, aura_flow,
        lumina, sana, deepfloyd, deepfloyd_2, kandinsky22, karlo, refiner, svd, controlled, cascade,
        sd15, sdxl,
    )
}  # fmt: skip


_OLD = {"UnCLIPTextProjModel": "unclip", "PaellaVQModel": "wuerstchen"}


def save(pipeline: Any, folder: Path) -> Path:
    """As save_pretrained does, with the library's names of the hub's checkpoints."""
    pipeline.save_pretrained(folder)
    path = folder / "model_index.json"
    index = json.loads(path.read_text())
    for value in index.values():
        if isinstance(value, list) and value[1] in _OLD:
            value[0] = _OLD[value[1]]  # where diffusers had it when these were saved
    path.write_text(json.dumps(index))
    return folder


def make(name: str) -> Any:
    """The pipeline of a family, seeded."""
    torch.manual_seed(0)
    pipeline = FAMILIES[name]()
    for part in pipeline.components.values():
        if isinstance(part, torch.nn.Module):
            part.eval().requires_grad_(False)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline
