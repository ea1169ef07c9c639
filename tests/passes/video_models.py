"""Tiny video transformers of diffusers, as functions of tensors.

Latents are (B, channels, 3 frames, 8 rows, 12 columns); patches of 2×2 make 3×4×6 tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import diffusers
import torch
from diffusers.models.embeddings import get_3d_rotary_pos_embed_allegro
from torch import nn

d: Any = diffusers  # its classes are loaded lazily, which type checkers cannot follow

FRAMES, GRID = 3, (4, 6)
LATENTS = (FRAMES, 8, 12)
TEXT = 5
Tensors = tuple[torch.Tensor, ...]


class Called(nn.Module):
    """A model as a function of tensors by their names, with constants beside them."""

    def __init__(self, model: nn.Module, names: tuple[str, ...], **constants: Any) -> None:
        super().__init__()
        self.model, self.names, self.constants = model, names, constants

    def forward(self, *tensors: torch.Tensor) -> torch.Tensor:
        given = dict(zip(self.names, tensors, strict=True))
        return self.model(**given, **self.constants, return_dict=False)[0]


def _random(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(len(shape)))


def _level() -> torch.Tensor:
    return torch.tensor([500.0])


def wan() -> tuple[nn.Module, Tensors]:
    """Patches by conv3d, rotary tables, cross-attention to text."""
    model = d.WanTransformer3DModel(
        num_attention_heads=2, attention_head_dim=12, in_channels=4, out_channels=4, text_dim=16,
        freq_dim=16, ffn_dim=32, num_layers=1, rope_max_seq_len=32,
    )  # fmt: skip
    names = ("hidden_states", "timestep", "encoder_hidden_states")
    return Called(model, names), (_random(1, 4, *LATENTS), _level(), _random(1, TEXT, 16))


def hunyuan_video() -> tuple[nn.Module, Tensors]:
    """Patches by conv3d, joint attention, text behind the video and partly hidden."""
    model = d.HunyuanVideoTransformer3DModel(
        in_channels=4, out_channels=4, num_attention_heads=2, attention_head_dim=10, num_layers=1,
        num_single_layers=1, num_refiner_layers=1, patch_size=2, patch_size_t=1,
        guidance_embeds=True, text_embed_dim=16, pooled_projection_dim=8, rope_axes_dim=(2, 4, 4),
    )  # fmt: skip
    names = (
        "hidden_states", "timestep", "encoder_hidden_states", "encoder_attention_mask",
        "pooled_projections", "guidance",
    )  # fmt: skip
    seen = torch.tensor([[True, True, True, False, False]])
    inputs = (
        _random(1, 4, *LATENTS), _level(), _random(1, TEXT, 16), seen, _random(1, 8),
        torch.tensor([6.0]),
    )  # fmt: skip
    return Called(model, names), inputs


def mochi() -> tuple[nn.Module, Tensors]:
    """Patches frame by frame, joint attention."""
    model = d.MochiTransformer3DModel(
        patch_size=2, num_attention_heads=2, attention_head_dim=8, num_layers=2,
        pooled_projection_dim=16, in_channels=4, qk_norm="rms_norm", text_embed_dim=16,
        time_embed_dim=4, activation_fn="swiglu", max_sequence_length=16,
    )  # fmt: skip
    names = ("hidden_states", "encoder_hidden_states", "timestep", "encoder_attention_mask")
    seen = torch.tensor([[True, True, True, False, False]])
    return Called(model, names), (_random(1, 4, *LATENTS), _random(1, TEXT, 16), _level(), seen)


def cogvideox(**more: Any) -> tuple[nn.Module, Tensors]:
    """Patches frame by frame, text before the video."""
    model = d.CogVideoXTransformer3DModel(
        num_attention_heads=2, attention_head_dim=8, in_channels=4, out_channels=4,
        time_embed_dim=2, text_embed_dim=16, num_layers=1, sample_width=12, sample_height=8,
        sample_frames=9, patch_size=2, temporal_compression_ratio=4, max_text_seq_length=TEXT,
        **more,
    )  # fmt: skip
    names = ("hidden_states", "encoder_hidden_states", "timestep")
    frames = _random(1, 4, *LATENTS).movedim(1, 2).contiguous()
    return Called(model, names), (frames, _random(1, TEXT, 16), torch.tensor([500]))


def cogvideox_15() -> tuple[nn.Module, Tensors]:
    """Patches of two frames by views and a linear layer."""
    model, (frames, text, level) = cogvideox(patch_size_t=1, patch_bias=False)
    return model, (frames, text, level)


def allegro() -> tuple[nn.Module, Tensors]:
    """Patches frame by frame, rotary tables of the pipeline."""
    model = d.AllegroTransformer3DModel(
        num_attention_heads=2, attention_head_dim=12, in_channels=4, out_channels=4, num_layers=1,
        cross_attention_dim=24, sample_width=12, sample_height=8, sample_frames=FRAMES,
        caption_channels=16,
    )  # fmt: skip
    made: Any = get_3d_rotary_pos_embed_allegro(
        embed_dim=12, crops_coords=((0, 0), GRID), grid_size=GRID, temporal_size=FRAMES
    )
    times, downs, acrosses, *axes = made
    places = torch.cartesian_prod(*(axis.long() for axis in axes)).mT[:, None].contiguous()
    names = ("hidden_states", "encoder_hidden_states", "timestep")
    tables = {"image_rotary_emb": ((times, downs, acrosses), tuple(places))}
    inputs = (_random(1, 4, *LATENTS), _random(1, TEXT, 16), _level())
    return Called(model, names, **tables), inputs


def ltx() -> tuple[nn.Module, Tensors]:
    """Tokens arrive packed."""
    model = d.LTXVideoTransformer3DModel(
        in_channels=8, out_channels=8, num_attention_heads=2, attention_head_dim=8,
        cross_attention_dim=16, num_layers=1, caption_channels=16,
        qk_norm="rms_norm_across_heads",
    )  # fmt: skip
    names = ("hidden_states", "encoder_hidden_states", "timestep", "encoder_attention_mask")
    tokens = FRAMES * GRID[0] * GRID[1]
    return (
        Called(model, names, num_frames=FRAMES, height=GRID[0], width=GRID[1]),
        (
            _random(1, tokens, 8), _random(1, TEXT, 16), _level(),
            torch.ones(1, TEXT, dtype=torch.bool),
        ),
    )  # fmt: skip


def latte() -> tuple[nn.Module, Tensors]:
    """Attention within each frame, then over frames."""
    model = d.LatteTransformer3DModel(
        sample_size=8, num_layers=1, patch_size=2, attention_head_dim=8, num_attention_heads=2,
        caption_channels=16, in_channels=4, cross_attention_dim=16, out_channels=8,
        attention_bias=True, activation_fn="gelu-approximate", num_embeds_ada_norm=1000,
        norm_type="ada_norm_single", norm_elementwise_affine=False, norm_eps=1e-6,
        video_length=FRAMES,
    )  # fmt: skip
    names = ("hidden_states", "timestep", "encoder_hidden_states")
    return Called(model, names), (_random(1, 4, FRAMES, 8, 8), _level(), _random(1, TEXT, 16))


VIDEOS: dict[str, Callable[[], tuple[nn.Module, Tensors]]] = {
    f.__name__: f for f in (wan, hunyuan_video, mochi, cogvideox, cogvideox_15, allegro, ltx, latte)
}


def make(name: str) -> tuple[nn.Module, Tensors]:
    """The model, with attention far from uniform, and its inputs."""
    torch.manual_seed(0)
    model, inputs = VIDEOS[name]()
    generator = torch.Generator().manual_seed(1)
    for weight, parameter in model.named_parameters():
        if parameter.dim() > 1:
            parameter.data.normal_(0, parameter[0].numel() ** -0.5, generator=generator)
        if weight.endswith(("to_q.weight", "to_k.weight")):
            parameter.data *= 3
    return model.eval(), inputs
