"""Example inputs of a component: names, shapes, dtypes, and seeded values.

The timestep is one fp32 number of shape (1,), expanded to the batch inside the graph: it holds what
every diffusers scheduler gives (whole numbers and fractions) exactly, needs no cast (the model
computes in fp32 from it at once), and TensorRT takes fp32 where it would want int64 converted.
SDXL's ``time_ids`` are fp32 too: they are sizes in pixels, and bf16 cannot hold 1080. A text
encoder's tokens are int64, as the tokenizers give them.
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from todo_compile import packages
from todo_compile.batches import Batch, BatchRange, TextRange, largest
from todo_compile.capture import wrappers
from todo_compile.capture.example import ExampleInputs
from todo_compile.capture.recording.arguments import frames_name
from todo_compile.capture.recording.call import wrapper
from todo_compile.capture.recording.modules import class_of
from todo_compile.capture.recording.padding import PADDED
from todo_compile.capture.recording.recorded import recorder
from todo_compile.capture.written import (
    InputSpec,
    further_inputs,
    pixart_inputs,
    text_inputs,
    unet_inputs,
)
from todo_compile.errors import ConfigError, ModelError
from todo_compile.models.architecture import (
    DIT,
    PIXART,
    TEXT_CLASSES,
    TEXT_TOKENS,
    UNET,
    VAE_CLASSES,
)
from todo_compile.models.components import pipeline_class
from todo_compile.models.loading import LoadedModel
from todo_compile.models.parts import Part, parts_of
from todo_compile.models.resolution import Resolution
from todo_compile.models.source import DENOISERS, Source

if TYPE_CHECKING:
    from todo_compile.capture.recording.recorded import Recorder, Recording

_MAX_BATCH = 64
# Pipelines whose denoisers' inputs are written here, by the start of their names.
_WRITTEN = ("StableDiffusion", "StableUnCLIP", "LatentConsistency", "PixArt", "DiT")
# From 64 on, diffusers makes other memory layouts before it upsamples: no graph is for both.
_MAX_RANGE = 63


def example_inputs(
    model: LoadedModel, resolution: Resolution, *, batch: Batch = 2, seed: int = 0
) -> ExampleInputs:
    """Inputs of `model` for images of `resolution`.

    Args:
        model: real or fake; the inputs are of the same kind.
        resolution: in pixels.
        batch: of the denoising model; classifier-free guidance doubles the number of images. Of a
            range the tensors have the most.
        seed: of the values, which do not depend on the dtype except for rounding.

    Raises:
        ConfigError: a resolution or batch that the model cannot take.
        ModelError: conditions that are not supported.
    """
    if is_recorded(model.source):
        return _recorded(model, resolution, batch)
    specs, wrapper = _plan(model.source, resolution, _checked(batch), model.dtype)
    with model.fake or nullcontext():
        generator = None if model.fake is not None else torch.Generator().manual_seed(seed)
        args = tuple(_tensor(spec, resolution, generator) for spec in specs)
    return ExampleInputs(
        wrapper=wrapper(model.module).eval(),
        specs=specs,
        args=args,
        output_names=wrappers.output_names(wrapper),
        batches=_batches(model.source, resolution, batch, model.dtype, specs),
        texts=_texts(model.source, resolution, batch, model.dtype, specs),
    )


def input_specs(
    source: Source, resolution: Resolution, *, batch: Batch = 2, dtype: torch.dtype
) -> tuple[InputSpec, ...]:
    """The inputs alone, without a model; as `example_inputs`."""
    if is_recorded(source):
        recording = _recording(source, resolution, batch, dtype)
        return _recorded_specs(recording)
    return _plan(source, resolution, _checked(batch), dtype)[0]


def inputs_identity(
    source: Source, resolution: Resolution, *, batch: Batch = 2, dtype: torch.dtype
) -> list[str]:
    """What tells an output from one with other inputs, besides the model, size, batch and text.

    Names, where they are written here; what a pipeline passed, and what it fixed, where it was
    asked: that depends on all of its parts.
    """
    specs = input_specs(source, resolution, batch=batch, dtype=dtype)
    if not is_recorded(source):
        return [spec.name for spec in specs]
    recording = _recording(source, resolution, batch, dtype)
    lines = [
        f"{s.name} {'×'.join(map(str, s.shape))} {s.dtype}"
        + (f" text {source.texts}" if s.name in recording.texts else "")
        for s in specs
    ]
    return [*lines, recording.call.text]


def manifest_call(
    source: Source, resolution: Resolution, *, batch: Batch = 2, dtype: torch.dtype
) -> dict[str, Any] | None:
    """What a recorded call fixes, which inputs have the batch, how its time follows from the
    scheduler's (`Times`), if that can be told, how a shorter text is filled up, if it is, and the
    grids of several pictures in one sequence; None if it is not recorded."""
    if not is_recorded(source):
        return None
    recording = _recording(source, resolution, batch, dtype)
    times = recorder_of(source).times(resolution)
    padding = PADDED.get(source.class_name)
    return {
        "fixed": dict(recording.call.fixed),
        "batched": sorted(recording.batched),
        **({} if times is None else {"time": times.plain}),
        **({} if padding is None else {"padding": padding.described}),
        **({} if not (rows := recording.in_a_row) else {"pictures": rows}),
    }


def check_scheduled(source: Source, resolution: Resolution, what: str) -> None:
    """Refuse what is switched by step where the step cannot be told from a denoiser's inputs.

    Args:
        source: of a denoiser.
        resolution: of a picture.
        what: is switched, for the message.

    Raises:
        ModelError: it cannot.
    """
    if is_recorded(source) and recorder_of(source).times(resolution) is None:
        raise ModelError(
            f"{what} is switched by step, and what a {source.pipeline} tells its denoiser of the "
            "time does not follow its schedule in a straight line.",
            remedy="Compile it with one phase, of factors that you choose: --factors.",
        )


def is_recorded(source: Source) -> bool:
    """Whether the inputs are read off the model's pipeline; see `recording`.

    Those of Stable Diffusion's UNets, PixArt and DiT are written here instead: they need neither
    the rest of the pipeline nor transformers, have one timestep for all rows whatever the
    scheduler, and a ControlNet's residuals and a latent consistency model's guidance beside them.
    """
    if source.component not in DENOISERS:
        return False
    pipeline = source.pipeline or pipeline_class(source)
    known = source.class_name in (UNET, PIXART, DIT) and pipeline.startswith(_WRITTEN)
    # SDXL's refiner has five numbers of sizes and scores, and nothing in its UNet says so.
    return not known or pipeline == "StableDiffusionXLImg2ImgPipeline"


def with_pipeline_defaults(source: Source) -> Source:
    """`source` with what its pipeline does by itself, where its inputs are read off that.

    Raises:
        ConfigError: frames are asked of a pipeline that draws pictures.
        ModelError: nothing says which pipeline it belongs to, or that cannot be run.
    """
    if source.frames is not None and not (is_recorded(source) and _draws_frames(source)):
        raise ConfigError(
            f"{source.pipeline or source.class_name} draws no video.", remedy="Leave --frames out."
        )
    if not is_recorded(source) or source.pipeline_defaults is not None:
        return source
    return replace(source, pipeline_defaults=recorder_of(source).pipeline_defaults)


def recorder_of(source: Source) -> Recorder:
    """What asks the pipeline of a denoiser.

    Raises:
        ModelError: nothing says which pipeline it belongs to, or it cannot be made.
        MissingPackageError: what pipelines need is absent.
    """
    packages.need("generate", f"Running a {source.pipeline or 'pipeline'} with stand-ins")
    parts = parts_of(source)
    if parts is None:
        raise ModelError(
            f"What a {source.class_name} is called with is read off its pipeline, and nothing says "
            "which that is.",
            remedy="Give the pipeline's folder (the one with model_index.json), or hand the module "
            "to todo_compile.rewrite(module, example_inputs).",
        )

    return recorder(source, replace(parts, frames=source.frames))


def _draws_frames(source: Source) -> bool:
    packages.need("generate", f"Running a {source.pipeline or 'pipeline'} with stand-ins")
    if not (name := source.pipeline or pipeline_class(source)):
        return False
    return frames_name(class_of(Part("diffusers", name, {}))) is not None


def _recording(
    source: Source, resolution: Resolution, batch: Batch, dtype: torch.dtype
) -> Recording:
    found = recorder_of(source).record(resolution, _checked(batch), dtype)
    if isinstance(batch, BatchRange) and not found.several:
        raise ConfigError(
            f"{source.pipeline} does not batch all inputs alike, so there is no range of batches.",
            remedy="Give --batch one number.",
        )
    return found


def _recorded_specs(recording: Recording) -> tuple[InputSpec, ...]:
    return tuple(
        InputSpec(name, tuple(tensor.shape), tensor.dtype, "recorded")
        for name, tensor in recording.call.by_name.items()
    )


def _recorded(model: LoadedModel, resolution: Resolution, batch: Batch) -> ExampleInputs:
    recording = _recording(model.source, resolution, batch, model.dtype)
    specs = _recorded_specs(recording)
    if model.fake is None:
        args = recording.call.tensors
    else:
        with model.fake:
            args = tuple(torch.empty(spec.shape, dtype=spec.dtype) for spec in specs)
    ranged = batch if isinstance(batch, BatchRange) else None
    texts = model.source.texts if isinstance(model.source.texts, TextRange) else None
    make = wrapper(recording.call, model.source.component, model.source.class_name)
    return ExampleInputs(
        wrapper=make(model.module).eval(),
        specs=specs,
        args=args,
        output_names=("out_sample",),
        batches=tuple(ranged if spec.name in recording.batched else None for spec in specs),
        texts=tuple(texts if spec.name in recording.texts else None for spec in specs),
        token_grids=recording.token_grids,
        image_axes=recording.image_axes,
    )


def _checked(batch: Batch) -> int:
    """The largest of the batches.

    Raises:
        ConfigError: a range that no single graph can serve.
    """
    if isinstance(batch, BatchRange) and batch.most > _MAX_RANGE:
        raise ConfigError(
            f"A range of batches up to {batch.most} is not possible.",
            remedy=f"It can end at {_MAX_RANGE}; larger calls are cut into pieces.",
        )
    return largest(batch)


def _batches(
    source: Source,
    resolution: Resolution,
    batch: Batch,
    dtype: torch.dtype,
    specs: tuple[InputSpec, ...],
) -> tuple[BatchRange | None, ...]:
    """Which inputs have the batch: those whose first size differs at the range's other end."""
    if not isinstance(batch, BatchRange):
        return (None,) * len(specs)
    least = _plan(source, resolution, batch.least, dtype)[0]
    return tuple(
        batch if a.shape[0] != b.shape[0] else None for a, b in zip(specs, least, strict=True)
    )


def _texts(
    source: Source,
    resolution: Resolution,
    batch: Batch,
    dtype: torch.dtype,
    specs: tuple[InputSpec, ...],
) -> tuple[TextRange | None, ...]:
    """Which inputs have the tokens of the text for their second size."""
    texts = source.texts
    if not isinstance(texts, TextRange):
        return (None,) * len(specs)
    least = _plan(replace(source, text_tokens=texts.least), resolution, largest(batch), dtype)[0]
    return tuple(texts if a.shape != b.shape else None for a, b in zip(specs, least, strict=True))


def side_multiple(source: Source) -> int:
    """Pixels that both sides of an image must be a multiple of.

    A recorded pipeline is asked. Else a UNet takes any latent grid (diffusers passes the sizes on
    where a level does not halve evenly), and a transformer needs whole patches.
    """
    if is_recorded(source):
        return recorder_of(source).multiple
    patched = source.class_name in (PIXART, DIT)
    patch = int(source.config.get("patch_size", 2)) if patched else 1
    return source.vae_scale * patch


def _latent(source: Source, resolution: Resolution) -> tuple[int, int]:
    return resolution.latent(side_multiple(source), source.vae_scale)


def _plan(
    source: Source, resolution: Resolution, batch: int, dtype: torch.dtype
) -> tuple[tuple[InputSpec, ...], type[nn.Module]]:
    if not 1 <= batch <= _MAX_BATCH:
        raise ConfigError(
            f"A batch of {batch} is not possible.",
            remedy=f"Give 1 to {_MAX_BATCH}; with classifier-free guidance it is twice the images.",
        )
    if source.class_name in TEXT_CLASSES:
        return text_inputs(source, batch)
    if source.class_name in VAE_CLASSES:
        latent = (batch, int(source.config.get("latent_channels", 4)), *_latent(source, resolution))
        return (InputSpec("latent_sample", latent, dtype),), wrappers.VaeDecoder
    sample = (batch, int(source.config.get("in_channels", 4)), *_latent(source, resolution))
    text = None if source.texts is None else largest(source.texts)
    if source.class_name == UNET:
        specs, wrapper = unet_inputs(source.config, sample, dtype, text or TEXT_TOKENS)
        return further_inputs(specs, wrapper, source)
    if source.class_name == PIXART:
        return pixart_inputs(source.config, sample, dtype, text)
    assert source.class_name == DIT
    if text is not None:
        raise ConfigError(f"A {DIT} takes labels and no text.", remedy="Leave --text-tokens out.")
    return (
        InputSpec("hidden_states", sample, dtype),
        InputSpec("timestep", (1,), torch.float32, "timestep"),
        InputSpec("class_labels", (batch,), torch.int64, "label"),
    ), wrappers.ClassTransformer


def _tensor(
    spec: InputSpec, resolution: Resolution, generator: torch.Generator | None
) -> torch.Tensor:
    height, width = resolution.height, resolution.width
    match spec.fill:
        case "normal":
            # Drawn in fp32 and rounded, so that every precision sees the same inputs.
            value = torch.randn(spec.shape, generator=generator, dtype=torch.float32)
            return value.to(spec.dtype)
        case "timestep":
            return torch.full(spec.shape, 500, dtype=spec.dtype)
        case "label":
            return torch.zeros(spec.shape, dtype=spec.dtype)
        case "tokens":
            # The end of text is the vocabulary's last token; CLIP pools at its first appearance.
            ids = torch.randint(1, spec.limit - 1, spec.shape, generator=generator)
            ids[:, spec.shape[1] // 2 :] = spec.limit - 1
            return ids
        case "ones":
            return torch.ones(spec.shape, dtype=spec.dtype)
        case "sizes":
            # 6: original size, crop corner, target size (SDXL); 5: an aesthetic score for the last
            # (its refiner); 2: size; 1: aspect ratio (PixArt).
            corner = [height, width, 0, 0]
            row = {6: [*corner, height, width], 5: [*corner, 6], 2: [height, width]}
            values = row.get(spec.shape[-1], [height / width])
            return torch.tensor([values] * spec.shape[0], dtype=spec.dtype)
        case "recorded":
            raise AssertionError("made by the pipeline")
