"""Filling a module's tensors from safetensors files, after the two were compared in full."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from todo_compile.errors import ModelError
from todo_compile.models.original import convert, is_original
from todo_compile.models.stfile import Entry, check_floating, read_header, read_into

if TYPE_CHECKING:
    from collections.abc import Callable

_SHOWN = 3
_MARKS = {
    768: "the text width of sd15",
    1024: "the text width of sd21",
    2048: "the text width of sdxl",
}


def open_checkpoint(
    wanted: Mapping[str, torch.Tensor],
    files: Sequence[Path],
    component: str = "unet",
    config: Mapping[str, Any] | None = None,
) -> dict[str, Entry]:
    """Where the tensors of a module lie in `files`; only headers are read.

    Args:
        wanted: the module's ``state_dict()``.
        files: safetensors files that together hold every parameter and persistent buffer, under
            diffusers' names or in the original layout, then perhaps with a whole pipeline.
        component: which part of it the module is.
        config: of the module, needed for the original layout.

    Raises:
        ModelError: a damaged file, missing or unexpected keys, or other shapes.
    """
    entries: dict[str, Entry] = {}
    for file in files:
        entries.update(read_header(file))
    if is_original(entries):
        entries = convert(entries, component, config or {})
    entries = modern_names(wanted, entries)
    check(wanted, entries, files)
    return entries


def fill_from(
    wanted: Mapping[str, torch.Tensor],
    entries: Mapping[str, Entry],
    report: Callable[[int, int], None] | None = None,
) -> None:
    """Copy the tensors of a checkpoint into `wanted`, converting to its dtypes one by one.

    Args:
        wanted: contiguous tensors on the CPU; written in place.
        entries: from `open_checkpoint`.
        report: called with (bytes done, bytes in all) after each tensor.

    Raises:
        ModelError: a file cannot be read to its end.
    """
    total = sum(entry.nbytes for entry in entries.values())
    done = 0
    with torch.no_grad():
        for name, target in wanted.items():
            read_into(entries[name], target)
            done += entries[name].nbytes
            if report is not None:
                report(done, total)


_OLD_ATTENTION = {
    "query": "to_q",
    "key": "to_k",
    "value": "to_v",
    "proj_attn": "to_out.0",
}
"""Names of an autoencoder's attention before diffusers 0.17; SD1.5's and SD2's files have them."""


def modern_names(
    wanted: Mapping[str, torch.Tensor], entries: Mapping[str, Entry]
) -> dict[str, Entry]:
    """Entries under the names that today's libraries use, where a file has older ones.

    Autoencoders named their attention differently, and CLIP's text encoder has its layers under
    ``text_model.`` or not, by version of transformers; its ``position_ids`` were saved once. What
    is known under its name already keeps it.
    """
    renamed: dict[str, Entry] = {}
    for name, entry in entries.items():
        new = name
        if name not in wanted:
            if name.endswith(".position_ids"):
                continue  # 0, 1, 2, …: made by the module itself
            free = (n for n in _other_names(name) if n in wanted and n not in entries)
            new = next(free, name)
        renamed[new] = entry
    return renamed


def _other_names(name: str) -> list[str]:
    parts = name.split(".")
    if len(parts) > 2 and parts[-2] in _OLD_ATTENTION:
        return [".".join([*parts[:-2], _OLD_ATTENTION[parts[-2]], parts[-1]])]
    return [name.removeprefix("text_model."), f"text_model.{name}"]


def check(
    wanted: Mapping[str, torch.Tensor], entries: Mapping[str, Entry], files: Sequence[Path]
) -> None:
    """Compare names and shapes.

    Raises:
        ModelError: they differ; the message counts and shows the first few.
    """
    where = str(files[0]) if len(files) == 1 else str(files[0].parent)
    missing = [name for name in wanted if name not in entries]
    unexpected = [name for name in entries if name not in wanted]
    if missing or unexpected:
        parts = [f"{len(missing)} of {len(wanted)} keys missing{_few(missing)}"] * bool(missing)
        parts += [f"{len(unexpected)} unexpected{_few(unexpected)}"] * bool(unexpected)
        raise ModelError(
            f"{where} does not fit the model: {'; '.join(parts)}.", remedy=_hint(entries)
        )
    check_floating({name: entries[name] for name in wanted})
    shapes = [
        f"{name} is {_shape(entries[name].shape)}, not {_shape(tensor.shape)}"
        for name, tensor in wanted.items()
        if tuple(tensor.shape) != entries[name].shape
    ]
    if shapes:
        raise ModelError(
            f"{where} does not fit the model: {len(shapes)} tensors have another shape "
            f"({'; '.join(shapes[:_SHOWN])}{'; …' if len(shapes) > _SHOWN else ''}).",
            remedy=_hint(entries),
        )


def _hint(entries: Mapping[str, Entry]) -> str:
    """What the checkpoint looks like, for an error; empty if nothing is known of it."""
    if any("lora" in name for name in entries):
        return (
            "This looks like a LoRA: give it as --lora FILE[:SCALE], beside the model's own "
            "weights."
        )
    if any(name.endswith((".scale_weight", ".weight_scale", ".comfy_quant")) for name in entries):
        return (
            "Its weights are quantised with scales of their own, which is not supported: give them "
            "in fp32, fp16, bf16 or plain fp8."
        )
    width = next(
        (e.shape[-1] for n, e in sorted(entries.items()) if n.endswith("attn2.to_k.weight")), None
    )
    seen = ""
    if width is not None:
        seen = f"Its cross-attention is {width} wide" + (
            f", {_MARKS[width]}. " if width in _MARKS else ". "
        )
    return f"{seen}Give the --model that these weights belong to, or other --weights."


def _few(names: Sequence[str]) -> str:
    return f" ({', '.join(names[:_SHOWN])}{', …' if len(names) > _SHOWN else ''})"


def _shape(shape: Sequence[int]) -> str:
    return "×".join(str(side) for side in shape) or "a scalar"
