"""Pictures from a prompt and a seed alone, with any pipeline of diffusers that draws so."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from todo_compile.capture.recording.arguments import FRAMES, FROM_TEXT
from todo_compile.errors import ConfigError, InputError, ModelError, TodoError, first_line
from todo_compile.models.components import pipeline_class

if TYPE_CHECKING:
    from todo_compile.models import Resolution, Source

_GIVEN = {
    "prompt", "num_inference_steps", "guidance_scale", "generator", "output_type", "height",
    "width",
}  # fmt: skip
_MORE = {"image", "image_embeds", "video", "control_image", *FRAMES}


@dataclass(frozen=True, slots=True)
class Pair:
    """A prompt and a seed."""

    prompt: str
    seed: int


@dataclass(frozen=True, slots=True)
class Sampling:
    """How pictures are drawn; part of what scores are valid for.

    Args:
        steps, guidance, scheduler: as for `generate`.
        batch: pictures at once.
    """

    steps: int = 8
    guidance: float = 3.0
    scheduler: str | None = None
    batch: int = 1

    @property
    def rows(self) -> int:
        """Batch of the denoiser."""
        return self.batch * (2 if self.guidance > 1 else 1)


def for_measuring(pipeline: Any) -> None:
    """No bar, and no safety checker: it blackens pictures, and two black ones are equal."""
    pipeline.set_progress_bar_config(disable=True)
    if getattr(pipeline, "safety_checker", None) is not None:
        pipeline.safety_checker = None


def call_pipeline(
    pipeline: Any, pairs: Sequence[Pair], sampling: Sampling, resolution: Resolution
) -> list[Any]:
    """Pictures (H, W, 3), float in [0, 1], one for each pair, in one call.

    Raises:
        InputError: the pipeline cannot draw from a prompt alone, or draws no numbers.
    """
    import numpy as np

    known = inspect.signature(type(pipeline).__call__).parameters
    # PixArt would draw another size and enlarge it.
    binning = {"use_resolution_binning": False} if "use_resolution_binning" in known else {}
    try:
        found = pipeline(
            prompt=[pair.prompt for pair in pairs],
            num_inference_steps=sampling.steps,
            guidance_scale=sampling.guidance,
            generator=[torch.Generator("cpu").manual_seed(pair.seed) for pair in pairs],
            output_type="np",
            height=resolution.height,
            width=resolution.width,
            **binning,
        )
    except TodoError:
        raise
    except (ValueError, TypeError, AttributeError, IndexError, RuntimeError) as error:
        raise InputError(
            f"{type(pipeline).__name__} cannot draw: {first_line(error)}",
            remedy="Pipelines that draw from a prompt alone can be measured; try other steps, "
            "another guidance or scheduler.",
        ) from error
    pictures = [np.asarray(one, dtype=np.float32) for one in found.images]
    if not all(bool(np.isfinite(one).all()) for one in pictures):
        raise InputError(
            f"{type(pipeline).__name__} draws NaN or infinity: nothing can be measured.",
            remedy="Give --precision fp32, or look whether the weights are damaged.",
        )
    return pictures


def drawn_from_prompts(name: str) -> bool:
    """Whether a pipeline of diffusers draws one picture from what `call_pipeline` gives.

    Args:
        name: of its class.
    """
    import diffusers

    cls = getattr(diffusers, name, None)
    known = {} if cls is None else inspect.signature(cls.__call__).parameters
    return known.keys() >= _GIVEN and (name in FROM_TEXT or not _MORE & known.keys())


def check_drawn(source: Source, what: str) -> None:
    """Refuse a pipeline that would draw nothing from a prompt, before weights are read.

    Args:
        source: of its denoiser.
        what: draws, for the message.

    Raises:
        ModelError: it is one.
    """
    from todo_compile.capture.inputs import is_recorded

    name = source.pipeline or pipeline_class(source)
    if is_recorded(source) and not drawn_from_prompts(name):
        raise ModelError(
            f"{what} draws from prompts and a size alone, and {name} needs more.",
            remedy="Leave it out, and compare pictures of your own: todo-compile generate "
            "--compare.",
        )


def make_pairs(prompts: Sequence[str], count: int, first_seed: int) -> list[Pair]:
    """`count` pairs, every prompt once before any twice, each with a seed of its own.

    Raises:
        ConfigError: there are no prompts.
    """
    if not prompts:
        raise ConfigError("There are no prompts to draw.", remedy="Write one a line.")
    return [Pair(prompts[i % len(prompts)], first_seed + i) for i in range(count)]
