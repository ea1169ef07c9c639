"""Schedulers by short names."""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import Any

from todo_compile.errors import BundleError, ConfigError, ModelError

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


def make_scheduler(wanted: Any, folder: Path | None) -> Any:
    """A scheduler with the model's noise schedule.

    Args:
        wanted: an instance (returned as it is), a short name, a class name of diffusers, or None
            for the class that the model's configuration names.
        folder: with the model's ``scheduler_config.json``; None if there is none.

    Raises:
        ConfigError: no such scheduler.
        BundleError: there is no configuration to make one from, or it is damaged.
        ModelError: diffusers is absent.
    """
    if wanted is not None and not isinstance(wanted, str):
        return wanted
    try:
        import diffusers
        from diffusers.schedulers.scheduling_utils import SchedulerMixin
    except ImportError as error:
        raise ModelError(
            "A scheduler needs diffusers.", remedy='Install it: pip install "todo-compile[models]"'
        ) from error
    config = _config(folder)
    name, extra = SCHEDULERS.get(
        (wanted or "").lower(), (wanted or str(config.get("_class_name")), {})
    )
    found = getattr(diffusers, name, None)
    if not (inspect.isclass(found) and issubclass(found, SchedulerMixin)):
        raise ConfigError(
            f"Unknown scheduler {name!r}.",
            remedy=f"Known: {', '.join(SCHEDULERS)}, or a class name of diffusers.",
        )
    # Takes what it knows and passes over the rest, as diffusers does when schedulers are exchanged.
    made: Any = found.from_config({**config, **extra})  # pyright: ignore[reportAttributeAccessIssue]
    return made


def _config(folder: Path | None) -> dict[str, Any]:
    path = folder / "scheduler_config.json" if folder is not None else None
    if path is None or not path.is_file():
        raise BundleError(
            "There is no scheduler/scheduler_config.json, which says how the model was trained.",
            remedy="Hand over an instance: load_pipeline(…, scheduler=DDIMScheduler(…))",
        )
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise BundleError(f"{path} is damaged: {error}.") from error
    if not isinstance(values, dict):
        raise BundleError(f"{path} is damaged: no object.")
    return values
