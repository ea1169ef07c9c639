"""What tiny pipelines are made of: encoders of text, a VAE, a UNet, tokenizers of three words."""

from __future__ import annotations

from typing import Any

import diffusers
import transformers as t

d: Any = diffusers  # its classes are loaded lazily, which type checkers cannot follow


def words(limit: int = 77, *, positions: bool = False, chat: bool = False) -> Any:
    """A tokenizer as in the recordings, so that equal texts give equal lengths."""
    from todo_compile.capture.recording.words import tokenizer

    made = tokenizer(limit, positions=positions)
    if chat:
        made.chat_template = "{{ messages[0]['content'] }}"
    return made


def clip(width: int = 32, projected: bool = True) -> Any:
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


def t5(width: int = 32, cls: Any = t.T5EncoderModel) -> Any:
    config = cls.config_class(
        vocab_size=8, d_model=width, d_kv=8, d_ff=37, num_layers=2, num_heads=4
    )
    return cls(config)


def vae(latent: int = 4, levels: int = 4, **more: Any) -> Any:
    return d.AutoencoderKL(
        block_out_channels=(8,) * levels,
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        layers_per_block=1,
        latent_channels=latent,
        norm_num_groups=4,
        sample_size=64,
        **more,
    )


def flow() -> Any:
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


def unet(**changes: Any) -> Any:
    return d.UNet2DConditionModel(**{**_UNET, **changes})
