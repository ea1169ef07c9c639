"""The light parts of the registry's pipelines: autoencoders, text encoders, schedulers.

As in the hub repositories' ``config.json`` files; a key that is absent there is absent here.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

_VAE: dict[str, Any] = {
    "_class_name": "AutoencoderKL",
    "act_fn": "silu",
    "block_out_channels": [128, 256, 512, 512],
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "in_channels": 3,
    "latent_channels": 4,
    "layers_per_block": 2,
    "norm_num_groups": 32,
    "out_channels": 3,
    "sample_size": 512,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
}

_CLIP: dict[str, Any] = {
    "architectures": ["CLIPTextModel"],
    "attention_dropout": 0.0,
    "bos_token_id": 0,
    "eos_token_id": 2,
    "hidden_act": "quick_gelu",
    "hidden_size": 768,
    "initializer_factor": 1.0,
    "initializer_range": 0.02,
    "intermediate_size": 3072,
    "layer_norm_eps": 1e-05,
    "max_position_embeddings": 77,
    "model_type": "clip_text_model",
    "num_attention_heads": 12,
    "num_hidden_layers": 12,
    "pad_token_id": 1,
    "projection_dim": 768,
    "vocab_size": 49408,
}

_SCHEDULER: dict[str, Any] = {
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "num_train_timesteps": 1000,
    "steps_offset": 1,
    "set_alpha_to_one": False,
    "trained_betas": None,
}

COMPONENT_CONFIGS: Mapping[str, Mapping[str, Mapping[str, Any]]] = MappingProxyType(
    {
        "sd15": {"vae_decoder": _VAE, "text_encoder": _CLIP},
        "sd21": {
            "vae_decoder": {**_VAE, "sample_size": 768},
            "text_encoder": {
                **_CLIP,
                "hidden_act": "gelu",
                "hidden_size": 1024,
                "intermediate_size": 4096,
                "num_attention_heads": 16,
                "num_hidden_layers": 23,
                "projection_dim": 512,
            },
        },
        "sdxl": {
            "vae_decoder": {
                **_VAE,
                "force_upcast": True,
                "sample_size": 1024,
                "scaling_factor": 0.13025,
            },
            "text_encoder": _CLIP,
            "text_encoder_2": {
                **_CLIP,
                "architectures": ["CLIPTextModelWithProjection"],
                "hidden_act": "gelu",
                "hidden_size": 1280,
                "intermediate_size": 5120,
                "num_attention_heads": 20,
                "num_hidden_layers": 32,
                "projection_dim": 1280,
            },
        },
    }
)
"""Configurations of a registered model's other components, by the model's name."""

SCHEDULERS: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        "sd15": {
            "_class_name": "PNDMScheduler",
            **_SCHEDULER,
            "clip_sample": False,
            "skip_prk_steps": True,
        },
        "sd21": {
            "_class_name": "DDIMScheduler",
            **_SCHEDULER,
            "clip_sample": False,
            "prediction_type": "v_prediction",
        },
        "sdxl": {
            "_class_name": "EulerDiscreteScheduler",
            **{k: v for k, v in _SCHEDULER.items() if k != "set_alpha_to_one"},
            "interpolation_type": "linear",
            "prediction_type": "epsilon",
            "timestep_spacing": "leading",
            "use_karras_sigmas": False,
        },
    }
)
"""Configurations of a registered model's scheduler."""
