"""Low-rank adapters (LoRA) fused into a model's weights: ``--lora FILE[:SCALE]``.

W ← W + scale · (alpha / rank) · up · down (Hu et al., arXiv 2106.09685, section 4.1), in fp32, so
an exported model needs no extra nodes. Files are safetensors, as diffusers and peft write them
(``unet.….lora_A.weight``) or as kohya's trainer does (``lora_unet_….lora_down.weight``). What is
not understood is refused: a layer that is silently left out makes another picture.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from todo_compile.errors import ConfigError, ModelError
from todo_compile.foreign import open_regular, parse_object
from todo_compile.models.stfile import Entry, check_floating, read_header, read_into, read_metadata

_SIDES = (
    (re.compile(r"(.+)\.(?:lora_A(?:\.default)?|lora_down|lora\.down)\.weight"), "down"),
    (re.compile(r"(.+)\.(?:lora_B(?:\.default)?|lora_up|lora\.up)\.weight"), "up"),
    (re.compile(r"(.+)\.alpha"), "alpha"),
)
_KOHYA = {
    "lora_unet_": "unet",
    "lora_te_": "text_encoder",
    "lora_te1_": "text_encoder",
    "lora_te2_": "text_encoder_2",
}
# An alpha for each layer, alpha/√rank, and magnitudes of their own.
_SCALED_OTHERWISE = ("alpha_pattern", "use_rslora", "use_dora")
_DOTTED = ("unet", "transformer", "text_encoder_2", "text_encoder")


@dataclass(frozen=True)
class LoraLayer:
    """One adapted layer: where its parts are in the file."""

    down: Entry
    up: Entry
    alpha: Entry | None


@dataclass(frozen=True)
class Lora:
    """A LoRA file, its header read.

    Attributes:
        path: the file.
        scale: strength that the user chose; 1 is as trained.
        sha256: of the file.
        layers: by component, then by the layer's name as the file writes it.
        alphas: by component, where the file says it once for all layers.
    """

    path: Path
    scale: float
    sha256: str
    layers: dict[str, dict[str, LoraLayer]] = field(hash=False, repr=False)
    alphas: dict[str, float] = field(hash=False, repr=False)

    def describe(self) -> dict[str, Any]:
        """What decides whether an output can be reused."""
        return {"sha256": self.sha256, "scale": self.scale}


def parse_lora(text: str) -> Lora:
    """Read ``FILE`` or ``FILE:SCALE``; reads the file's header and hash, not its tensors yet.

    Raises:
        ConfigError: the scale is not a finite number.
        ModelError: the file is absent, damaged, no safetensors, or of a kind that is not supported.
    """
    import hashlib

    name, scale = text, 1.0
    head, colon, tail = text.rpartition(":")
    if colon and not Path(text).is_file():
        with suppress(ValueError):  # a path with a colon, that is not there
            name, scale = head, float(tail)
    if not math.isfinite(scale):
        raise ConfigError(f"{tail!r} is not a scale.", remedy="Write --lora FILE:0.8.")
    path = Path(name).expanduser()
    if path.suffix != ".safetensors" or not path.is_file():
        raise ModelError(
            f"{path} is not a safetensors file.",
            remedy="Write --lora FILE.safetensors[:SCALE]; pickles are refused.",
        )
    layers = _layers(path, read_header(path))
    with open_regular(path) as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return Lora(path, scale, digest, layers, _alphas(path))


def fuser(module: nn.Module, loras: Sequence[Lora], component: str) -> Callable[[], int]:
    """What adds `loras` to the weights that `module` has now, in place and in order.

    It returns the number of layers changed; by then only reading the file can fail.

    Raises:
        ModelError: a layer is not in the module, or has another shape.
    """
    known = _names(module)
    jobs: list[tuple[torch.Tensor, LoraLayer, Lora]] = []
    for lora in loras:
        found = lora.layers.get(component, {})
        unknown = [name for name in found if _find(known, name) is None]
        if unknown:
            raise ModelError(
                f"{lora.path} has {len(unknown)} of {len(found)} layers that this {component} "
                f"lacks ({', '.join(unknown[:3])}).",
                remedy="Give a LoRA for this model; names of the original (not diffusers') layout "
                "must be converted first: load it in diffusers and save_lora_weights.",
            )
        for name, layer in found.items():
            weight = cast("torch.Tensor", module.get_submodule(str(_find(known, name))).weight)
            _check_fits(weight, layer, lora, name)
            jobs.append((weight, layer, lora))

    def add() -> int:
        for weight, layer, lora in jobs:
            _add(weight, layer, lora, component)
        return len(jobs)

    return add


def _layers(path: Path, entries: dict[str, Entry]) -> dict[str, dict[str, LoraLayer]]:
    check_floating(entries)
    parts: dict[tuple[str, str], dict[str, Entry]] = {}
    for name, entry in entries.items():
        split = _split(name)
        if split is None:
            raise ModelError(
                f"{path} holds {name}, which is no part of a plain LoRA.",
                remedy="Plain LoRAs can be fused (no DoRA, LoHa, LoKr or textual inversions).",
            )
        component, layer, side = split
        parts.setdefault((component, layer), {})[side] = entry
    layers: dict[str, dict[str, LoraLayer]] = {}
    for (component, layer), sides in parts.items():
        if "up" not in sides or "down" not in sides:
            raise ModelError(
                f"{path} has only half of {layer}: {', '.join(sides)}.",
                remedy="Save or download the LoRA again.",
            )
        if "alpha" in sides and math.prod(sides["alpha"].shape) != 1:
            raise ModelError(
                f"The alpha of {layer} in {path} is {sides['alpha'].shape}, not one number.",
                remedy="Save the LoRA again: a layer has one alpha.",
            )
        found = LoraLayer(sides["down"], sides["up"], sides.get("alpha"))
        layers.setdefault(component, {})[layer] = found
    if not layers:
        raise ModelError(
            f"{path} holds no layers.", remedy="Give a LoRA for one of the model's components."
        )
    return layers


def _split(name: str) -> tuple[str, str, str] | None:
    """(component, layer, side) of a tensor's name."""
    for pattern, side in _SIDES:
        match = pattern.fullmatch(name)
        if match is None:
            continue
        layer = match[1]
        for prefix, component in _KOHYA.items():
            if layer.startswith(prefix):
                return component, layer.removeprefix(prefix), side
        for component in _DOTTED:
            if layer.startswith(f"{component}."):
                return component, layer.removeprefix(f"{component}."), side
        return None
    return None


def _alphas(path: Path) -> dict[str, float]:
    """alpha by component from the adapter's configuration, which diffusers stores in the header."""
    text = read_metadata(path).get("lora_adapter_metadata")
    if text is None:
        return {}
    try:
        values = parse_object(text)
        for key in _SCALED_OTHERWISE:
            if any(values.get(f"{name}.{key}") for name in _DOTTED):
                raise ModelError(
                    f"{path} is scaled in a way that is not supported ({key}).",
                    remedy="Fuse it in diffusers (fuse_lora) and save the pipeline.",
                )
        found = {name: values.get(f"{name}.lora_alpha") for name in _DOTTED}
        return {name: float(alpha) for name, alpha in found.items() if alpha is not None}
    except (ValueError, TypeError) as error:
        raise ModelError(
            f"{path} has a damaged adapter configuration: {error}.", remedy="Save the LoRA again."
        ) from error


def _names(module: nn.Module) -> dict[str, str]:
    """Layers that have a weight, under their own name and with ``_`` for ``.`` as kohya has it."""
    names = [n for n, m in module.named_modules() if isinstance(m, nn.Linear | nn.Conv2d)]
    return {n.replace(".", "_"): n for n in names} | {n: n for n in names}


def _find(known: dict[str, str], name: str) -> str | None:
    """The layer's path; CLIP's layers lie under ``text_model`` or not, by version."""
    for mark in ("text_model.", "text_model_"):
        for candidate in (name, name.removeprefix(mark), f"{mark}{name}"):
            if candidate in known:
                return known[candidate]
    return None


def _check_fits(weight: torch.Tensor, layer: LoraLayer, lora: Lora, name: str) -> None:
    """Compare shapes by the file's header: up is (out, rank), down (rank, in), 1 × 1 more or less.

    Raises:
        ModelError: they do not make up the weight.
    """
    up, down = layer.up.shape, layer.down.shape
    rank = next(iter(down), 0)
    fits = min(len(down), len(up)) >= 2 and rank > 0 and math.prod(up[1:]) == rank
    if not fits or up[0] * math.prod(down[1:]) != weight.numel():
        raise ModelError(
            f"{name} of {lora.path} is {up} · {down}, which does not fit "
            f"a weight of {tuple(weight.shape)}.",
            remedy="Give a LoRA that was trained for this model.",
        )


def _add(weight: torch.Tensor, layer: LoraLayer, lora: Lora, component: str) -> None:
    down, up = _read(layer.down), _read(layer.up)
    rank = down.shape[0]
    alpha = float(_read(layer.alpha).reshape(())) if layer.alpha is not None else None
    alpha = lora.alphas.get(component, float(rank)) if alpha is None else alpha
    delta = (up.flatten(1) @ down.flatten(1)).reshape(weight.shape)
    with torch.no_grad():
        fused = weight.to(torch.float32) + lora.scale * alpha / rank * delta
        weight.copy_(fused.to(weight.dtype))


def _read(entry: Entry) -> torch.Tensor:
    tensor = torch.empty(entry.shape, dtype=torch.float32)
    read_into(entry, tensor)
    return tensor
