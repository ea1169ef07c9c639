"""ComfyUI's denoisers: how each kind is made and called, small and with random weights."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

Segments = Mapping[int, tuple[int, tuple[int, int], tuple[int, int]]]
"""Number of keys → (tokens before the image's, grid, factors)."""


EVERY = ("pytorch", "basic", "split", "sub-quadratic")
_TWO = EVERY[:2]


@dataclass(frozen=True)
class Kind:
    """One denoiser.

    Attributes:
        name: in the table.
        path: module and class.
        settings: of its constructor.
        call: its inputs, by name.
        segments: which attentions are self-attention over an image.
        options: of our backend.
        operations: ComfyUI's way with weights: `disable_weight_init` keeps their type,
            `manual_cast` casts them to the input's where they are used.
        stored: type of the weights.
        dtype: type of the inputs.
        attentions: of `compiled.ATTENTIONS`, those that are tried.
    """

    name: str
    path: tuple[str, str]
    settings: dict[str, Any]
    call: Callable[[], dict[str, torch.Tensor]]
    segments: Segments
    options: dict[str, Any] = field(default_factory=dict[str, Any])
    operations: str = "disable_weight_init"
    stored: torch.dtype = torch.float32
    dtype: torch.dtype = torch.float32
    attentions: tuple[str, ...] = EVERY

    def make(self) -> nn.Module:
        """With the weights of one seed, whose attention is far from uniform."""
        module, cls = self.path
        ops = getattr(importlib.import_module("comfy.ops"), self.operations)
        model: nn.Module = getattr(importlib.import_module(module), cls)(
            **self.settings, dtype=self.stored, device="cpu", operations=ops
        )
        noise = torch.Generator().manual_seed(3)
        for name, value in model.named_parameters():
            fan = value[0].numel() if value.dim() > 1 else 1
            drawn = torch.randn(value.shape, generator=noise)
            if value.dim() > 1:
                sharp = any(part in name for part in ("to_q", "to_k", "qkv", "linear1"))
                drawn *= (1.5 if sharp else 0.7) / fan**0.5
            else:  # of norms: around 1; of all others: small
                drawn = drawn * 0.05 + float(name.endswith(("weight", "scale")))
            value.data.copy_(drawn)
        for value in model.buffers():  # a table of positions is new memory, as weights are
            value.copy_(0.2 * torch.randn(value.shape, generator=noise))
        return model.eval().requires_grad_(requires_grad=False)

    def inputs(self) -> dict[str, torch.Tensor]:
        """Of one seed, in its type."""
        torch.manual_seed(1)
        return {
            name: value.to(self.dtype) if name not in ("timesteps", "timestep") else value
            for name, value in self.call().items()
        }


def _unet(
    grid: tuple[int, int], width: int, *, added: int = 0, tokens: int = 7
) -> Callable[[], dict[str, torch.Tensor]]:
    def call() -> dict[str, torch.Tensor]:
        made = {
            "x": torch.randn(2, 4, *grid),
            "timesteps": torch.tensor([500.0, 500.0]),
            "context": torch.randn(2, tokens, width),
        }
        return {**made, "y": torch.randn(2, added)} if added else made

    return call


def _packed(
    grid: tuple[int, int], channels: int, width: int, pooled: int
) -> Callable[[], dict[str, torch.Tensor]]:
    def call() -> dict[str, torch.Tensor]:
        return {
            "x": torch.randn(1, channels, *grid),
            "timestep": torch.tensor([0.7]),
            "context": torch.randn(1, 5, width),
            "y": torch.randn(1, pooled),
        }

    return call


_UNET = ("comfy.ldm.modules.diffusionmodules.openaimodel", "UNetModel")
_FLUX = ("comfy.ldm.flux.model", "Flux")
_SD3 = ("comfy.ldm.modules.diffusionmodules.mmdit", "OpenAISignatureMMDITWrapper")
_COMMON = {
    "image_size": 32, "in_channels": 4, "out_channels": 4, "use_spatial_transformer": True,
    "legacy": False,
}  # fmt: skip
_SD1 = {
    **_COMMON, "model_channels": 32, "num_res_blocks": [1, 1], "channel_mult": [1, 2],
    "transformer_depth": [1, 1], "transformer_depth_middle": 1,
    "transformer_depth_output": [1, 1, 1, 1], "num_heads": 2, "context_dim": 24,
}  # fmt: skip
_SDXL = {
    **_COMMON, "model_channels": 32, "num_res_blocks": [1, 1, 1], "channel_mult": [1, 2, 4],
    "transformer_depth": [0, 1, 2], "transformer_depth_middle": 2,
    "transformer_depth_output": [0, 0, 1, 1, 2, 2], "num_heads": -1, "num_head_channels": 16,
    "context_dim": 24, "use_linear_in_transformer": True, "num_classes": "sequential",
    "adm_in_channels": 20,
}  # fmt: skip
_SD1_BLOCK = {
    **_COMMON, "model_channels": 320, "num_res_blocks": [1], "channel_mult": [1],
    "transformer_depth": [1], "transformer_depth_middle": 1, "transformer_depth_output": [1, 1],
    "num_heads": 8, "context_dim": 768,
}  # fmt: skip
_FLUX_TINY = {
    "in_channels": 4, "out_channels": 4, "vec_in_dim": 12, "context_in_dim": 24,
    "hidden_size": 64, "mlp_ratio": 4.0, "num_heads": 4, "depth": 2, "depth_single_blocks": 2,
    "axes_dim": [4, 6, 6], "theta": 10000, "patch_size": 2, "qkv_bias": True,
    "guidance_embed": False,
}  # fmt: skip
_FLUX_BLOCK = {
    **_FLUX_TINY, "in_channels": 16, "out_channels": 16, "vec_in_dim": 768,
    "context_in_dim": 4096, "hidden_size": 3072, "num_heads": 24, "depth": 1,
    "depth_single_blocks": 1, "axes_dim": [16, 56, 56],
}  # fmt: skip
_SD3_TINY = {
    "input_size": None, "in_channels": 16, "depth": 2, "num_patches": 256,
    "pos_embed_max_size": 16, "adm_in_channels": 12, "context_size": 24, "qk_norm": "rms",
    "context_embedder_config": {"target": "torch.nn.Linear",
                                "params": {"in_features": 24, "out_features": 128}},
}  # fmt: skip

TWO = {192: (0, (16, 12), (2, 2)), 48: (0, (8, 6), (2, 2))}
_LOW = {48: (0, (8, 6), (2, 2)), 12: (0, (4, 3), (2, 2))}
_BY_TWO = {"factors": "2,2"}

KINDS = (
    Kind("SD1.5's UNet, tiny", _UNET, _SD1, _unet((16, 12), 24), TWO, _BY_TWO),
    Kind(
        "the same, weights in bf16 cast where used",
        _UNET, _SD1, _unet((16, 12), 24), TWO, _BY_TWO,
        operations="manual_cast", stored=torch.bfloat16, attentions=_TWO,
    ),
    Kind(
        "the same in bf16, attention in fp32 (SD2.1's way)",
        _UNET, {**_SD1, "attn_precision": torch.float32}, _unet((16, 12), 24), TWO, _BY_TWO,
        stored=torch.bfloat16, dtype=torch.bfloat16, attentions=_TWO,
    ),
    Kind("SDXL's UNet, tiny", _UNET, _SDXL, _unet((16, 12), 24, added=20), _LOW, _BY_TWO,
         attentions=_TWO),
    Kind(
        "SD1.5's largest blocks, real width, 32×32 tokens",
        _UNET, _SD1_BLOCK, _unet((32, 32), 768, tokens=77),
        {1024: (0, (32, 32), (2, 2))}, {"factors": "2"}, attentions=_TWO,
    ),
    Kind(
        "FLUX, tiny", _FLUX, _FLUX_TINY, _packed((16, 12), 4, 24, 12),
        {53: (5, (8, 6), (2, 2))}, {"factors": "2"}, attentions=EVERY[:3],
    ),
    Kind(
        "FLUX's blocks, real width, 16×16 tokens", _FLUX, _FLUX_BLOCK,
        _packed((32, 32), 16, 4096, 768), {261: (5, (16, 16), (2, 2))}, {"factors": "2"},
        attentions=_TWO,
    ),
    Kind(
        "SD3's MMDiT, tiny", _SD3, _SD3_TINY, lambda: {
            **{k: v for k, v in _packed((16, 12), 16, 24, 12)().items() if k != "timestep"},
            "timesteps": torch.tensor([500.0]),
        },
        {53: (5, (8, 6), (2, 2))}, {"factors": "2"}, attentions=_TWO,
    ),
)  # fmt: skip
