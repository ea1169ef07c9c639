"""Full-size models, as data: class, configuration, inputs. They are made without weights.

The configurations of PixArt, SD3 and Flux are those of the published models (PixArt-alpha 1024 px,
SD3 medium, Flux schnell), those of the UNets are the registry's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

Shape = tuple[int, ...]
PX = 2048
_LATENT = PX // 8


@dataclass(frozen=True, slots=True)
class Subject:
    """A model and what goes in.

    Args:
        class_name: in diffusers.
        config: of the class; a registry's name stands for its configuration.
        inputs: keyword → shape; nested mappings are passed on as dictionaries.
        bound: tokens that its highest attention level saw in training.
        token_grids: tokens → (rows, columns) where they come in packed.
    """

    class_name: str
    config: Mapping[str, Any] | str
    inputs: Mapping[str, Any]
    bound: int = 4096
    token_grids: Mapping[int, tuple[int, int]] | None = None


def _unet(config: str, width: int, bound: int, **more: Any) -> Subject:
    inputs = {
        "sample": (2, 4, _LATENT, _LATENT),
        "timestep": (),
        "encoder_hidden_states": (2, 77, width),
        **more,
    }
    return Subject("UNet2DConditionModel", config, inputs, bound)


_TOKENS = (_LATENT // 2) ** 2

SUBJECTS: Mapping[str, Subject] = {
    "sd15": _unet("sd15", 768, 64 * 64),
    "sd21": _unet("sd21", 1024, 96 * 96),
    "sdxl": _unet(
        "sdxl", 2048, 64 * 64,
        added_cond_kwargs={"text_embeds": (2, 1280), "time_ids": (2, 6)},
    ),
    "pixart": Subject(
        "PixArtTransformer2DModel",
        {"caption_channels": 4096},
        {
            "hidden_states": (2, 4, _LATENT, _LATENT),
            "encoder_hidden_states": (2, 120, 4096),
            "timestep": (2,),
            "encoder_attention_mask": (2, 120),
            "added_cond_kwargs": {"resolution": (2, 2), "aspect_ratio": (2, 1)},
        },
    ),
    "sd3": Subject(
        "SD3Transformer2DModel",
        {
            "num_layers": 24, "num_attention_heads": 24, "caption_projection_dim": 1536,
            "pos_embed_max_size": 192,
        },
        {
            "hidden_states": (2, 16, _LATENT, _LATENT),
            "encoder_hidden_states": (2, 154, 4096),
            "pooled_projections": (2, 2048),
            "timestep": (2,),
        },
    ),
    "flux": Subject(
        "FluxTransformer2DModel",
        {},
        {
            "hidden_states": (1, _TOKENS, 64),
            "encoder_hidden_states": (1, 512, 4096),
            "pooled_projections": (1, 768),
            "timestep": (1,),
            "img_ids": (_TOKENS, 3),
            "txt_ids": (512, 3),
        },
        token_grids={_TOKENS: (_LATENT // 2, _LATENT // 2)},
    ),
}  # fmt: skip
