"""What a pipeline is called with: a text, a size, and whatever it cannot do without.

Everything else is left to the pipeline's own defaults: guidance, steps, lengths of texts. Arguments
that it insists on are made by their names, which diffusers uses alike in all pipelines.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch

from todo_compile.capture.recording.words import prompt
from todo_compile.errors import ModelError
from todo_compile.models.parts import Parts
from todo_compile.models.resolution import Resolution

_PER_PROMPT = ("num_images_per_prompt", "num_videos_per_prompt", "num_waveforms_per_prompt")
_PICTURES = ("image", "mask_image", "control_image", "ip_adapter_image", "video", "init_image")
_WELCOME = ("image", "mask_image", "control_image", "image_embeds", "negative_image_embeds")
"""What pipelines may do without by their signatures, but not in their code, or draw less well."""
FRAMES = ("num_frames", "video_length")
"""What pipelines call the number of a video's frames."""
FROM_TEXT = ("Flux2Pipeline", "Flux2KleinPipeline")
"""Pipelines that draw from text where they are given no picture to look at, which would be further
tokens beside those of the one that is drawn."""
# Size, in pixels and cells, of the latent picture that Stable Cascade's decoder starts from.
_CASCADE = (1024, 24)


def parameters(pipeline: Any) -> Mapping[str, inspect.Parameter]:
    """Parameters of the pipeline's ``__call__`` by name."""
    return inspect.signature(type(pipeline).__call__).parameters


def takes_size(pipeline: Any) -> bool:
    """Whether the pipeline is told the size of the picture, rather than taking a picture's."""
    return {"height", "width"} <= parameters(pipeline).keys()


def count_name(pipeline: Any) -> str | None:
    """The parameter that says how many pictures are made of one text."""
    return next((name for name in _PER_PROMPT if name in parameters(pipeline)), None)


def frames_name(made: type[Any]) -> str | None:
    """The parameter of a pipeline class that says how many frames are drawn; None for pictures."""
    known = inspect.signature(made.__call__).parameters
    return next((name for name in FRAMES if name in known), None)


def arguments(
    pipeline: Any,
    parts: Parts,
    size: Resolution | None,
    *,
    count: int = 1,
    length: int | None,
    words: int | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """Arguments of one call.

    Args:
        pipeline: with stand-ins.
        parts: what it is made of.
        size: in pixels; None for what the pipeline makes when it is not told.
        count: pictures of one text.
        length: most tokens of a text, where the pipeline is told; None for its own default.
        words: of the text; None for more than any pipeline takes.
        seed: of its noise.

    Raises:
        ModelError: it insists on something that nothing is known about.
    """
    known = parameters(pipeline)
    found: dict[str, Any] = {}
    for name in ("prompt", "negative_prompt"):
        if name in known:
            found[name] = prompt() if words is None else prompt(words)
    if size is not None and takes_size(pipeline):
        found |= {"height": size.height, "width": size.width}
    if parts.frames is not None and (frames := frames_name(type(pipeline))) is not None:
        found[frames] = parts.frames
    # Sizes near a known one would be drawn at that and resized.
    if "use_resolution_binning" in known:
        found["use_resolution_binning"] = False
    if "max_area" in known and size is not None:  # so would others of another area
        found["max_area"] = size.height * size.width
    if "generator" in known:
        found["generator"] = torch.Generator().manual_seed(seed)
    if length is not None and "max_sequence_length" in known:
        found["max_sequence_length"] = length
    counted = count_name(pipeline)
    if counted is not None:
        found[counted] = count
    # Parts that run before the denoiser need not do all of their steps.
    found |= {name: 2 for name in known if name.endswith("_num_inference_steps")}
    for name, parameter in known.items():
        needed = parameter.default is inspect.Parameter.empty
        plain = parameter.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD
        if name == "self" or name in found or not plain:
            continue
        if name == "image" and not needed and parts.pipeline in FROM_TEXT:
            continue
        if needed or name in _WELCOME:
            value = _made(name, parts, size)
            if value is not None:
                found[name] = value
            elif needed:
                raise ModelError(
                    f"{parts.pipeline} requires {name}, which todo-compile does not know.",
                    remedy="Load the module yourself and hand it to the Python API with example "
                    "inputs: todo_compile.rewrite(module, example_inputs).",
                )
    return found


def _made(name: str, parts: Parts, size: Resolution | None) -> Any:
    pixels = size or Resolution(512, 512)
    if name in _PICTURES:
        return _picture(pixels)
    if name == "hint":
        return torch.zeros(1, 3, pixels.height, pixels.width)
    if name in ("image_embeds", "negative_image_embeds"):
        return torch.ones(1, width) if (width := _width(parts, "encoder_hid_dim")) else None
    if name == "image_embeddings":
        cells = [-(-side * _CASCADE[1] // _CASCADE[0]) for side in (pixels.height, pixels.width)]
        return torch.ones(1, _width(parts, "effnet_in_channels") or 16, *cells)
    if name == "class_labels":
        return [0]
    return None


def _picture(size: Resolution) -> Any:
    from PIL import Image

    return Image.new("RGB", (size.width, size.height), (128, 128, 128))


def _width(parts: Parts, key: str) -> int | None:
    widths = (part.config.get(key) for part in parts.parts.values() if part is not None)
    return next((width for width in widths if isinstance(width, int)), None)
