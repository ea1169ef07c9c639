"""Videos: which pipelines draw them, and a file that holds their frames.

An animated WebP without loss: one file for every frame's pixels, which PIL writes by itself.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch.nn import Module

from todo_compile import packages
from todo_compile.capture.recording.arguments import frames_name
from todo_compile.errors import ConfigError
from todo_compile.runtime.component import Component

SUFFIX = ".webp"
_TILED = ("AutoencoderKLAllegro",)
_SECONDS = 1 / 7
"""Of a frame: Stable Video Diffusion's default."""


def draws_videos(made: Any) -> bool:
    """Whether a pipeline class of diffusers, or its name, draws several frames."""
    if isinstance(made, str):
        made = getattr(packages.load("diffusers", "A pipeline"), made, None)
    return made is not None and frames_name(made) is not None


def frames_of(pipeline: Any) -> int | None:
    """How many frames a pipeline's compiled denoiser was built for; None where its own number is
    as good as any."""
    parts = [part for part in pipeline.components.values() if isinstance(part, Module)]
    inner = (one for part in parts for one in part.modules() if isinstance(one, Component))
    return next((one.origin.frames for one in inner if one.origin.frames is not None), None)


def asked_frames(pipeline: Any, wanted: int | None) -> dict[str, int]:
    """The argument of a pipeline's call that says how many frames it draws, if any need be said.

    Args:
        pipeline: of diffusers.
        wanted: number of frames; None for what it was built for.

    Raises:
        ConfigError: it draws pictures, or was built for another number.
    """
    name, built = frames_name(type(pipeline)), frames_of(pipeline)
    if wanted is None:
        return {} if name is None or built is None else {name: built}
    if name is None:
        raise ConfigError(
            f"{type(pipeline).__name__} draws no video.", remedy="Leave --frames out."
        )
    if built not in (None, wanted):
        raise ConfigError(
            f"This was built for {built} frames, not for {wanted}.",
            remedy=f"Draw {built}, or build it anew: --frames {wanted}.",
        )
    return {name: wanted}


def let_decode(pipeline: Any) -> None:
    """Switch on what a video's decoder cannot do without: Allegro's has no way but in tiles, and
    diffusers leaves them off."""
    vae: Any = getattr(pipeline, "vae", None)
    if type(vae).__name__ in _TILED:
        vae.enable_tiling()


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
