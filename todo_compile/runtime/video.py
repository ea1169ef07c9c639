"""Videos: which pipelines draw them, and a file that holds their frames.

An animated WebP without loss: one file for every frame's pixels, which PIL writes by itself.
"""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

from todo_compile import packages
from todo_compile.errors import ConfigError

SUFFIX = ".webp"
_SECONDS = 1 / 7
"""Of a frame: Stable Video Diffusion's default."""


def draws_videos(made: Any) -> bool:
    """Whether a pipeline class of diffusers, or its name, draws several frames."""
    if isinstance(made, str):
        made = getattr(packages.load("diffusers", "A pipeline"), made, None)
    return made is not None and "num_frames" in inspect.signature(made.__call__).parameters


def check_video(pipeline: str, out: Path, *, compare: bool) -> None:
    """Refuse early what cannot be done with a pipeline that draws videos.

    Raises:
        ConfigError: a file that holds one picture, or a comparison.
    """
    if not draws_videos(pipeline):
        return
    if out.suffix.lower() != SUFFIX:
        raise ConfigError(
            f"{pipeline} draws videos, and {out.name} would hold one picture.",
            remedy=f"Give --out {out.with_suffix(SUFFIX).name}, which keeps all frames.",
        )
    if compare:
        raise ConfigError(
            f"{pipeline} draws videos, and --compare is for pictures.", remedy="Leave it out."
        )


def save_frames(images: list[Any], path: Path) -> None:
    """Write the frames of a video."""
    first, *rest = images
    first.save(
        path, save_all=True, append_images=rest, lossless=True, duration=round(1000 * _SECONDS)
    )
