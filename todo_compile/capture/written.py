"""Inputs that are written here, by architecture: from a configuration to names, shapes, types.

Of these components more is known than one call of a pipeline would show: which conditions are
optional, and which sizes follow the batch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from todo_compile.capture import wrappers
from todo_compile.errors import ModelError
from todo_compile.models.architecture import CLIP_PROJECTION, TEXT_TOKENS
from todo_compile.models.controlnet import Shape, residual_names, residual_shapes
from todo_compile.models.ip_adapter import INPUT
from todo_compile.models.source import Source
from todo_compile.models.t2i_adapter import adapter_names, adapter_shapes

_T5_TOKENS = {True: 120, False: 300}  # PixArt-α (with size conditions) and -Σ pipelines' defaults


@dataclass(frozen=True)
class InputSpec:
    """One input tensor.

    Attributes:
        name: parameter of the wrapper's ``forward``, and name in the exported graph.
        shape: at the largest batch, where there is a range of them.
        dtype: the model's, or fp32/int64 where `capture.inputs` says so.
        fill: how `example_inputs` makes it up: ``normal`` N(0,1), ``timestep`` 500, ``label`` 0,
            ``ones``, ``sizes``: image size, crop, target size, or ``tokens``: random ones, then
            the vocabulary's last; ``recorded``: as the pipeline made it.
        limit: size of the vocabulary, for ``tokens``.
    """

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    fill: Literal["normal", "timestep", "label", "ones", "sizes", "tokens", "recorded"] = "normal"
    limit: int = 0


def unet_inputs(
    config: Mapping[str, Any], sample: tuple[int, ...], dtype: torch.dtype, text: int
) -> tuple[tuple[InputSpec, ...], type[nn.Module]]:
    """Of a UNet: `sample` is the latent's shape, `text` the number of tokens.

    Raises:
        ModelError: conditions that are not supported.
    """
    batch = sample[0]
    width = config.get("encoder_hid_dim") or config.get("cross_attention_dim", 1280)
    if not isinstance(width, int):  # one for each block: the text has one width all the same
        width = int(width[0])
    specs = [
        InputSpec("sample", sample, dtype),
        InputSpec("timestep", (1,), torch.float32, "timestep"),
        InputSpec("encoder_hidden_states", (batch, text, width), dtype),
    ]
    if config.get("encoder_hid_dim_type") not in (None, "text_proj"):
        raise _unsupported("encoder_hid_dim_type", config["encoder_hid_dim_type"])
    addition = config.get("addition_embed_type")
    labels = _labels(config, batch, dtype)
    wrapper: type[nn.Module] = wrappers.TextUNet
    if addition == "text_time":
        if labels is not None:
            raise _unsupported("class_embed_type beside text_time", config.get("class_embed_type"))
        # What is left of the projection's input when the embedded numbers are taken off: six
        # sizes, or the refiner's five, whose one text encoder gives both texts in one width.
        joined = int(config["projection_class_embeddings_input_dim"])
        each = int(config["addition_time_embed_dim"])
        sizes = 5 if joined - 5 * each == config.get("cross_attention_dim") else 6
        pooled = joined - sizes * each
        specs.append(InputSpec("text_embeds", (batch, pooled), dtype))
        specs.append(InputSpec("time_ids", (batch, sizes), torch.float32, "sizes"))
        wrapper = wrappers.TextTimeUNet
    elif addition not in (None, "text"):  # "text" is made of encoder_hidden_states: no input
        raise _unsupported("addition_embed_type", addition)
    elif labels is not None:
        specs.append(labels)
        wrapper = wrappers.LabelledUNet
    guidance = config.get("time_cond_proj_dim")
    if guidance is not None:  # latent consistency models: the guidance scale, embedded
        specs.append(InputSpec("timestep_cond", (batch, int(guidance)), dtype))
    return tuple(specs), wrapper


def further_inputs(
    specs: tuple[InputSpec, ...], wrapper: type[nn.Module], source: Source
) -> tuple[tuple[InputSpec, ...], type[nn.Module]]:
    """The same with what networks beside the UNet hand over, in the model's type: what an
    IP-Adapter takes of one picture a row, a T2I-Adapter's residuals, a ControlNet's."""
    (batch, _, *latent), dtype = specs[0].shape, specs[0].dtype
    if source.ip_adapter is not None:
        specs = (*specs, InputSpec(INPUT, (batch, *source.ip_adapter.picture), dtype))
    own = [spec.name for spec in specs]

    def residuals(names: Sequence[str], shapes: Sequence[Shape]) -> list[InputSpec]:
        pairs = zip(names, shapes, strict=True)
        return [InputSpec(name, (batch, *shape), dtype) for name, shape in pairs]

    adapted, controlled = list[InputSpec](), list[InputSpec]()
    if source.t2i_adapter:
        shapes = adapter_shapes(source.config, (latent[0], latent[1]))
        adapted = residuals(adapter_names(len(shapes)), shapes)
    if source.controlnet:
        shapes = residual_shapes(source.config, (latent[0], latent[1]))
        controlled = residuals(residual_names(len(shapes)), shapes)
    if source.ip_adapter is None and not adapted and not controlled:
        return specs, wrapper
    groups = [[spec.name for spec in group] for group in (adapted, controlled)]
    return (*specs, *adapted, *controlled), wrappers.with_inputs(wrapper, own, *groups)


def text_inputs(source: Source, batch: int) -> tuple[tuple[InputSpec, ...], type[nn.Module]]:
    """Of a text encoder, padded to all its positions."""
    length = int(source.config.get("max_position_embeddings", TEXT_TOKENS))
    limit = int(source.config.get("vocab_size", 49408))
    spec = InputSpec("input_ids", (batch, length), torch.int64, "tokens", limit)
    projected = source.class_name == CLIP_PROJECTION
    return (spec,), wrappers.ClipTextProjection if projected else wrappers.ClipText


def _labels(config: Mapping[str, Any], batch: int, dtype: torch.dtype) -> InputSpec | None:
    kind = config.get("class_embed_type")
    if kind is None and config.get("num_class_embeds") is not None:
        return InputSpec("class_labels", (batch,), torch.int64, "label")
    if kind == "timestep":
        return InputSpec("class_labels", (batch,), torch.float32, "timestep")
    if kind in ("projection", "simple_projection"):
        width = int(config["projection_class_embeddings_input_dim"])
        return InputSpec("class_labels", (batch, width), dtype)
    if kind is not None:
        raise _unsupported("class_embed_type", kind)
    return None


def pixart_inputs(
    config: Mapping[str, Any], sample: tuple[int, ...], dtype: torch.dtype, length: int | None
) -> tuple[tuple[InputSpec, ...], type[nn.Module]]:
    """Of PixArt's transformer; `length` tokens of text, None for the pipeline's own number."""
    batch = sample[0]
    sized = config.get("use_additional_conditions")
    if sized is None:  # diffusers' own rule for checkpoints that do not say
        sized = config.get("sample_size") == 128
    text = length or _T5_TOKENS[bool(sized)]
    width = int(config.get("caption_channels") or 4096)
    specs = [
        InputSpec("hidden_states", sample, dtype),
        InputSpec("encoder_hidden_states", (batch, text, width), dtype),
        InputSpec("timestep", (1,), torch.float32, "timestep"),
        InputSpec("encoder_attention_mask", (batch, text), dtype, "ones"),
    ]
    if sized:
        specs.append(InputSpec("resolution", (batch, 2), torch.float32, "sizes"))
        specs.append(InputSpec("aspect_ratio", (batch, 1), torch.float32, "sizes"))
    return tuple(specs), wrappers.PixArtTransformer


def _unsupported(key: str, value: object) -> ModelError:
    return ModelError(
        f"This UNet's conditions are not supported yet: {key} = {value!r}.",
        remedy="Load the module yourself and hand it to the Python API with example inputs: "
        "todo_compile.rewrite(module, example_inputs).",
    )
