"""Schedulers by short names."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from todo_compile import packages
from todo_compile.errors import BundleError, ConfigError, first_line
from todo_compile.foreign import ForeignError
from todo_compile.models.trust import read_scheduler

SCHEDULERS: dict[str, tuple[str, dict[str, Any]]] = {
    "ddim": ("DDIMScheduler", {}),
    "ddpm": ("DDPMScheduler", {}),
    "pndm": ("PNDMScheduler", {}),
    "lms": ("LMSDiscreteScheduler", {}),
    "heun": ("HeunDiscreteScheduler", {}),
    "euler": ("EulerDiscreteScheduler", {}),
    "euler-a": ("EulerAncestralDiscreteScheduler", {}),
    "dpm++": ("DPMSolverMultistepScheduler", {}),
    "dpm++-karras": ("DPMSolverMultistepScheduler", {"use_karras_sigmas": True}),
    "unipc": ("UniPCMultistepScheduler", {}),
    "lcm": ("LCMScheduler", {}),
}
"""Short name → class of diffusers, and settings beyond the model's own."""

_TRIED = 12  # PNDM's way of starting takes ten steps
_COPY = "Copy the model's scheduler/scheduler_config.json anew, or hand over a scheduler."


def make_scheduler(wanted: Any, folder: Path | Mapping[str, Any] | None) -> Any:
    """A scheduler with the model's noise schedule.

    Args:
        wanted: an instance (returned as it is), a short name, a class name of diffusers, or None
            for the class that the model's configuration names.
        folder: with the model's ``scheduler_config.json``, or its content; None if there is none.

    Raises:
        ConfigError: no such scheduler, or none for this model.
        BundleError: there is no configuration to make one from, or it is damaged.
        MissingPackageError: diffusers is absent.
    """
    if wanted is not None and not isinstance(wanted, str):
        return wanted
    diffusers = packages.load("diffusers", "A scheduler")
    SchedulerMixin = diffusers.SchedulerMixin
    config = _config(folder)
    name, extra = SCHEDULERS.get(
        (wanted or "").lower(), (wanted or str(config.get("_class_name")), {})
    )
    found = getattr(diffusers, name, None)
    known = inspect.isclass(found) and issubclass(found, SchedulerMixin)
    if not known or found is SchedulerMixin:
        raise ConfigError(
            f"Unknown scheduler {name!r}.",
            remedy=f"Known: {', '.join(SCHEDULERS)}, or a class name of diffusers.",
        )
    # Pipelines of noise prediction call it; schedulers of flow matching and of tokens lack it.
    own = getattr(diffusers, str(config.get("_class_name")), None)
    if hasattr(own, "scale_model_input") and not hasattr(found, "scale_model_input"):
        raise ConfigError(
            f"{name} is for another kind of model: this one was trained with "
            f"{config['_class_name']}.",
            remedy=f"Known: {', '.join(SCHEDULERS)}.",
        )
    # Takes what it knows and passes over the rest, as diffusers does when schedulers are exchanged.
    build: Any = getattr(found, "from_config", None)
    try:
        return build({**config, **extra})
    except Exception as error:  # whatever a configuration from elsewhere sets off
        reason = (
            f"{name} cannot be made from the model's scheduler_config.json: {first_line(error)}"
        )
        if wanted is None:
            raise BundleError(
                reason, remedy="Name another scheduler, or copy the configuration anew."
            ) from error
        raise ConfigError(reason, remedy=f"Known: {', '.join(SCHEDULERS)}.") from error


def check_steps(scheduler: Any, steps: int) -> None:
    """Run the first steps on four zeros: refuse a schedule before anything heavy is loaded.

    Args:
        scheduler: from `make_scheduler`; left with a schedule of `steps`.
        steps: 1 or more.

    Raises:
        ConfigError: it does not work in a pipeline, or not with as many steps.
    """
    import torch

    name = type(scheduler).__name__
    remedy = f"Known: {', '.join(SCHEDULERS)}."
    most = scheduler.config.get("num_train_timesteps")
    if isinstance(most, int) and steps > most:
        raise ConfigError(
            f"{steps} steps are more than the {most} that the model was trained with.",
            remedy=f"Give --steps {most} or fewer; 20 to 50 are usual.",
        )
    # DPM-Solver takes the first three channels for the picture where the variance is learned.
    learned = str(scheduler.config.get("variance_type", "")).startswith("learned")
    given = torch.zeros(1, 3, 2, 2)
    found = torch.zeros(1, 6 if learned else 3, 2, 2)
    # Pipelines of flow matching shift the schedule by the size of the picture.
    shift = {"mu": 1.0} if scheduler.config.get("use_dynamic_shifting") else {}
    try:
        scheduler.set_timesteps(steps, **shift)
        times = scheduler.timesteps
        picture = given * float(getattr(scheduler, "init_noise_sigma", 1.0))
        for time in times[:_TRIED]:
            if hasattr(scheduler, "scale_model_input"):
                scheduler.scale_model_input(picture, time)
            picture = scheduler.step(found, time, picture, return_dict=False)[0]
        finite = bool(torch.isfinite(picture).all())
        descends = bool((times[1:] <= times[:-1]).all())
        scheduler.set_timesteps(steps, **shift)  # forget the tries
    except Exception as error:  # diffusers' schedulers raise whatever their arithmetic sets off
        raise ConfigError(
            f"{name} cannot make {steps} steps for this model: {first_line(error)}",
            remedy=f"Give another --steps or --scheduler. {remedy}",
        ) from error
    if not finite:
        raise ConfigError(
            f"{name} turns zeros into NaN or infinity with this model's scheduler_config.json.",
            remedy=f"Copy the configuration anew, or give another --scheduler. {remedy}",
        )
    if not descends:
        raise ConfigError(f"{name} goes from the picture to the noise.", remedy=remedy)


def _config(folder: Path | Mapping[str, Any] | None) -> dict[str, Any]:
    if isinstance(folder, Mapping):
        return dict(folder)
    path = folder / "scheduler_config.json" if folder is not None else None
    if path is None or not path.is_file():
        raise BundleError(
            "There is no scheduler/scheduler_config.json, which says how the model was trained.",
            remedy="Hand over an instance: load_pipeline(…, scheduler=DDIMScheduler(…))",
        )
    try:
        return read_scheduler(path)
    except (OSError, ForeignError) as error:
        raise BundleError(f"{path} is damaged: {error}.", remedy=_COPY) from error
