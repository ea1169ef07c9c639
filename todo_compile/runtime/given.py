"""Further arguments of a pipeline's call, from a file: tensors that other models made."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from todo_compile.errors import InputError
from todo_compile.models.stfile import DTYPES, read_header, read_into

if TYPE_CHECKING:
    from torch import Tensor

_TYPES = {name: dtype for name, (dtype, size) in DTYPES.items() if size > 1}  # of 8 bits: weights


_LISTS = ("ip_adapter_image_embeds",)
"""Arguments that are a list of tensors, of which a file has one."""


def read_tensors(path: Path) -> dict[str, Tensor | list[Tensor]]:
    """The tensors of a safetensors file by name, such as Kandinsky's ``image_embeds``.

    Raises:
        InputError: one is not of floating point.
        ModelError: the file is damaged or absent.
    """
    import torch

    found: dict[str, Tensor] = {}
    for name, entry in read_header(path).items():
        if entry.dtype not in _TYPES:
            raise InputError(
                f"{name} in {path} is of {entry.dtype}, which no pipeline is given.",
                remedy=f"Store it as {', '.join(_TYPES)}.",
            )
        found[name] = torch.empty(entry.shape, dtype=getattr(torch, _TYPES[entry.dtype]))
        read_into(entry, found[name])
    return {name: [value] if name in _LISTS else value for name, value in found.items()}
