"""Adapters (LoRA and its kin) fused into a model's weights: ``--lora FILE[:SCALE]``.

W ← W + scale · (alpha / rank) · up · down (Hu et al., arXiv 2106.09685, section 4.1), in fp32, so
an exported model needs no extra nodes. LoHa, LoKr and full differences are added likewise, DoRA's
magnitudes applied to the sum (`lora_delta`). Files are safetensors, in any of the namings that
`lora_names` knows. What is not understood is refused: a layer that is silently left out makes
another picture.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from todo_compile.errors import ModelError
from todo_compile.foreign import open_regular
from todo_compile.models.lora_config import Scaling, read_scalings
from todo_compile.models.lora_delta import (
    delta,
    kind_of,
    magnitude_axis,
    rank_of,
    scaled,
)
from todo_compile.models.lora_names import PEFT, Layers, component_of, split
from todo_compile.models.scaled_file import file_and_scale
from todo_compile.models.stfile import (
    Entry,
    check_floating,
    read_header,
    read_into,
    read_metadata,
    read_number,
)

Adapter = dict[str, Entry]
"""One adapted layer: where its parts are in the file, by `lora_names.split`'s names."""


@dataclass(frozen=True)
class Lora:
    """A LoRA file, its header read.

    Attributes:
        path: the file.
        scale: strength that the user chose; 1 is as trained.
        sha256: of the file.
        layers: by component (`lora_names.DENOISER` for what denoises), then by the layer's name as
            the file writes it.
        scalings: by component, where a configuration says how the layers are scaled.
    """

    path: Path
    scale: float
    sha256: str
    layers: dict[str, dict[str, Adapter]] = field(hash=False, repr=False)
    scalings: dict[str, Scaling] = field(hash=False, repr=False)

    def describe(self) -> dict[str, Any]:
        """What decides whether an output can be reused."""
        configured = {name: scaling.describe() for name, scaling in self.scalings.items()}
        found: dict[str, Any] = {"sha256": self.sha256, "scale": self.scale}
        return {**found, "config": configured} if configured else found

    def of(self, component: str) -> dict[str, Adapter]:
        """The layers for a component; empty if there are none."""
        return self.layers.get(component_of(component), {})

    def left_out(self, components: Sequence[str]) -> dict[str, int]:
        """Numbers of layers for other components than these, by component."""
        taken = {component_of(name) for name in components}
        return {name: len(found) for name, found in self.layers.items() if name not in taken}


def parse_lora(text: str) -> Lora:
    """Read ``FILE`` or ``FILE:SCALE``; reads the file's header and hash, not its tensors yet.

    Raises:
        ConfigError: the scale is not a finite number.
        ModelError: the file is absent, damaged, no safetensors, or of a kind that is not supported.
    """
    import hashlib

    path, scale = file_and_scale(text, "--lora", "LoRA")
    entries = read_header(path)
    layers = _layers(path, entries)
    beside = any(name.startswith(PEFT) for name in entries)
    scalings = read_scalings(path, read_metadata(path), beside=beside)
    with open_regular(path) as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return Lora(path, scale, digest, layers, scalings)


def fuser(module: nn.Module, loras: Sequence[Lora], component: str) -> Callable[[], int]:
    """What adds `loras` to the weights that `module` has now, in place and in order.

    It returns the number of layers changed; by then only reading the file can fail.

    Raises:
        ModelError: a layer is not in the module, or has another shape.
    """
    layers = Layers(module) if loras else None
    jobs: list[Callable[[], None]] = []
    for lora in loras:
        assert layers is not None
        scaling = lora.scalings.get(component_of(component))
        for name, paths in _targets(layers, lora, component).items():
            adapter = lora.of(component)[name]
            found: list[Any] = [module.get_submodule(path) for path in paths]
            _check_fits(found, adapter, lora, name)
            start = 0
            for path, layer in zip(paths, found, strict=True):
                weight, bias = cast("Tensor", layer.weight), cast("Tensor | None", layer.bias)
                rows = slice(start, start := start + weight.shape[0])
                factor = lora.scale * _factor(adapter, scaling, path, lora)
                jobs.append(_adding(weight, bias, adapter, factor, rows))

    def add() -> int:
        for job in jobs:
            job()
        return len(jobs)

    return add


def _layers(path: Path, entries: dict[str, Entry]) -> dict[str, dict[str, Adapter]]:
    layers: dict[str, dict[str, Adapter]] = {}
    for name, entry in entries.items():
        found = split(name)
        if found is None:
            raise ModelError(
                f"{path} holds {name}, which is not part of an adapter that can be fused.",
                remedy="LoRA, LoHa, LoKr, DoRA and full differences of linear and convolutional "
                "layers can (no OFT, GLoRA, IA³, bias terms or textual inversions).",
            )
        component, layer, part = found
        parts = layers.setdefault(component, {}).setdefault(layer, {})
        if part in parts:
            raise ModelError(
                f"{path} has {part} of {layer} twice.", remedy="Save or download the LoRA again."
            )
        parts[part] = entry
        if part == "alpha" and math.prod(entry.shape) != 1:
            raise ModelError(
                f"The alpha of {layer} in {path} is {entry.shape}, not one number.",
                remedy="Save the LoRA again: a layer has one alpha.",
            )
    if not layers:
        raise ModelError(
            f"{path} holds no layers.", remedy="Give a LoRA for one of the model's components."
        )
    for adapters in layers.values():
        for layer, parts in adapters.items():
            check_floating({k: v for k, v in parts.items() if k != "alpha"})
            try:
                kind_of(set(parts))
            except ValueError as error:
                raise ModelError(
                    f"{path} has only part of {layer}, or parts that do not belong together: "
                    f"{error}.",
                    remedy="Save or download the LoRA again.",
                ) from error
    return layers


def _targets(layers: Layers, lora: Lora, component: str) -> dict[str, tuple[str, ...]]:
    """Each layer's name in the file → its path in the module, or paths.

    Raises:
        ModelError: the module lacks a layer, or the file has one twice.
    """
    found = {name: layers.find(name) for name in lora.of(component)}
    unknown = [name for name, paths in found.items() if not paths]
    if unknown:
        raise ModelError(
            f"{lora.path} has {len(unknown)} of {len(found)} layers that this {component} lacks "
            f"({', '.join(unknown[:3])}).",
            remedy="Give a LoRA that was trained for this model.",
        )
    names: dict[str, str] = {}
    for name, path in ((name, path) for name, paths in found.items() for path in paths):
        if path in names:
            raise ModelError(
                f"{lora.path} changes {path} twice, as {names[path]} and as {name}.",
                remedy="Remove one of the two from the file.",
            )
        names[path] = name
    return found


def _check_fits(layers: Sequence[Any], adapter: Adapter, lora: Lora, name: str) -> None:
    """Compare shapes by the file's header: the change is worked out without numbers.

    Raises:
        ModelError: its parts do not make up the weight; the weights, if it is of several layers.
    """
    shapes = {part: entry.shape for part, entry in adapter.items()}
    weight = layers[0].weight
    if len(layers) > 1 and shapes.keys() & {"dora", "magnitude"}:
        raise ModelError(
            f"{name} of {lora.path} has magnitudes (DoRA) of several layers in one.",
            remedy="Fuse it in diffusers (fuse_lora) and save the pipeline.",
        )
    outputs = sum(layer.weight.shape[0] for layer in layers)
    wanted = (outputs, weight[0].numel())
    try:
        made = delta({p: torch.empty(s, device="meta") for p, s in _made_of(shapes).items()})
        fits = tuple(made.shape) == wanted
    except (RuntimeError, IndexError, ValueError):
        fits = False
    for part in shapes.keys() & {"dora", "magnitude"}:
        fits = fits and magnitude_axis(part, shapes[part], tuple(weight.shape)) is not None
    if "diff_b" in shapes:
        biased = all(layer.bias is not None for layer in layers)
        fits = fits and biased and shapes["diff_b"] == (outputs,)
    if not fits or 0 in [side for shape in shapes.values() for side in shape]:
        listed = ", ".join(f"{part} {list(shape)}" for part, shape in shapes.items())
        raise ModelError(
            f"{name} of {lora.path} has {listed}, which does not fit "
            f"a weight of {(outputs, *weight.shape[1:])}.",
            remedy="Give a LoRA that was trained for this model.",
        )


def _made_of(parts: Mapping[str, Any]) -> dict[str, Any]:
    """Those that the change itself is made of."""
    return {k: v for k, v in parts.items() if k not in ("alpha", "dora", "magnitude")}


def _factor(adapter: Adapter, scaling: Scaling | None, path: str, lora: Lora) -> float:
    """What the change is multiplied with, besides the user's scale."""
    rank = rank_of({part: entry.shape for part, entry in adapter.items()})
    if "alpha" in adapter:
        return read_number(adapter["alpha"]) / rank if rank is not None else 1.0
    try:
        return scaling.factor(path, rank) if scaling is not None else 1.0  # alpha is the rank
    except ValueError as error:
        raise ModelError(
            f"{lora.path} is scaled in a way that is not supported: {error}.",
            remedy="Fuse it in diffusers (fuse_lora) and save the pipeline.",
        ) from error


def _adding(
    weight: Tensor, bias: Tensor | None, adapter: Adapter, factor: float, rows: slice
) -> Callable[[], None]:
    def add() -> None:
        change = delta({part: _read(entry) for part, entry in _made_of(adapter).items()})[rows]
        with torch.no_grad():
            fused = weight.to(torch.float32) + factor * change.reshape(weight.shape)
            for part in adapter.keys() & {"dora", "magnitude"}:
                entry = adapter[part]
                by_output = magnitude_axis(part, entry.shape, tuple(weight.shape))
                fused = scaled(fused, _read(entry), by_output=bool(by_output))
            weight.copy_(fused.to(weight.dtype))
            if bias is not None and "diff_b" in adapter:
                bias.add_((factor * _read(adapter["diff_b"])[rows]).to(bias.dtype))

    return add


def _read(entry: Entry) -> Tensor:
    tensor = torch.empty(entry.shape, dtype=torch.float32)
    read_into(entry, tensor)
    return tensor
