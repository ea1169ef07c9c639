"""ControlNet's residuals: which there are, and their shapes, from a UNet's configuration alone.

A ControlNet runs in torch beside the UNet and hands over one tensor for everything that the UNet's
down blocks pass on to its up blocks, and one for the middle::

    down_block_residual_0   after the first convolution
    down_block_residual_1…  after every layer and every downsampling
    mid_block_residual      after the middle block

The UNet adds them. What is compiled and what calls it take the shapes from here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from todo_compile.errors import ConfigError, ModelError
from todo_compile.models.architecture import UNET

if TYPE_CHECKING:
    from todo_compile.models.source import Source

MID = "mid_block_residual"
"""Name of the middle's input."""
_DOWN = "down_block_residual_"

# diffusers' defaults, for configurations that do not say.
_CHANNELS = (320, 640, 1280, 1280)
DOWN_BLOCKS = ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",)
"""Of a UNet whose configuration does not say."""
# How a block halves its grid, and that it has one residual a layer and one for the halving.
_BY_CONVOLUTION = ("DownBlock2D", "CrossAttnDownBlock2D", "AttnDownBlock2D")
_BY_AVERAGE = ("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D")

Shape = tuple[int, int, int]
"""(channels, height, width)."""


def with_controlnet(source: Source) -> Source:
    """The variant of a UNet that takes a ControlNet's residuals.

    Raises:
        ConfigError: it is no UNet.
        ModelError: it is built of blocks whose residuals are not known.
    """
    check_unet(source, "--controlnet")
    residual_shapes(source.config, (64, 64))  # refuses unknown blocks
    return replace(source, controlnet=True)


def check_unet(source: Source, option: str) -> None:
    """Refuse an option that is for UNets.

    Raises:
        ConfigError: it is no UNet.
    """
    if source.class_name != UNET:
        raise ConfigError(
            f"{option} is for UNets; the {source.component} is a {source.class_name}.",
            remedy=f"Leave {option} out, or compile a UNet (Stable Diffusion, SDXL).",
        )


def residual_names(count: int) -> tuple[str, ...]:
    """Names of `count` residuals, the middle's last."""
    return (*(f"{_DOWN}{i}" for i in range(count - 1)), MID)


def residual_shapes(config: Mapping[str, Any], latent: tuple[int, int]) -> tuple[Shape, ...]:
    """Shapes of all residuals, the middle's last.

    Args:
        config: of the UNet.
        latent: (height, width) of its sample.

    Raises:
        ModelError: it has blocks that no ControlNet is made of.
    """
    channels: Sequence[int] = config.get("block_out_channels", _CHANNELS)
    blocks: Sequence[str] = config.get("down_block_types", DOWN_BLOCKS)
    layers: int | Sequence[int] = config.get("layers_per_block", 2)
    if isinstance(layers, int):
        layers = [layers] * len(blocks)
    kernel = int(config.get("conv_in_kernel", 3))
    height, width = (side + 2 * ((kernel - 1) // 2) - kernel + 1 for side in latent)
    shapes: list[Shape] = [(channels[0], height, width)]
    for level, (block, count) in enumerate(zip(blocks, layers, strict=True)):
        halve = _halving(block, config)
        shapes += [(channels[level], height, width)] * count
        if level < len(blocks) - 1:
            height, width = halve(height), halve(width)
            shapes.append((channels[level], height, width))
    return (*shapes, shapes[-1])


def _halving(block: str, config: Mapping[str, Any]) -> Any:
    """What a block's downsampling makes of a side."""
    name = block.removeprefix("UNetRes")
    if name in _BY_AVERAGE:
        return lambda side: side // 2
    if name in _BY_CONVOLUTION:
        # Of three, by steps of two; without padding diffusers adds a row at one end.
        padded = 2 * int(config.get("downsample_padding", 1)) or 1
        return lambda side: (side + padded - 3) // 2 + 1
    raise ModelError(
        f"--controlnet does not know the residuals of a {block}.",
        remedy=f"Leave it out; known are {', '.join((*_BY_CONVOLUTION, *_BY_AVERAGE))}.",
    )
