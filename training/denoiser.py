"""Training of the UNet and, with it, of the text encoder, on the fixed linear latents."""

from __future__ import annotations

import copy
import math
import os
import random
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from training.data import Scenes
from training.latents import CHANNELS, Code
from training.stopping import asked_to_stop
from training.text import WIDTH, make_text_encoder, make_tokenizer

TIMESTEPS = 1000
_EMA_EVERY = 4
"""Steps between updates of the average: it costs a pass over all weights."""


@dataclass(frozen=True)
class Shape:
    """One kind of training batch: `batch` canvases of `rows` × `columns` tiles, with a weight."""

    rows: int
    columns: int
    batch: int
    weight: float


@dataclass(frozen=True)
class Recipe:
    """Everything that decides a run, beside the device.

    Attributes:
        channels: of the UNet's levels.
        heads: attention heads of each level.
        mix: kinds of batches; mostly single tiles, the rest so that large sizes, many tokens and
            sides of unequal length are in distribution too.
        rate: peak learning rate; it falls to zero over the run by a half cosine.
        steps: length of the run in steps; 0: only `minutes` counts.
        minutes: length of the run in minutes of training, over all resumed parts; 0: only `steps`.
        ema: decay of the averaged weights, which are the ones that ship.
        drop: share of prompts replaced by the empty one, for classifier-free guidance.
    """

    channels: tuple[int, ...] = (40, 80, 160)
    heads: tuple[int, ...] = (1, 2, 4)
    mix: tuple[Shape, ...] = (
        Shape(1, 1, 16, 0.58),
        Shape(2, 2, 4, 0.18),
        Shape(1, 2, 8, 0.04),
        Shape(2, 1, 8, 0.04),
        Shape(2, 3, 3, 0.03),
        Shape(3, 2, 3, 0.03),
        Shape(3, 3, 2, 0.04),
        Shape(4, 4, 1, 0.06),
    )
    rate: float = 1.5e-3
    steps: int = 0
    minutes: float = 50.0
    ema: float = 0.985
    drop: float = 0.1
    seed: int = 0


def make_unet(recipe: Recipe) -> Any:
    """A ``UNet2DConditionModel`` laid out as SD1.5's, three levels deep."""
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

    make: Any = UNet2DConditionModel  # its tuples are annotated as having one member
    return make(
        # What most pictures of the training are: single tiles of 128 px.
        sample_size=16,
        in_channels=CHANNELS,
        out_channels=CHANNELS,
        block_out_channels=recipe.channels,
        layers_per_block=1,
        # Heads, in spite of its name; see diffusers' own comment on the argument.
        attention_head_dim=recipe.heads,
        cross_attention_dim=WIDTH,
        norm_num_groups=8,
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
    )


def make_scheduler() -> Any:
    """DDIM on Stable Diffusion's schedule, rescaled so that the last step is pure noise.

    Lin et al., "Common Diffusion Noise Schedules and Sample Steps are Flawed" (2305.08891): zero
    terminal SNR, v-prediction and trailing timesteps belong together.
    """
    from diffusers.schedulers.scheduling_ddim import DDIMScheduler

    return DDIMScheduler(
        num_train_timesteps=TIMESTEPS,
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=True,
        steps_offset=1,
        prediction_type="v_prediction",
        timestep_spacing="trailing",
        rescale_betas_zero_snr=True,
    )


@dataclass
class Progress:
    """How far a run is: counted steps and pictures, and seconds spent in them."""

    step: int = 0
    images: int = 0
    seconds: float = 0.0

    def fraction(self, recipe: Recipe) -> float:
        """0 at the start, 1 at the end: whichever of steps and time is further."""
        by_steps = self.step / recipe.steps if recipe.steps else 0.0
        by_time = self.seconds / (60 * recipe.minutes) if recipe.minutes else 0.0
        return min(1.0, max(by_steps, by_time))


@dataclass
class Trainer:
    """UNet, text encoder, their average and the optimiser, on one device."""

    recipe: Recipe
    scenes: Scenes
    code: Code
    folder: Path
    device: torch.device
    progress: Progress = field(default_factory=Progress)

    def __post_init__(self) -> None:
        torch.manual_seed(self.recipe.seed)
        self.tokenizer = make_tokenizer(self.folder / "tokenizer", self.scenes.subjects)
        self.unet = make_unet(self.recipe).to(self.device)
        self.text = make_text_encoder(self.tokenizer).to(self.device)
        self.average = copy.deepcopy(torch.nn.ModuleDict({"unet": self.unet, "text": self.text}))
        self.average.requires_grad_(False).eval()
        self.optimiser = torch.optim.AdamW(
            self._parameters(),
            lr=self.recipe.rate,
            betas=(0.9, 0.99),
            weight_decay=0.01,
            fused=True,
        )
        self.alphas = make_scheduler().alphas_cumprod.to(self.device)

    @property
    def checkpoint(self) -> Path:
        """The file that a run resumes from."""
        return self.folder / "denoiser.pt"

    def save(self) -> None:
        """Write the checkpoint; a reader never sees half of it."""
        state = {
            "unet": self.unet.state_dict(),
            "text": self.text.state_dict(),
            "average": self.average.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "progress": asdict(self.progress),
            "recipe": asdict(self.recipe),
        }
        partial = self.checkpoint.with_suffix(".partial")
        torch.save(state, partial)
        os.replace(partial, self.checkpoint)

    def resume(self) -> bool:
        """Take up the checkpoint, if there is one."""
        if not self.checkpoint.is_file():
            return False
        state = torch.load(self.checkpoint, map_location=self.device, weights_only=True)
        self.unet.load_state_dict(state["unet"])
        self.text.load_state_dict(state["text"])
        self.average.load_state_dict(state["average"])
        self.optimiser.load_state_dict(state["optimiser"])
        for group in self.optimiser.param_groups:
            group.update(fused=True, foreach=None)
        self.progress = Progress(**state["progress"])
        return True

    def run(self, *, save_every: float = 120.0, log_every: int = 20) -> bool:
        """Train to the end of the recipe, saving every `save_every` seconds.

        Returns:
            whether it may go on from here: no, where a signal asked to stop. It is saved either
            way.
        """
        with asked_to_stop() as stop:
            self._train(stop, save_every, log_every)
            if not _rank():
                self.save()
        return not stop and self.progress.fraction(self.recipe) >= 1

    def _train(self, stop: list[int], save_every: float, log_every: int) -> None:
        saved = time.monotonic()
        losses: list[torch.Tensor] = []
        while self.progress.fraction(self.recipe) < 1 and not stop:
            losses.append(self._step())
            if _rank():
                continue
            if self.progress.step % log_every == 0:
                mean = torch.stack(losses).mean().item()
                if not math.isfinite(mean):
                    raise RuntimeError("The loss is not finite; resume with a lower --rate.")
                done = self.progress
                print(
                    f"step {done.step}  images {done.images}  {done.seconds / 60:.1f} min  "
                    f"loss {mean:.4f}  rate {self._rate():.1e}",
                    flush=True,
                )
                losses.clear()
            if time.monotonic() - saved > save_every:
                self.save()
                saved = time.monotonic()

    def _step(self) -> torch.Tensor:
        start = time.monotonic()
        # The step's number is the seed, so a resumed run sees the pictures that it would have.
        seed = self.recipe.seed * 1_000_003 + self.progress.step
        shape = random.Random(seed).choices(self.recipe.mix, [s.weight for s in self.recipe.mix])[0]
        rng = random.Random(seed * 64 + _rank() + 1)
        noise_source = torch.Generator(self.device).manual_seed(rng.getrandbits(60))
        share = max(1, shape.batch // _workers())
        # All subjects in turn: an even batch has the less noisy gradient.
        first = (self.progress.step * _workers() + _rank()) * share
        drawn = [
            self.scenes.draw(rng, shape.rows, shape.columns, self.scenes.deal(first + i))
            for i in range(share)
        ]
        images = torch.stack([torch.from_numpy(canvas) for canvas, _ in drawn]).to(self.device)
        prompts = ["" if rng.random() < self.recipe.drop else prompt for _, prompt in drawn]
        loss = self._loss(self.code.encode(images), prompts, noise_source)
        loss.backward()
        self._average_over_workers()
        torch.nn.utils.clip_grad_norm_(self._parameters(), 1.0)
        for group in self.optimiser.param_groups:
            group["lr"] = self._rate()
        self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)
        self._update_average()
        self.progress.images += share * _workers()
        self.progress.step += 1
        self.progress.seconds += time.monotonic() - start
        return loss.detach()

    def _average_over_workers(self) -> None:
        """Mean of the gradients; the clock is worker 0's, so that all keep one learning rate."""
        if _workers() == 1:
            return
        clock = torch.tensor([self.progress.seconds], dtype=torch.float32, device=self.device)
        gradients = [p.grad for p in self._parameters() if p.grad is not None]
        whole = torch.cat([g.flatten() for g in gradients])
        dist.all_reduce(whole)
        whole /= _workers()
        for gradient, part in zip(
            gradients, whole.split([g.numel() for g in gradients]), strict=True
        ):
            gradient.copy_(part.view_as(gradient))
        dist.broadcast(clock, 0)
        self.progress.seconds = clock.item()

    def _loss(
        self, latents: torch.Tensor, prompts: list[str], source: torch.Generator
    ) -> torch.Tensor:
        """Mean square error of v, weighted by the noise's share of the variance.

        A network of this size cannot tell faint noise from detail; without the weight it spends
        its short training on trying.
        """
        batch = latents.shape[0]
        # One timestep from each of `batch` equal strata: less variance than independent draws.
        strata = torch.rand(batch, generator=source, device=self.device)
        strata = (strata + torch.arange(batch, device=self.device)) / batch
        # The exponent favours noisy steps, where it is decided what the picture shows.
        timesteps = (strata**0.5 * TIMESTEPS).long().clamp(max=TIMESTEPS - 1)
        noise = torch.randn(latents.shape, generator=source, device=self.device)
        kept = self.alphas[timesteps].sqrt()[:, None, None, None]
        lost = (1 - self.alphas[timesteps]).sqrt()[:, None, None, None]
        tokens = self.tokenizer(
            prompts, padding="max_length", truncation=True, return_tensors="pt"
        ).input_ids.to(self.device)
        context = self.text(tokens)[0]
        velocity = self.unet(kept * latents + lost * noise, timesteps, context).sample
        error = (velocity - (kept * noise - lost * latents)).square()
        return (lost.square().clamp(min=0.15) * error).mean()

    def _rate(self) -> float:
        warm = min(1.0, (self.progress.step + 1) / 100)
        fall = 0.5 * (1 + math.cos(math.pi * self.progress.fraction(self.recipe)))
        return self.recipe.rate * warm * max(fall, 0.02)

    def _update_average(self) -> None:
        step = self.progress.step
        if step % _EMA_EVERY:
            return
        decay = min(self.recipe.ema, (1 + step) / (10 + step)) ** _EMA_EVERY
        with torch.no_grad():
            for mean, now in zip(self.average.parameters(), self._parameters(), strict=True):
                mean.lerp_(now, 1 - decay)

    def _parameters(self) -> list[torch.nn.Parameter]:
        return [*self.unet.parameters(), *self.text.parameters()]


def _rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def _workers() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1
