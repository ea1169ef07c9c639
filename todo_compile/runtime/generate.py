"""From a pipeline and a prompt to a picture, and two pictures side by side.

`generate` runs any diffusers pipeline, ours or torch's, from a seed; `compare` runs two from the
same seed and says how far apart their pictures are.
"""

from __future__ import annotations

import inspect
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from todo_compile import packages, style
from todo_compile.bundle.files import check_target, staged
from todo_compile.errors import ConfigError, EngineError, InputError, TodoError, first_line
from todo_compile.foreign import open_regular
from todo_compile.runtime.finite import NotFiniteError
from todo_compile.runtime.finite_modules import finite_modules
from todo_compile.runtime.metrics import Fidelity, fidelity
from todo_compile.runtime.video import asked_frames, draws_videos, let_decode, save_frames

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from todo_compile.models import Resolution

OnStep = Callable[[int, int], None]
"""Called with (steps done, steps in all)."""
SUFFIXES = (".png", ".webp", ".tiff", ".jpg", ".jpeg")
_READ = ("PNG", "WEBP", "TIFF", "JPEG", "BMP", "GIF")
_SEEDS = (0, 2**64 - 1)
GAIN = 8
"""What the difference map is multiplied by."""


@dataclass(frozen=True)
class Picture:
    """What a pipeline drew.

    Attributes:
        pixels: (H, W, 3), or of a video (frames, H, W, 3); float in [0, 1], not yet rounded to 8
            bits.
        seconds: from the prompt to the picture.
        steps: denoising steps that were run.
        step_seconds: of the denoising steps alone, from the end of the first one on (which also
            pays for warming up); None with a single step.
    """

    pixels: NDArray[np.float32] = field(repr=False)
    seconds: float
    steps: int
    step_seconds: float | None

    @property
    def rate(self) -> float | None:
        """Denoising steps a second, or None if there was one step only."""
        if self.step_seconds is None or self.steps < 2:
            return None
        return (self.steps - 1) / self.step_seconds


@dataclass(frozen=True)
class Comparison:
    """Two pictures from the same seed.

    Attributes:
        dense: the reference.
        rewritten: with downsampled keys and values.
        fidelity: `rewritten` against `dense`.
    """

    dense: Picture
    rewritten: Picture
    fidelity: Fidelity


def generate(
    pipeline: Any,
    prompt: str,
    *,
    negative_prompt: str | None = None,
    steps: int = 30,
    guidance: float = 7.5,
    seed: int = 0,
    resolution: Resolution | None = None,
    frames: int | None = None,
    on_step: OnStep | None = None,
    **options: Any,
) -> Picture:
    """One picture. The same seed gives the same picture on the same software and hardware.

    Args:
        pipeline: of diffusers, such as from `load_pipeline`.
        prompt, negative_prompt: texts.
        steps: of the scheduler.
        guidance: classifier-free guidance scale; 1 or less turns it off.
        seed: of the starting noise, drawn on the CPU so that it does not depend on the device.
        resolution: in pixels; None for the pipeline's own.
        frames: of a video; None for what a bundle was built for, else the pipeline's own number.
        on_step: called after every step.
        options: more arguments of the pipeline's call.

    Raises:
        ConfigError: fewer than one step, a number that is none, or frames that it cannot draw.
        InputError: the pipeline refuses the settings, or fails on them.
        EngineError: memory ran out.
        NotFiniteError: a component gave NaN or infinity; says which, and at what step.
    """
    import numpy as np
    import torch

    check_settings(steps, guidance, seed)
    known = inspect.signature(type(pipeline).__call__).parameters
    name = type(pipeline).__name__
    start_from = known.get("image")
    if start_from is not None and start_from.default is start_from.empty and "image" not in options:
        raise ConfigError(f"{name} draws from a picture.", remedy="Give one: --image FILE.png.")
    if negative_prompt is not None and "negative_prompt" not in known:
        raise ConfigError(f"{name} takes no negative prompt.", remedy="Leave it out.")
    if "image" in options and "image" not in known:
        raise ConfigError(f"{name} starts from no picture.", remedy="Leave --image out.")
    if foreign := [option for option in options if option not in known]:
        raise ConfigError(f"{name} takes no {foreign[0]}.", remedy="Leave it out.")
    count = asked_frames(pipeline, frames)
    total = steps
    ends: list[float] = []

    def count_step() -> None:
        ends.append(time.perf_counter())
        if on_step is not None:
            on_step(len(ends), total)

    def after_step(_: Any, step: int, timestep: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
        del step, timestep
        count_step()
        return kwargs

    given: dict[str, Any] = {
        "prompt": prompt,
        "num_inference_steps": steps,
        "guidance_scale": guidance,
        "generator": torch.Generator("cpu").manual_seed(seed),
        "output_type": "np",
        "callback_on_step_end": after_step,
    }
    if negative_prompt is not None:  # what stands for none differs
        given["negative_prompt"] = negative_prompt
    if "callback_on_step_end" not in known and "callback" in known:  # of older pipelines
        given["callback"] = lambda *_: count_step()
    if resolution is not None:
        given |= {"height": resolution.height, "width": resolution.width}
        given["use_resolution_binning"] = False  # PixArt would draw another size and enlarge it
        given["max_area"] = resolution.height * resolution.width  # so would Kontext
    given |= count
    # Pipelines differ in what they take; what the caller names himself is theirs to refuse.
    given = {name: value for name, value in given.items() if name in known} | options
    # Two bars at once would spoil each other; diffusers has no way to ask for the old setting.
    pipeline.set_progress_bar_config(disable=True)
    let_decode(pipeline)
    start = time.perf_counter()
    try:
        with finite_modules(pipeline):
            found = pipeline(**given)
    except NotFiniteError as error:
        raise NotFiniteError(error.where, f"step {min(len(ends) + 1, total)} of {total}") from error
    except TodoError:
        raise  # in our own words already
    except (MemoryError, RuntimeError, torch.OutOfMemoryError) as error:
        if _memory_ran_out(error):
            raise EngineError(
                f"Memory ran out while {type(pipeline).__name__} was drawing: {first_line(error)}",
                remedy="Take a lower --res, a smaller batch, or more downsampling.",
            ) from error
        raise _refused(pipeline, error, steps, guidance, resolution) from error
    except (ValueError, TypeError, AttributeError, IndexError) as error:
        # What diffusers raises where a pipeline and its call do not fit: it checks little itself.
        raise _refused(pipeline, error, steps, guidance, resolution) from error
    drawn: Any = found.frames if draws_videos(type(pipeline)) else found.images
    pixels = np.asarray(drawn[0], dtype=np.float32)
    if not np.isfinite(pixels).all():
        raise NotFiniteError(f"the picture of {type(pipeline).__name__}")
    return Picture(
        pixels=pixels,
        seconds=time.perf_counter() - start,
        steps=len(ends),
        step_seconds=ends[-1] - ends[0] if len(ends) > 1 else None,
    )


def check_settings(steps: int, guidance: float, seed: int) -> None:
    """Refuse numbers that no pipeline can draw with.

    Raises:
        ConfigError: says which.
    """
    if steps < 1:
        raise ConfigError(f"{steps} steps draw nothing.", remedy="Give --steps 1 or more.")
    if not (math.isfinite(guidance) and guidance >= 0):
        raise ConfigError(
            f"A guidance of {guidance} is not possible.",
            remedy="Give --guidance 7.5, or 1 for none; a negative prompt says what to avoid.",
        )
    if not _SEEDS[0] <= seed <= _SEEDS[1]:
        raise ConfigError(f"{seed} is not a seed.", remedy=f"Give --seed 0 to {_SEEDS[1]}.")


def _memory_ran_out(error: BaseException) -> bool:
    """torch says so by a class for GPUs, and by words for the CPU."""
    import torch

    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    return any(words in str(error) for words in ("not enough memory", "can't allocate memory"))


def _refused(
    pipeline: Any, error: Exception, steps: int, guidance: float, resolution: Resolution | None
) -> InputError:
    name, scheduler = type(pipeline).__name__, getattr(pipeline, "scheduler", None)
    size = "its own size" if resolution is None else str(resolution)
    return InputError(
        f"{name} cannot draw this: {first_line(error)}",
        remedy=f"It was called with a prompt alone, {steps} steps of {type(scheduler).__name__}, "
        f"guidance {guidance:g} and {size}. Change these, or call pipelines that need more (a "
        "picture, a mask) from Python: todo_compile.load_pipeline.",
    )


def compare(dense: Any, rewritten: Any, prompt: str, **options: Any) -> Comparison:
    """The same picture by two pipelines.

    Args:
        dense, rewritten: pipelines.
        prompt, options: as for `generate`.

    Raises:
        TodoError: as `generate`.
    """
    reference = generate(dense, prompt, **options)
    ours = generate(rewritten, prompt, **options)
    return Comparison(reference, ours, fidelity(ours.pixels, reference.pixels))


def check_picture(out: Path) -> None:
    """Refuse a place for a picture early.

    Raises:
        ConfigError: its suffix is not that of a picture.
        MissingPackageError: what drawing needs is not installed.
        BundleError: it cannot be written there.
    """
    if out.suffix.lower() not in SUFFIXES:
        raise ConfigError(
            f"The suffix of {out.name!r} is not that of a picture.",
            remedy=f"Known: {', '.join(SUFFIXES)}.",
        )
    check_target(out)
    packages.need("generate", "Drawing")


def open_picture(path: Path) -> Any:
    """A picture that a pipeline starts from, in RGB.

    Raises:
        InputError: it is none.
    """
    packages.need("generate", "Drawing")
    from PIL import Image

    try:
        # PIL reads dozens of formats, some with other programs.
        with open_regular(path) as file, Image.open(file, formats=_READ) as found:
            return found.convert("RGB")
    except Exception as error:  # whatever a damaged picture sets off in its reader
        raise InputError(
            f"{path} cannot be read as a picture: {first_line(error)}.",
            remedy="Give a PNG or JPEG file.",
        ) from error


def save_picture(picture: Picture, out: Path) -> None:
    """Write a picture, or the frames of a video: whole, or not at all.

    Raises:
        BundleError: it cannot be written.
    """
    frames = picture.pixels if picture.pixels.ndim == 4 else picture.pixels[None]
    images = [_image(frame) for frame in frames]
    with staged(out) as stage:
        path = stage.publish(out.name)
        if len(images) == 1:
            images[0].save(path)
        else:
            save_frames(images, path)


def save_comparison(comparison: Comparison, out: Path, lines: list[str]) -> None:
    """Write dense, rewritten and their difference (× `GAIN`) side by side.

    Args:
        comparison: what to draw.
        out: file.
        lines: text under the pictures, beside the measures.

    Raises:
        BundleError: it cannot be written.
    """
    import numpy as np
    from PIL import Image, ImageDraw

    dense, ours = comparison.dense.pixels, comparison.rewritten.pixels
    difference = np.clip(GAIN * np.abs(ours - dense), 0, 1)
    height, width = dense.shape[:2]
    # Small pictures are enlarged without smoothing, so that there is room for the text.
    scale = max(1, -(-256 // width))
    size = max(12, width * scale // 32)
    font = style.letters(size)
    text = [style.spelled(line, font) for line in (*measures(comparison), *lines)]
    gap, line = size // 2, size * 3 // 2
    panel_w, panel_h = width * scale, height * scale
    sheet = Image.new(
        "RGB",
        (3 * panel_w + 4 * gap, panel_h + line + 2 * gap + line * len(text)),
        style.PAPER,
    )
    draw = ImageDraw.Draw(sheet)
    titles = ("dense", "rewritten", f"difference × {GAIN}")
    for index, (title, pixels) in enumerate(zip(titles, (dense, ours, difference), strict=True)):
        left = gap + index * (panel_w + gap)
        draw.text((left, gap // 2), style.spelled(title, font), fill=style.INK, font=font)
        panel = _image(pixels).resize((panel_w, panel_h), Image.Resampling.NEAREST)
        sheet.paste(panel, (left, line))
    for index, words in enumerate(text):
        draw.text((gap, line + panel_h + gap + index * line), words, fill=style.INK, font=font)
    _save(sheet, out)


def measures(comparison: Comparison) -> list[str]:
    """MSE, PSNR, HPF and time in a few lines."""
    found = comparison.fidelity
    dense, ours = comparison.dense, comparison.rewritten
    return [
        f"MSE {found.mse:.3e}, PSNR {found.psnr:.2f} dB",
        f"HPF {found.hpf_reference:.4f} dense, {found.hpf:.4f} rewritten",
        f"{speed(dense)} dense; {speed(ours)} rewritten",
    ]


def speed(picture: Picture) -> str:
    """``12.3 s, 2.4 it/s``."""
    rate = picture.rate
    return f"{picture.seconds:.1f} s" + (f", {rate:.2f} it/s" if rate is not None else "")


def _image(pixels: Any) -> Any:
    import numpy as np
    from PIL import Image

    return Image.fromarray(np.clip(np.rint(pixels * 255), 0, 255).astype(np.uint8))


def _save(image: Any, out: Path) -> None:
    with staged(out) as stage:
        image.save(stage.publish(out.name))
