"""Inputs to measure drift with: seeded latents that look like noised pictures, and timesteps.

A latent of pure noise has no redundancy between neighbours and would make downsampling look worse
than it is. So the clean latent is a Gaussian field of unit variance whose amplitude falls as 1/f,
as that of natural pictures does (Field, J. Opt. Soc. Am. A 4, 1987), noised as the model's
scheduler does: x_t = √ᾱ_t · x₀ + √(1 − ᾱ_t) · ε.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from todo_compile.drift.measure import Probe
from todo_compile.errors import ConfigError, ModelError, first_line
from todo_compile.models.trust import read_scheduler

if TYPE_CHECKING:
    from todo_compile.models import LoadedModel, Resolution, Source

_BETAS = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
"""Stable Diffusion's noise schedule, where no scheduler lies beside the model."""


def structured_latents(shape: Sequence[int], generator: torch.Generator) -> torch.Tensor:
    """(B, C, H, W) of zero mean and unit variance with amplitudes ∝ 1/f."""
    rows, columns = shape[-2:]
    noise = torch.fft.rfft2(torch.randn(tuple(shape), generator=generator))
    frequency = torch.hypot(
        torch.fft.fftfreq(rows)[:, None] * rows, torch.fft.rfftfreq(columns)[None] * columns
    )
    field = torch.fft.irfft2(noise / frequency.clamp(min=1), s=(rows, columns))
    field = field - field.mean((-2, -1), keepdim=True)
    return field / field.std((-2, -1), keepdim=True).clamp(min=1e-12)


def alphas_cumprod(source: Source) -> torch.Tensor:
    """ᾱ by training timestep, from the scheduler beside the model, else Stable Diffusion's.

    Raises:
        ModelError: that scheduler's configuration cannot be read, or makes no schedule.
    """
    from diffusers.schedulers.scheduling_ddpm import DDPMScheduler

    folder = source.folder.parent / "scheduler" if source.folder is not None else Path("nowhere")
    path = folder / "scheduler_config.json"
    made: Any = DDPMScheduler
    try:
        values = read_scheduler(path) if path.is_file() else _BETAS
        alphas: torch.Tensor = made.from_config(values).alphas_cumprod
        if not bool(((alphas >= 0) & (alphas <= 1)).all()):
            raise ValueError("its noise is not between none and all")
    except Exception as error:  # whatever a configuration from elsewhere sets off
        raise ModelError(
            f"{path} makes no schedule of noise: {first_line(error)}",
            remedy="Copy it from the model's origin anew.",
        ) from error
    return alphas


def even_timesteps(steps: int, trained: int) -> tuple[int, ...]:
    """`steps` timesteps in the middles of equal parts of the schedule, noisiest first."""
    return tuple(int((steps - i - 0.5) * trained / steps) for i in range(steps))


def make_probes(
    model: LoadedModel,
    resolution: Resolution,
    *,
    steps: int = 5,
    seeds: int = 2,
    batch: int = 1,
) -> list[Probe]:
    """Noised structured latents for `steps` timesteps × `seeds` seeds.

    Conditions (text, labels) are those of `example_inputs`: seeded normal numbers, the same for all
    timesteps of a seed.

    Raises:
        ConfigError: no steps or seeds, or a resolution that the model cannot take.
    """
    from todo_compile.capture.inputs import example_inputs

    if steps < 1 or seeds < 1:
        raise ConfigError("Drift needs at least one timestep and one seed.")
    alphas = alphas_cumprod(model.source)
    timesteps = even_timesteps(steps, len(alphas))
    probes: list[Probe] = []
    for seed in range(seeds):
        inputs = example_inputs(model, resolution, batch=batch, seed=seed)
        names = inputs.input_names
        latent = names.index("sample" if "sample" in names else "hidden_states")
        generator = torch.Generator().manual_seed(seed)
        clean = structured_latents(inputs.specs[latent].shape, generator)
        noise = torch.randn(clean.shape, generator=generator)
        for timestep in timesteps:
            args = list(inputs.args)
            kept = alphas[timestep]
            noised = kept.sqrt() * clean + (1 - kept).sqrt() * noise
            args[latent] = noised.to(inputs.specs[latent].dtype)
            time = names.index("timestep")
            args[time] = torch.full_like(args[time], timestep)
            probes.append(Probe(float(timestep), tuple(args)))
    return probes
