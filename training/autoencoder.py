"""Training of the autoencoder around the fixed linear latents.

Its decoder learns to invert them, its encoder to give them; neither waits for the other, nor for
the denoiser.
"""

from __future__ import annotations

import math
import os
import random
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import nn

from training.data import Scenes
from training.latents import CHANNELS, PATCH, Code
from training.stopping import asked_to_stop

Part = Literal["decoder", "encoder"]
PARTS: tuple[Part, ...] = ("decoder", "encoder")

LOG_VARIANCE = -12.0
"""What the encoder says of its own variance: next to nothing."""


@dataclass(frozen=True)
class Recipe:
    """Lengths in minutes of training (CPU) or steps (0: no limit by steps)."""

    channels: tuple[int, ...] = (16, 24, 48, 64)
    minutes: tuple[float, float] = (16.0, 3.0)
    steps: int = 0
    batch: int = 2
    rate: float = 3e-3
    noise: float = 0.08
    crop: int = 64
    seed: int = 0


def make_autoencoder(recipe: Recipe) -> Any:
    """An ``AutoencoderKL`` with Stable Diffusion's layout and factor 8, much narrower."""
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

    levels = len(recipe.channels)
    make: Any = AutoencoderKL  # its tuples are annotated as having one member
    return make(
        in_channels=3,
        out_channels=3,
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        block_out_channels=recipe.channels,
        layers_per_block=1,
        latent_channels=CHANNELS,
        norm_num_groups=8,
        sample_size=256,
        scaling_factor=1.0,
        use_quant_conv=False,
        use_post_quant_conv=False,
        force_upcast=False,
    )


class Trainer:
    """One half of the autoencoder at a time."""

    def __init__(
        self, recipe: Recipe, scenes: Scenes, code: Code, folder: Path, device: torch.device
    ) -> None:
        self.recipe = recipe
        self.scenes = scenes
        self.code = code
        self.device = device
        self.checkpoint = folder / "autoencoder.pt"
        torch.manual_seed(recipe.seed)
        self.model = make_autoencoder(recipe)
        _start_as_identity(self.model)
        self.model.to(device)
        self.optimisers = {
            part: torch.optim.AdamW(
                getattr(self.model, part).parameters(), lr=recipe.rate, betas=(0.9, 0.99)
            )
            for part in PARTS
        }
        self.seconds: dict[str, float] = {"decoder": 0.0, "encoder": 0.0}
        self.steps: dict[str, int] = {"decoder": 0, "encoder": 0}

    def save(self) -> None:
        """Write the checkpoint; a reader never sees half of it."""
        state = {
            "model": self.model.state_dict(),
            "optimisers": {part: made.state_dict() for part, made in self.optimisers.items()},
            "seconds": self.seconds,
            "steps": self.steps,
            "channels": self.recipe.channels,
        }
        partial = self.checkpoint.with_suffix(".partial")
        torch.save(state, partial)
        os.replace(partial, self.checkpoint)

    def resume(self) -> bool:
        """Take up the checkpoint, if there is one."""
        if not self.checkpoint.is_file():
            return False
        state = torch.load(self.checkpoint, map_location=self.device, weights_only=True)
        self.model.load_state_dict(state["model"])
        # The checkpoint behind the shipped weights is from before optimisers were kept.
        for part, held in state.get("optimisers", {}).items():
            self.optimisers[part].load_state_dict(held)
        self.seconds, self.steps = state["seconds"], state["steps"]
        return True

    def run(self, part: Part, *, save_every: float = 120.0, log_every: int = 50) -> bool:
        """Train one half to the end of its share of the recipe.

        Returns:
            whether it may go on from here: no, where a signal asked to stop. It is saved either
            way.
        """
        with asked_to_stop() as stop:
            self._train(part, stop, save_every, log_every)
            finished = self._fraction(part) >= 1
            if part == "encoder" and finished:
                self._fix_variance()
            self.save()
        return finished and not stop

    def _train(self, part: Part, stop: list[int], save_every: float, log_every: int) -> None:
        module: torch.nn.Module = getattr(self.model, part)
        optimiser = self.optimisers[part]
        saved = time.monotonic()
        losses: list[torch.Tensor] = []
        while (done := self._fraction(part)) < 1 and not stop:
            start = time.monotonic()
            step = self.steps[part]
            warm = min(1.0, (step + 1) / 50)
            for group in optimiser.param_groups:
                group["lr"] = (
                    self.recipe.rate * warm * max(0.5 + 0.5 * math.cos(math.pi * done), 0.02)
                )
            # Crops first: four times as many steps in the time. Whole tiles at the end, for the
            # attention and the norms, whose statistics are the whole picture's.
            images = self._images(step, crop=done < 0.7)
            loss = (
                self._decoder_loss(images, step)
                if part == "decoder"
                else self._encoder_loss(images)
            )
            loss.backward()
            torch.nn.utils.clip_grad_norm_(module.parameters(), 1.0)
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)
            losses.append(loss.detach())
            self.steps[part] += 1
            self.seconds[part] += time.monotonic() - start
            if self.steps[part] % log_every == 0:
                mean = torch.stack(losses).mean().item()
                if not math.isfinite(mean):
                    raise RuntimeError("The loss is not finite; lower the autoencoder's rate.")
                print(
                    f"{part} step {self.steps[part]}  {self.seconds[part] / 60:.1f} min  "
                    f"loss {mean:.4f}",
                    flush=True,
                )
                losses.clear()
            if time.monotonic() - saved > save_every:
                self.save()
                saved = time.monotonic()

    def psnr(self, *, pictures: int = 32) -> dict[str, float]:
        """Mean PSNR in dB on fresh tiles: through decoder alone, both halves, and the bare code."""
        totals = {"decoder": 0.0, "autoencoder": 0.0, "linear": 0.0}
        with torch.no_grad():
            for index in range(pictures):
                images = self._images(10_000_000 + index, batch=1)
                exact = self.code.encode(images)
                learnt = self.model.encode(images).latent_dist.mean
                for name, restored in (
                    ("decoder", self.model.decode(exact).sample),
                    ("autoencoder", self.model.decode(learnt).sample),
                    ("linear", self.code.decode(exact)),
                ):
                    error = ((restored.clamp(-1, 1) - images) / 2).square().mean().item()
                    totals[name] -= 10 * math.log10(error) / pictures
        return totals

    def _images(self, step: int, *, crop: bool = False, batch: int | None = None) -> torch.Tensor:
        rng = random.Random(self.recipe.seed * 7_000_003 + step)
        count = batch or self.recipe.batch
        whole = torch.from_numpy(
            np.stack([self.scenes.draw(rng, 1, 1)[0] for _ in range(count)])
        ).to(self.device)
        if not crop:
            return whole
        room = (whole.shape[-1] - self.recipe.crop) // PATCH
        top, left = (PATCH * rng.randint(0, room) for _ in range(2))
        return whole[..., top : top + self.recipe.crop, left : left + self.recipe.crop]

    def _decoder_loss(self, images: torch.Tensor, step: int) -> torch.Tensor:
        """Mean absolute error of pixels and of their differences to the right and below."""
        source = torch.Generator(self.device).manual_seed(step)
        latents = self.code.encode(images)
        # The denoiser's latents are never quite right: the decoder should not amplify its errors.
        noise = torch.randn(latents.shape, generator=source, device=self.device)
        restored = self.model.decode(latents + self.recipe.noise * noise).sample
        error = restored - images
        edges = error.diff(dim=-1).abs().mean() + error.diff(dim=-2).abs().mean()
        return error.abs().mean() + 0.5 * edges

    def _encoder_loss(self, images: torch.Tensor) -> torch.Tensor:
        mean = self.model.encoder(images)[:, :CHANNELS]
        return torch.nn.functional.mse_loss(mean, self.code.encode(images))

    def _fix_variance(self) -> None:
        with torch.no_grad():
            self.model.encoder.conv_out.weight[CHANNELS:] = 0
            self.model.encoder.conv_out.bias[CHANNELS:] = LOG_VARIANCE

    def _fraction(self, part: Part) -> float:
        minutes = self.recipe.minutes[0 if part == "decoder" else 1]
        by_time = self.seconds[part] / (60 * minutes) if minutes else 0.0
        by_steps = self.steps[part] / self.recipe.steps if self.recipe.steps else 0.0
        return min(1.0, max(by_time, by_steps))


def _start_as_identity(model: Any) -> None:
    """Let every residual branch begin at zero and every upsampling convolution pass its input on.

    The network then starts as an interpolation of its latents, and learns several times faster.
    """
    for module in model.modules():
        name = type(module).__name__
        if name == "ResnetBlock2D":
            nn.init.zeros_(module.conv2.weight)
            nn.init.zeros_(module.conv2.bias)
        elif name == "Attention":
            nn.init.zeros_(module.to_out[0].weight)
            nn.init.zeros_(module.to_out[0].bias)
        elif name == "Upsample2D":
            nn.init.dirac_(module.conv.weight)
            with torch.no_grad():
                module.conv.weight += 0.02 * torch.randn_like(module.conv.weight)
