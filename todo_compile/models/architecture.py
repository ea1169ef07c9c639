"""What a model's configuration alone says: its training grid, and whether we know its class."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

from todo_compile.batches import TextRange
from todo_compile.errors import ModelError

UNET = "UNet2DConditionModel"
PIXART = "PixArtTransformer2DModel"
DIT = "DiTTransformer2DModel"
SUPPORTED_CLASSES = (UNET, PIXART, DIT)
"""Denoising models whose example inputs are known without their pipeline."""
VAE_KL = "AutoencoderKL"
VAE_TINY = "AutoencoderTiny"
VAE_CLASSES = (VAE_KL, VAE_TINY)
"""Autoencoders whose decoder can be compiled."""
CLIP = "CLIPTextModel"
CLIP_PROJECTION = "CLIPTextModelWithProjection"
TEXT_CLASSES = (CLIP, CLIP_PROJECTION)
"""Text encoders, from transformers. No other names are ever looked up in either library."""
TEXT_TOKENS = 77
"""Length that CLIP's tokenizer pads prompts to."""
_PLAIN = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,99}")


@dataclass(frozen=True)
class Native:
    """The grid that a model was trained at.

    Attributes:
        latent: (height, width) of the latent at the training resolution, in latent cells.
        attention_stride: latent cells per token and axis at the highest attention level.
        kv_tokens: self-attention tokens at that level at the training resolution.
    """

    latent: tuple[int, int]
    attention_stride: int
    kv_tokens: int


@dataclass(frozen=True)
class PipelineDefaults:
    """What a pipeline does by itself.

    Attributes:
        native: the grid of a picture of its own default size.
        batch: rows that its denoiser gets for one picture: 2 with classifier-free guidance.
        texts: tokens of the texts that it passes, where their number is that of the prompt.
    """

    native: Native
    batch: int
    texts: TextRange | None = None


def class_name(config: Mapping[str, Any]) -> str:
    """The class of diffusers (``_class_name``) or transformers (``architectures``) in `config`.

    Raises:
        ModelError: it names no class.
    """
    name = config.get("_class_name")
    if name is None:
        match config.get("architectures"):
            case [str() as first, *_] if first in TEXT_CLASSES:
                return first
            case _:
                pass
    if name in VAE_CLASSES:
        return str(name)
    if not isinstance(name, str):
        raise ModelError(
            "The model's config.json has no _class_name, so it is not a diffusers model.",
            remedy="Give a folder written by diffusers' save_pretrained.",
        )
    if not _PLAIN.fullmatch(name):
        raise ModelError(
            f"The model's config.json names the class {name!r:.80}, which is not a name.",
            remedy="The folder may have been tampered with; get the model from its origin.",
        )
    return name


def native(config: Mapping[str, Any]) -> Native:
    """Derive the training grid from a configuration.

    ``sample_size`` is the latent side. In a UNet level *i* has 1/2^i of it per axis, and the
    highest attention level is the first down block with attention; in a transformer a token is
    a patch of ``patch_size`` cells. An autoencoder's ``sample_size`` is in pixels; its decoder
    attends to every latent cell. A text encoder has its tokens.

    Raises:
        ModelError: the class is unknown, or the configuration lacks what is needed.
    """
    name = class_name(config)
    if name not in (*SUPPORTED_CLASSES, *VAE_CLASSES, *TEXT_CLASSES):
        raise ModelError(
            f"The configuration of a {name} alone does not say what grid it was trained on.",
            remedy="Say how many key/value tokens to keep, or give the pipeline's folder.",
        )
    if name in TEXT_CLASSES:
        return Native(latent=(1, TEXT_TOKENS), attention_stride=1, kv_tokens=TEXT_TOKENS)
    if name in VAE_CLASSES:
        return _vae_native(config)
    latent = _sides(config.get("sample_size"))
    stride = attention_stride(config)
    # An odd side is rounded up: a strided convolution with padding 1 keeps the last row.
    tokens = -(-latent[0] // stride) * -(-latent[1] // stride)
    return Native(latent=latent, attention_stride=stride, kv_tokens=tokens)


def attention_stride(config: Mapping[str, Any]) -> int:
    """Cells a token and axis at the highest level with attention, of any denoising model.

    Raises:
        ModelError: what says so is malformed.
    """
    if "down_block_types" in config or str(config.get("_class_name", "")).startswith("UNet"):
        return _unet_stride(config)
    patch = config.get("patch_size", 2)
    if isinstance(patch, list | tuple):  # (frames, rows, columns), or one a stage
        return _positive({"patch_size": cast("list[object]", patch)[-1]}, "patch_size", 2)
    levels: object = config.get("block_types_per_layer")  # Stable Cascade's
    own = _positive(config, "patch_size", 2)
    if not isinstance(levels, list | tuple):
        return own
    found = (i for i, one in enumerate(cast("list[object]", levels)) if "Attn" in str(one))
    return own * 2 ** next(found, 0)


def vae_scale(config: Mapping[str, Any]) -> int:
    """Pixels per latent cell on each axis of an autoencoder: 2 for every level but the last."""
    key = "block_out_channels" if "block_out_channels" in config else "encoder_block_out_channels"
    channels: object = config.get(key)
    if not isinstance(channels, list | tuple):
        return 8
    return 2 ** (len(cast("list[object]", channels)) - 1)


def _vae_native(config: Mapping[str, Any]) -> Native:
    # A tiny autoencoder's configuration has no sample_size, and its decoder no attention.
    scale = vae_scale(config)
    pixels = _sides(config.get("sample_size", 64 * scale))
    latent = (-(-pixels[0] // scale), -(-pixels[1] // scale))
    return Native(latent=latent, attention_stride=1, kv_tokens=latent[0] * latent[1])


def architecture_hash(config: Mapping[str, Any]) -> str:
    """Hash of what determines the module: the configuration without diffusers' own notes."""
    kept = {k: v for k, v in config.items() if not k.startswith("_") or k == "_class_name"}
    text = json.dumps(kept, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _unet_stride(config: Mapping[str, Any]) -> int:
    blocks = config.get("down_block_types")
    if blocks is None:  # diffusers' default: attention from the first level on
        return 1
    if not isinstance(blocks, list | tuple):
        raise ModelError("down_block_types in the model's config.json is not a list.")
    for level, block in enumerate(cast("list[object]", blocks)):
        if "Attn" in str(block):
            return 2**level
    # No attention on the way down; the mid block, at the lowest level, may still have it.
    return 2 ** max(len(cast("list[object]", blocks)) - 1, 0)


def _sides(value: object) -> tuple[int, int]:
    match value:
        case int() if value > 0:
            return value, value
        case [int() as height, int() as width] if height > 0 and width > 0:
            return height, width
        case _:
            raise ModelError(
                f"The model's config.json gives no usable sample_size ({value!r}), so its training "
                "resolution is unknown.",
                remedy='Add "sample_size" (the latent side at the training resolution, '
                "64 for 512 px) to config.json.",
            )


def _positive(config: Mapping[str, Any], key: str, default: int) -> int:
    value = config.get(key, default)
    if not isinstance(value, int) or value < 1:
        raise ModelError(f"{key} in the model's config.json is not a positive number: {value!r}.")
    return value
