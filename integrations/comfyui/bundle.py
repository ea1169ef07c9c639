"""A bundle's denoiser and VAE as ComfyUI calls them; nothing here imports ComfyUI."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from todo_compile import load
from todo_compile.bundle.bundle import read_bundle
from todo_compile.errors import ConfigError, InputError
from todo_compile.runtime.compiled import CompiledError

COMPONENT = "unet"
_PATCHES = ("patches", "patches_replace")
"""What `transformer_options` has where a node changed attention or blocks."""


class Denoiser(nn.Module):
    """A compiled UNet with the call of ComfyUI's own: (x, timesteps, context, …)."""

    unet: Any

    def __init__(self, unet: Any) -> None:
        super().__init__()
        # No submodule: ComfyUI moves a MODEL's modules between its devices, and an engine stays.
        self.__dict__["unet"] = unet
        self.calls = 0

    @property
    def dtype(self) -> torch.dtype:
        """What the sampler gives its latents in."""
        return self.unet.dtype

    def forward(
        self,
        x: Tensor,
        timesteps: Tensor,
        context: Tensor,
        y: Tensor | None = None,
        control: Any = None,
        transformer_options: Any = None,
        **more: Any,
    ) -> Tensor:
        """One step, on the engine's device and in its precision; the result is back where x was.

        Args:
            x: (B, 4, H, W), latents as the model takes them.
            timesteps: (B,), all equal.
            context: (B, tokens, width), text.

        Raises:
            InputError: something is asked for that the engine does not have.
        """
        self.calls += 1
        patched = [name for name in _PATCHES if (transformer_options or {}).get(name)]
        asked = {"y (SDXL)": y, "ControlNet": control, **more, **dict.fromkeys(patched, "patched")}
        if given := [name for name, value in asked.items() if value is not None]:
            raise InputError(
                f"The bundle's denoiser takes no {', '.join(given)}.",
                remedy="Use it with Stable Diffusion 1 and 2 alone, without ControlNets and nodes "
                "that patch a MODEL; or the node ToDo compile, which takes all.",
            )
        if bool((timesteps != timesteps[0]).any()):
            raise InputError(
                "The rows of a step have different timesteps, and an engine takes one.",
                remedy="Use the node ToDo compile for such samplers.",
            )
        own = {"device": self.unet.device, "dtype": self.unet.dtype}
        found = self.unet(x.to(**own), timesteps[0].to(self.unet.device), context.to(**own)).sample
        return found.to(x)


def instead(denoiser: Denoiser) -> Callable[..., Tensor]:
    """A wrapper of a MODEL's `apply_model` that puts `denoiser` in place for one step.

    The checkpoint's own is there again after it: what looks for its weights (loaders of LoRAs in
    the next workflow) finds them.
    """

    def step(executor: Any, *args: Any, **keywords: Any) -> Tensor:
        base = executor.class_obj
        if getattr(base.current_patcher, "patches", None):
            raise InputError(
                "A LoRA, or another patch of weights, is on this MODEL, and a bundle has its own.",
                remedy="Leave it out, and build the bundle with --lora.",
            )
        own, before = base.diffusion_model, denoiser.calls
        base.diffusion_model = denoiser
        try:
            found = executor(*args, **keywords)
        finally:
            base.diffusion_model = own
        if denoiser.calls == before:
            raise InputError(
                "Another node put another denoiser in the place of the bundle's.",
                remedy="Leave out nodes that compile this MODEL: the bundle is compiled.",
            )
        return found

    return step


class Decoder:
    """A compiled VAE with the part of ComfyUI's that nodes call: latents to pictures."""

    def __init__(self, vae: Any) -> None:
        self.vae = vae

    def decode(self, samples: Tensor, **_: Any) -> Tensor:
        """(B, 4, H, W) latents, unscaled as ComfyUI has them → (B, height, width, 3) in [0, 1]."""
        latents = samples.to(device=self.vae.device, dtype=self.vae.dtype)
        pictures = self.vae.decode(latents).sample
        return (pictures.float() / 2 + 0.5).clamp(0, 1).movedim(1, -1).to(samples.device)

    def __getattr__(self, name: str) -> NoReturn:
        """What ComfyUI's has besides: encoding, decoding in tiles, ….

        Raises:
            CompiledError: always; an AttributeError too, for those who only ask.
        """
        raise CompiledError(
            f"A bundle's VAE decodes alone, and whole: it has no {name}.",
            remedy="Use the checkpoint's own VAE there.",
        )


def open_parts(folder: str) -> tuple[Denoiser, Decoder]:
    """The denoiser and VAE of a bundle.

    Raises:
        BundleError: it is no bundle, or damaged.
        ConfigError: ComfyUI could not call what it holds.
    """
    path = Path(folder).expanduser()
    bundle = read_bundle(path)
    if bundle.pipeline_class != "StableDiffusionPipeline" or bundle.phases:
        raise ConfigError(
            f"{folder} is of {bundle.pipeline_class}"
            + (", with several phases" if bundle.phases else "")
            + ": the node takes bundles of Stable Diffusion 1 and 2 with one denoiser.",
            remedy="Build one without --dense-after and --plan, or use the node ToDo compile.",
        )
    absent = [name for name in (COMPONENT, "vae_decoder") if name not in bundle.components]
    if absent:
        raise ConfigError(
            f"{folder} has no {', '.join(absent)}.", remedy="Build a bundle of all components."
        )
    return Denoiser(load(path, component=COMPONENT)), Decoder(load(path, component="vae_decoder"))
