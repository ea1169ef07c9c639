"""The pipeline under test: its parts, prompts, noise, and the loop that all settings share.

The loop is DDIM without noise (Song et al., arXiv 2010.02502) with classifier-free guidance. A
setting is a function from (latents, timestep, text) to the prediction; dense and rewritten ones
meet the same latents, text and scheduler, so nothing else differs.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from todo_compile.errors import ModelError

Denoise = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
"""(2B, C, h, w), (1,), (2B, T, D) → (2B, C, h, w)."""

_PROMPTS = (
    "a photo of a cat sitting on a wooden table", "a red apple on a plate",
    "a mountain lake at sunrise", "a street in an old town, rainy evening",
    "a portrait of an old fisherman, oil painting", "a bowl of noodles with vegetables",
    "a white sailing boat on the sea", "a field of sunflowers under a blue sky",
    "an astronaut riding a horse", "a small house in a snowy forest",
    "a macro photo of a bee on a flower", "a city skyline at night",
    "a steam train crossing a bridge", "a library with tall shelves", "a golden retriever puppy",
    "a glass of orange juice",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Pair:
    """A prompt and a seed."""

    prompt: str
    seed: int

    @property
    def key(self) -> str:
        return hashlib.sha256(f"{self.prompt}\n{self.seed}".encode()).hexdigest()[:16]


class Wrapped(torch.nn.Module):
    """The UNet with the signature that the compiler gives it."""

    def __init__(self, unet: torch.nn.Module) -> None:
        super().__init__()
        self.unet = unet

    def forward(
        self, sample: torch.Tensor, timestep: torch.Tensor, text: torch.Tensor
    ) -> torch.Tensor:
        return self.unet(sample, timestep, text, return_dict=False)[0]


class Model:
    """A `StableDiffusionPipeline` folder, loaded in fp32.

    Raises:
        ModelError: it cannot be loaded.
    """

    def __init__(self, folder: Path, *, device: str = "cpu") -> None:
        from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import (
            StableDiffusionPipeline,
        )
        from diffusers.schedulers.scheduling_ddim import DDIMScheduler

        try:
            pipe: Any = StableDiffusionPipeline.from_pretrained(
                str(folder), torch_dtype=torch.float32, safety_checker=None
            )
        except (OSError, ValueError) as error:
            raise ModelError(f"{folder} cannot be loaded: {error}") from error
        self.device = device
        self.pipe = pipe.to(device)
        self.unet: Any = pipe.unet.eval()
        # From the file: the pipeline's constructor alters the configuration that it is given.
        self.scheduler: Any = DDIMScheduler.from_pretrained(str(folder), subfolder="scheduler")
        self.scale = int(pipe.vae_scale_factor)
        if type(pipe.vae).__name__ == "AutoencoderTiny":
            channels = pipe.vae.config.encoder_block_out_channels
            self.scale = 2 ** (len(channels) - 1)
        self.native = int(self.unet.config.sample_size) * self.scale
        self.folder = folder
        self.identity = _identity(folder)

    def prompts(self, file: Path | None) -> list[str]:
        """One a line of `file`, of ``prompts.txt`` beside the model, or a few general ones.

        Raises:
            SystemExit: there is no such `file`, or it names none.
        """
        own = file or self.folder / "prompts.txt"
        if not own.is_file():
            if file is not None:
                raise SystemExit(f"{file} is no file of prompts.")
            return list(_PROMPTS)
        lines = [line.strip() for line in own.read_text(encoding="utf-8").splitlines()]
        found = [line for line in lines if line and not line.startswith("#")]
        if not found:
            raise SystemExit(f"{own} names no prompt: write one a line.")
        return found

    def encode(self, prompts: Sequence[str]) -> torch.Tensor:
        """(2B, T, D): the empty prompt B times, then the prompts."""
        with torch.no_grad():
            blank = [""] * len(prompts)
            text, empty = self.pipe.encode_prompt(list(prompts), self.device, 1, True, blank)
        return torch.cat([empty, text])

    def noise(self, pairs: Sequence[Pair], side: int) -> torch.Tensor:
        """Seeded for each pair alone, so that batches do not matter."""
        shape = (1, int(self.unet.config.in_channels), side // self.scale, side // self.scale)
        drawn = [torch.randn(shape, generator=torch.Generator().manual_seed(p.seed)) for p in pairs]
        return torch.cat(drawn).to(self.device) * self.scheduler.init_noise_sigma

    def sample(
        self,
        pairs: Sequence[Pair],
        side: int,
        steps: int,
        guidance: float,
        denoise: Callable[[int], Denoise],
        tick: Callable[[], None] = lambda: None,
    ) -> torch.Tensor:
        """Pictures (B, 3, side, side) in [0, 1].

        Args:
            denoise: step → the function that predicts at that step.
            tick: called after each step.
        """
        text, latents = self.encode([p.prompt for p in pairs]), self.noise(pairs, side)
        self.scheduler.set_timesteps(steps)
        with torch.no_grad():
            for index, timestep in enumerate(self.scheduler.timesteps):
                doubled = self.scheduler.scale_model_input(torch.cat([latents] * 2), timestep)
                time = timestep.reshape(1).to(self.device, torch.float32)
                empty, prompted = denoise(index)(doubled, time, text).chunk(2)
                guided = empty + guidance * (prompted - empty)
                latents = self.scheduler.step(guided, timestep, latents).prev_sample
                tick()
            return self.decode(latents)

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """Latents as pictures in [0, 1]."""
        config = self.pipe.vae.config
        latents = latents / config.scaling_factor + (getattr(config, "shift_factor", None) or 0)
        decoded = [self.pipe.vae.decode(one[None], return_dict=False)[0] for one in latents]
        return (torch.cat(decoded) / 2 + 0.5).clamp(0, 1)


def _identity(folder: Path) -> str:
    """Changes with the weights and the configuration."""
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        if path.suffix in (".safetensors", ".bin", ".json") and path.is_file():
            digest.update(path.name.encode())
            with path.open("rb") as file:
                for block in iter(lambda: file.read(1 << 22), b""):
                    digest.update(block)
    return digest.hexdigest()[:16]
