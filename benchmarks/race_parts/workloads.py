"""What runs: one call of a model's part at one size, with seeded random weights and inputs.

``plain``, ``tiny`` and ``block`` (one transformer of SD1.5's largest grid) need torch alone. Of the
transformer models only some layers are kept, all of full width: a layer costs the same in a long
stack.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from plain_unet import PlainUNet, Transformer
from torch import Tensor, nn

from todo_compile.options import DEFAULT_KV_TOKENS

TINY: dict[str, Any] = {"widths": (8, 16, 16), "text": 12, "heads": 2, "groups": 4, "layers": 1}
_WIDTH = 320
_STACKS: dict[str, dict[str, int]] = {
    "sd3": {"num_layers": 4},
    "pixart": {"num_layers": 4},
    "flux": {"num_layers": 1, "num_single_layers": 2},
}


@dataclass(frozen=True)
class Workload:
    """A module, its inputs at one size, and what the compiler is told of it.

    Attributes:
        name, px, batch, precision: what a row is known by; batch 2 is one image with guidance.
        module: in eval mode; called with `inputs`, gives one tensor.
        kv_tokens: the bound of the default plan.
        token_grids: of packed image tokens.
        about: what is left out of the real model, for the row.
    """

    name: str
    px: int
    batch: int
    precision: str
    module: nn.Module
    inputs: tuple[Tensor, ...]
    kv_tokens: int = DEFAULT_KV_TOKENS
    token_grids: Mapping[int, tuple[int, int]] = field(default_factory=dict[int, tuple[int, int]])
    about: str = ""


class Keywords(nn.Module):
    """A diffusers module called by position."""

    def __init__(self, module: nn.Module, names: tuple[str, ...]) -> None:
        super().__init__()
        self.module, self.names = module, names

    def forward(self, *inputs: Tensor) -> Tensor:
        named = dict(zip(self.names, inputs, strict=True))
        return self.module(**named, return_dict=False)[0]


class Block(nn.Module):
    """A convolution and a transformer of SD1.5's largest grid: image and text → image."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(_WIDTH, _WIDTH, 3, padding=1)
        self.transformer = Transformer(_WIDTH, 768, heads=8, groups=32)

    def forward(self, image: Tensor, text: Tensor) -> Tensor:
        return self.transformer(self.conv(image), text)


class Coded(nn.Module):
    """An autoencoder's way to its latents: (B, 3, H, W) → (B, 2·channels, h, w)."""

    def __init__(self, vae: Any) -> None:
        super().__init__()
        self.encoder, self.quant = vae.encoder, vae.quant_conv

    def forward(self, image: Tensor) -> Tensor:
        return self.quant(self.encoder(image))


@contextmanager
def _made(dtype: torch.dtype, seed: int = 0) -> Generator[None]:
    """Modules made here have seeded weights of `dtype`."""
    before = torch.get_default_dtype()
    torch.manual_seed(seed)
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def make_module(name: str, dtype: torch.dtype, device: str) -> Any:
    """The weights of a workload: made once for all of its sizes."""
    if name in ("plain", "tiny"):
        made: nn.Module = PlainUNet(**(TINY if name == "tiny" else {}))
    elif name in ("sd15", "sdxl", "vae-decode"):
        return _registered(name, dtype, device)
    else:
        with _made(dtype):
            made = _built(name)
    return made.eval().requires_grad_(False).to(device, dtype)


def _registered(name: str, dtype: torch.dtype, device: str) -> Any:
    """A model with the compiler's own seeded weights."""
    from todo_compile import models

    component = "vae_decoder" if name == "vae-decode" else "unet"
    source = models.resolve_component("sd15" if name == "vae-decode" else name, component)
    weights = models.find_weights(source, models.WeightsChoice.parse("random"), dtype=dtype)
    loaded = models.load(source, weights, dtype=dtype, hashed=False)
    loaded.module.to(device)
    return loaded


def _built(name: str) -> nn.Module:
    if name == "block":
        return Block()
    from todo_compile import models

    if name == "vae-encode":
        from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

        source = models.resolve_component("sd15", "vae_decoder")
        return Coded(AutoencoderKL.from_config(dict(source.config)))
    import diffusers

    config = {**models.resolve(name).config, **_STACKS[name]}
    return getattr(diffusers, str(config["_class_name"])).from_config(config)


def workload(
    name: str, made: Any, px: int, batch: int, precision: str, dtype: torch.dtype, device: str
) -> Workload:
    """`made`, from `make_module`, with inputs for images of `px` × `px`."""
    if name in ("sd15", "sdxl", "vae-decode"):
        from todo_compile import models
        from todo_compile.capture.inputs import example_inputs

        example = example_inputs(made, models.Resolution(px, px), batch=batch)
        # A VAE's attention sees what the UNet's largest grid does.
        kept = DEFAULT_KV_TOKENS if name == "vae-decode" else made.source.native.kv_tokens
        inputs = tuple(one.to(device) for one in example.args)
        return Workload(name, px, batch, precision, example.wrapper, inputs, kept)
    generator = torch.Generator().manual_seed(0)

    def noise(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(device, dtype)

    side = px // 8
    makers: dict[str, Callable[[], dict[str, Tensor]]] = {
        "plain": lambda: _unet(noise, px, batch, 768),
        "tiny": lambda: _unet(noise, px, batch, TINY["text"]),
        "block": lambda: {
            "image": noise(batch, _WIDTH, side, side),
            "text": noise(batch, 77, 768),
        },
        "sd3": lambda: _sd3(noise, px, batch),
        "pixart": lambda: _pixart(noise, px, batch),
        "flux": lambda: _flux(noise, px, batch),
        "vae-encode": lambda: {"image": noise(batch, 3, px, px)},
    }
    inputs = {key: value.to(device) for key, value in makers[name]().items()}
    module = cast("nn.Module", made)
    if name in _STACKS:
        module = Keywords(module, tuple(inputs)).eval()
    packed = px // 16
    return Workload(
        name,
        px,
        batch,
        precision,
        module,
        tuple(inputs.values()),
        kv_tokens=16 if name == "tiny" else DEFAULT_KV_TOKENS,
        token_grids={packed * packed: (packed, packed)} if name == "flux" else {},
        about=", ".join(f"{k} {v}" for k, v in _STACKS.get(name, {}).items()),
    )


WORKLOADS = (
    "plain", "tiny", "block", "sd15", "sdxl", "sd3", "pixart", "flux", "vae-decode", "vae-encode",
)  # fmt: skip
_Noise = Callable[..., Tensor]


def _unet(noise: _Noise, px: int, batch: int, text: int) -> dict[str, Tensor]:
    side = px // 8
    return {
        "sample": noise(batch, 4, side, side),
        "timestep": torch.full((batch,), 500.0),
        "text": noise(batch, 77, text),
    }


def _sd3(noise: _Noise, px: int, batch: int) -> dict[str, Tensor]:
    side = px // 8
    return {
        "hidden_states": noise(batch, 16, side, side),
        "encoder_hidden_states": noise(batch, 333, 4096),
        "pooled_projections": noise(batch, 2048),
        "timestep": torch.full((batch,), 500.0),
    }


def _pixart(noise: _Noise, px: int, batch: int) -> dict[str, Tensor]:
    side = px // 8
    return {
        "hidden_states": noise(batch, 4, side, side),
        "encoder_hidden_states": noise(batch, 300, 4096),
        "timestep": torch.full((batch,), 500.0),
    }


def _flux(noise: _Noise, px: int, batch: int) -> dict[str, Tensor]:
    side = px // 16
    rows, columns = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    places = torch.stack([torch.zeros_like(rows), rows, columns], dim=-1).flatten(0, 1)
    return {
        "hidden_states": noise(batch, side * side, 64),
        "encoder_hidden_states": noise(batch, 512, 4096),
        "pooled_projections": noise(batch, 768),
        "timestep": torch.full((batch,), 0.5),
        "img_ids": places.float(),
        "txt_ids": torch.zeros(512, 3),
        "guidance": torch.full((batch,), 3.5),
    }
