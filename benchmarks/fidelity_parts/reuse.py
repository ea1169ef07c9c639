"""Deep features used again (the idea of DeepCache, Ma et al., arXiv 2312.00858).

From one step of the sampler to the next what the deep blocks give changes little. Every n-th call
runs the whole UNet and keeps what goes into its last layer from below; the calls between run only
what is outermost: the first convolution, that last layer with its skip connection, and the output.
It saves whole blocks, not attention, and so goes together with downsampled keys.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class Reuse(nn.Module):
    """A diffusers UNet whose deep part runs at every `every`-th call.

    Calls must come in the order of one sampling; `restart` begins another.

    Args:
        unet: a `UNet2DConditionModel` conditioned by text and time alone.
        every: 1 runs all of it always.
    """

    def __init__(self, unet: Any, every: int) -> None:
        super().__init__()
        self.unet, self.every, self.position = unet, every, 0
        self._held: Tensor | None = None
        last = unet.up_blocks[-1].resnets[-1]
        # Channels that come through the skip connection: those of the first convolution.
        self._below = last.in_channels - unet.conv_in.out_channels
        last.register_forward_pre_hook(self._keep)

    def restart(self) -> None:
        """The next call is the first of a sampling."""
        self.position, self._held = 0, None

    def _keep(self, _: nn.Module, arguments: tuple[Any, ...]) -> None:
        self._held = arguments[0][:, : self._below]

    def forward(self, sample: Tensor, timestep: Tensor, text: Tensor) -> Tensor:
        whole = self.position == 0
        self.position = (self.position + 1) % self.every
        if whole:
            return self.unet(sample, timestep, text, return_dict=False)[0]
        if self._held is None or self._held.shape[0] != sample.shape[0]:
            raise ValueError("another batch began in the middle of a sampling: call restart()")
        return self.outermost(sample, timestep, text, self._held)

    def outermost(self, sample: Tensor, timestep: Tensor, text: Tensor, below: Tensor) -> Tensor:
        """The output from what lies below the last layer, (B, C, H, W)."""
        unet = self.unet
        time = unet.time_embedding(unet.get_time_embed(sample=sample, timestep=timestep))
        skip = unet.conv_in(sample)
        block = unet.up_blocks[-1]
        x = block.resnets[-1](torch.cat([below, skip], dim=1), time)
        if getattr(block, "has_cross_attention", False):
            x = block.attentions[-1](x, encoder_hidden_states=text, return_dict=False)[0]
        return unet.conv_out(unet.conv_act(unet.conv_norm_out(x)))
