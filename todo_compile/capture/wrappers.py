"""Modules with a flat signature around diffusers' components: tensors in, tensors out.

An exported graph takes its input names from ``forward``'s parameters, so each signature is written
out (`with_inputs` makes those whose length depends on the model: its further inputs are `beside`).
The component hangs on an attribute called after it (``unet``), which is how paths in
``nn_module_stack`` start. An optional input comes last, and is left out of the call if absent.
`output_names` says what a wrapper returns.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn


class _UNet(nn.Module):
    def __init__(self, unet: nn.Module) -> None:
        super().__init__()
        self.unet = unet

    def _predict(
        self,
        sample: Tensor,
        timestep: Tensor,
        encoder_hidden_states: Tensor,
        *,
        residuals: Sequence[Tensor] = (),
        image_embeds: Tensor | None = None,
        adapted: Sequence[Tensor] = (),
        **conditions: Any,
    ) -> Tensor:
        """Noise prediction.

        Args:
            residuals: a ControlNet's, the middle's last, or none.
            image_embeds: of a picture for an IP-Adapter, (B, 1, D), or none.
            adapted: a T2I-Adapter's residuals, the middle's last, or none.
        """
        if adapted:
            conditions["down_intrablock_additional_residuals"] = list(adapted)
        if image_embeds is not None:
            added = conditions.get("added_cond_kwargs", {})
            conditions["added_cond_kwargs"] = {**added, "image_embeds": [image_embeds]}
        if residuals:
            conditions["down_block_additional_residuals"] = tuple(residuals[:-1])
            conditions["mid_block_additional_residual"] = residuals[-1]
        return self.unet(sample, timestep, encoder_hidden_states, **conditions, return_dict=False)[
            0
        ]


class TextUNet(_UNet):
    """A UNet conditioned on text and time (SD 1.x, SD 2.x)."""

    def forward(
        self,
        sample: Tensor,
        timestep: Tensor,
        encoder_hidden_states: Tensor,
        timestep_cond: Tensor | None = None,
        **beside: Any,
    ) -> Tensor:
        """Noise prediction, (B, out_channels, H/8, W/8)."""
        return self._predict(
            sample,
            timestep,
            encoder_hidden_states,
            timestep_cond=timestep_cond,
            **beside,
        )


class TextTimeUNet(_UNet):
    """A UNet with pooled text and image sizes as added conditions (SDXL)."""

    def forward(
        self,
        sample: Tensor,
        timestep: Tensor,
        encoder_hidden_states: Tensor,
        text_embeds: Tensor,
        time_ids: Tensor,
        timestep_cond: Tensor | None = None,
        **beside: Any,
    ) -> Tensor:
        """Noise prediction, (B, out_channels, H/8, W/8)."""
        # diffusers concatenates text_embeds with an fp32 embedding of time_ids and lets torch
        # promote. Promoting here gives the same numbers, and a Concat that TensorRT takes.
        added = {"text_embeds": text_embeds.to(torch.float32), "time_ids": time_ids}
        return self._predict(
            sample,
            timestep,
            encoder_hidden_states,
            timestep_cond=timestep_cond,
            added_cond_kwargs=added,
            **beside,
        )


class LabelledUNet(_UNet):
    """A UNet with class labels: unCLIP's image embedding, an upscaler's noise level."""

    def forward(
        self,
        sample: Tensor,
        timestep: Tensor,
        encoder_hidden_states: Tensor,
        class_labels: Tensor,
        timestep_cond: Tensor | None = None,
        **beside: Any,
    ) -> Tensor:
        """Noise prediction, (B, out_channels, H/8, W/8)."""
        return self._predict(
            sample,
            timestep,
            encoder_hidden_states,
            timestep_cond=timestep_cond,
            class_labels=class_labels,
            **beside,
        )


def with_inputs(
    base: type[nn.Module],
    inputs: Sequence[str],
    adapted: Sequence[str] = (),
    residuals: Sequence[str] = (),
) -> type[nn.Module]:
    """A UNet's wrapper for the inputs that one UNet has, and residuals after them.

    Args:
        base: of this module.
        inputs: those of its inputs that are used.
        adapted: names of a T2I-Adapter's residuals.
        residuals: of a ControlNet's, the middle's last.
    """
    ends = len(inputs), len(inputs) + len(adapted)

    def forward(self: nn.Module, *values: Tensor) -> Tensor:
        own = dict(zip(inputs, values[: ends[0]], strict=True))
        more = {"adapted": values[ends[0] : ends[1]], "residuals": values[ends[1] :]}
        return base.forward(self, **own, **more)

    # How many there are depends on the model; torch.export names a graph's inputs by the signature.
    names = ("self", *inputs, *adapted, *residuals)
    parameters = [inspect.Parameter(n, inspect.Parameter.POSITIONAL_OR_KEYWORD) for n in names]
    forward.__signature__ = inspect.Signature(parameters)  # pyright: ignore[reportFunctionMemberAccess]
    return type(base.__name__, (base,), {"forward": forward})


class PixArtTransformer(nn.Module):
    """PixArt-α and -Σ: text through cross-attention, time through the norms."""

    def __init__(self, transformer: nn.Module) -> None:
        super().__init__()
        self.transformer = transformer

    def forward(
        self,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        timestep: Tensor,
        encoder_attention_mask: Tensor,
        resolution: Tensor | None = None,
        aspect_ratio: Tensor | None = None,
    ) -> Tensor:
        """Noise prediction and variance, (B, out_channels, H/8, W/8)."""
        return self.transformer(
            hidden_states,
            encoder_hidden_states=encoder_hidden_states,
            timestep=timestep.expand(hidden_states.shape[0]),
            added_cond_kwargs={"resolution": resolution, "aspect_ratio": aspect_ratio},
            encoder_attention_mask=encoder_attention_mask,
            return_dict=False,
        )[0]


class ClassTransformer(nn.Module):
    """DiT: class labels and time through the norms, no text."""

    def __init__(self, transformer: nn.Module) -> None:
        super().__init__()
        self.transformer = transformer

    def forward(self, hidden_states: Tensor, timestep: Tensor, class_labels: Tensor) -> Tensor:
        """Noise prediction and variance, (B, out_channels, H/8, W/8)."""
        return self.transformer(
            hidden_states,
            timestep=timestep.expand(hidden_states.shape[0]),
            class_labels=class_labels,
            return_dict=False,
        )[0]


class VaeDecoder(nn.Module):
    """The decoding half of an autoencoder; the encoder is left behind with its weights."""

    def __init__(self, vae: nn.Module) -> None:
        super().__init__()
        self.decoder: Any = vae.decoder
        self.post_quant_conv: Any = getattr(vae, "post_quant_conv", None)  # none in tiny ones

    def forward(self, latent_sample: Tensor) -> Tensor:
        """Images in [-1, 1], (B, 3, H, W), from latents already divided by the scaling factor."""
        if self.post_quant_conv is not None:
            latent_sample = self.post_quant_conv(latent_sample)
        return self.decoder(latent_sample)


class ClipText(nn.Module):
    """CLIP's text encoder, with the states of all layers: SDXL takes those before the last, and
    pipelines skip more of them when they are asked to."""

    def __init__(self, text_encoder: nn.Module) -> None:
        super().__init__()
        self.text_encoder: Any = text_encoder

    def forward(self, input_ids: Tensor) -> tuple[Tensor, ...]:
        """(B, 77, C) after the last norm, (B, C) at each prompt's end, (B, layers + 1, 77, C)
        before each layer and after the last, and the same after the last norm."""
        found = self.text_encoder(input_ids=input_ids, output_hidden_states=True, return_dict=True)
        states = torch.stack(tuple(found.hidden_states), 1)
        inner = getattr(self.text_encoder, "text_model", self.text_encoder)
        normed = inner.final_layer_norm(states)
        return found.last_hidden_state, found.pooler_output, states, normed


class ClipTextProjection(ClipText):
    """CLIP's text encoder with its projection into the space shared with images (SDXL's second)."""

    def forward(self, input_ids: Tensor) -> tuple[Tensor, ...]:
        """(B, P) embedding of each prompt, (B, 77, C) after the last norm, and (B, layers + 1, 77,
        C) before each layer and after the last."""
        found = self.text_encoder(input_ids=input_ids, output_hidden_states=True, return_dict=True)
        return (
            found.text_embeds,
            found.last_hidden_state,
            torch.stack(tuple(found.hidden_states), 1),
        )


_OUTPUTS: dict[type[nn.Module], tuple[str, ...]] = {
    VaeDecoder: ("sample",),
    ClipText: ("last_hidden_state", "pooler_output", "hidden_states", "normed_states"),
    ClipTextProjection: ("text_embeds", "last_hidden_state", "hidden_states"),
}


def output_names(wrapper: type[nn.Module]) -> tuple[str, ...]:
    """Names of what a wrapper returns, in order."""
    return _OUTPUTS.get(wrapper, ("out_sample",))
