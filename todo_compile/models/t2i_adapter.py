"""T2I-Adapter's residuals: which there are, and their shapes, from a UNet's configuration alone.

The adapter runs in torch, once a picture, and hands over one tensor for every down block, which is
added after its last layer, and perhaps one for the middle block (Mou et al., arXiv 2302.08453)::

    adapter_residual_0 …    for a block with text: before it halves; else after
    adapter_residual_3      for the middle block of SDXL, whose UNet has three down blocks

A pipeline that hands over none for the middle has zeros there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from todo_compile.errors import ModelError
from todo_compile.models.controlnet import DOWN_BLOCKS, Shape, check_unet, residual_shapes

if TYPE_CHECKING:
    from todo_compile.models.source import Source

FIRST = "adapter_residual_0"
"""Name of the first input, which a UNet has that takes any."""
_KNOWN = ("DownBlock2D", "CrossAttnDownBlock2D")


def with_t2i_adapter(source: Source) -> Source:
    """The variant of a UNet that takes a T2I-Adapter's residuals.

    Raises:
        ConfigError: it is no UNet.
        ModelError: it is built of blocks that take none.
    """
    check_unet(source, "--t2i-adapter")
    adapter_shapes(source.config, (64, 64))  # refuses unknown blocks
    return replace(source, t2i_adapter=True)


def adapter_names(count: int) -> tuple[str, ...]:
    """Names of `count` residuals, the middle's last."""
    return tuple(f"adapter_residual_{i}" for i in range(count))


def adapter_shapes(config: Mapping[str, Any], latent: tuple[int, int]) -> tuple[Shape, ...]:
    """Shapes of all residuals, the middle's last.

    Args:
        config: of the UNet.
        latent: (height, width) of its sample.

    Raises:
        ModelError: it has blocks that take none.
    """
    blocks: Sequence[str] = config.get("down_block_types", DOWN_BLOCKS)
    if odd := [block for block in blocks if block not in _KNOWN]:
        raise ModelError(
            f"--t2i-adapter does not know what is added to a {odd[0]}.",
            remedy=f"Leave it out; known are {', '.join(_KNOWN)}.",
        )
    layers: int | Sequence[int] = config.get("layers_per_block", 2)
    counts = [layers] * len(blocks) if isinstance(layers, int) else list(layers)
    states = list(residual_shapes(config, latent))  # a ControlNet's: one for each state
    shapes: list[Shape] = []
    place = 0
    for level, (block, count) in enumerate(zip(blocks, counts, strict=True)):
        last = place + count  # the state after its last layer
        place = last + (level < len(blocks) - 1)  # and after it halved
        shapes.append(states[last if block == "CrossAttnDownBlock2D" else place])
    return (*shapes, states[-1])
