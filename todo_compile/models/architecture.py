"""What a model's configuration alone says: its training grid, and whether we know its class."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

from todo_compile.errors import ModelError

UNET = "UNet2DConditionModel"
PIXART = "PixArtTransformer2DModel"
DIT = "DiTTransformer2DModel"
SUPPORTED_CLASSES = (UNET, PIXART, DIT)
"""Classes whose example inputs are known. Only these names are ever looked up in diffusers."""


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


def class_name(config: Mapping[str, Any]) -> str:
    """The diffusers class that `config` describes.

    Raises:
        ModelError: no ``_class_name``, or a class whose inputs we do not know.
    """
    name = config.get("_class_name")
    if not isinstance(name, str):
        raise ModelError(
            "The model's config.json has no _class_name, so it is not a diffusers model.",
            remedy="Give a folder written by diffusers' save_pretrained.",
        )
    if name not in SUPPORTED_CLASSES:
        raise ModelError(
            f"Model class {name} is not supported; supported are {', '.join(SUPPORTED_CLASSES)}.",
            remedy="Load the module yourself and hand it to the Python API with example inputs: "
            "todo_compile.rewrite(module, example_inputs).",
        )
    return name


def native(config: Mapping[str, Any]) -> Native:
    """Derive the training grid from a configuration.

    ``sample_size`` is the latent side. In a UNet level *i* has 1/2^i of it per axis, and the
    highest attention level is the first down block with attention; in a transformer a token is
    a patch of ``patch_size`` cells.

    Raises:
        ModelError: the class is unknown, or the configuration lacks what is needed.
    """
    name = class_name(config)
    latent = _sides(config.get("sample_size"))
    stride = _unet_stride(config) if name == UNET else _positive(config, "patch_size", 2)
    # An odd side is rounded up: a strided convolution with padding 1 keeps the last row.
    tokens = -(-latent[0] // stride) * -(-latent[1] // stride)
    return Native(latent=latent, attention_stride=stride, kv_tokens=tokens)


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
