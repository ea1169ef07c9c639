"""How a block is called, and what it returns, as far as another block's call can be told alike."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

import torch

from todo_compile._torch import flattened, storage_of
from todo_compile.capture.alike import UnknownError, compared, described

_DEVICES = ("cpu", "cuda")


def call_of(
    args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...] | None, list[torch.Tensor]]:
    """All about a call but the content of its tensors (None if that cannot be told), and those."""
    pairs, tree = flattened((args, kwargs))
    tensors = [leaf for _, leaf in pairs if isinstance(leaf, torch.Tensor)]
    places: dict[int, int] = {}
    leaves: list[Hashable] = []
    try:
        for _, leaf in pairs:
            if isinstance(leaf, torch.Tensor):
                leaves.append((places.setdefault(id(leaf), len(places)), described(leaf)))
            else:
                leaves.append(compared(leaf))
    except UnknownError:
        return None, tensors
    return (tree, leaves, _modes()), tensors


def _modes() -> Hashable:
    """What else torch lets operations depend on."""
    autocast = [(torch.is_autocast_enabled(d), torch.get_autocast_dtype(d)) for d in _DEVICES]
    return (torch.is_grad_enabled(), torch.get_default_dtype(), *autocast)


def is_made_of(
    results: Sequence[Any], new: Sequence[torch.Tensor], given: Sequence[torch.Tensor]
) -> bool:
    """Whether a block's results are constants and tensors with memory that was not given to it."""
    old = {storage_of(tensor) for tensor in given} | {None}
    plain = (type(None), bool, int, float, str)
    return (
        bool(new)
        and all(isinstance(r, torch.Tensor) or type(r) in plain for r in results)
        and all(t.layout is torch.strided and storage_of(t) not in old for t in new)
    )
