"""From a recorded call to a module with a flat signature: tensors in, tensors out.

    {"sample": T, "added_cond_kwargs": {"text_embeds": T, "time_ids": T}, "return_dict": False}
        →  forward(sample, text_embeds, time_ids)

Tensors become inputs, in the order of the call, named after where they were; all else is fixed. A
timestep given as a whole number becomes fp32, and one without axes gets one: the same for every
scheduler, see `todo_compile.capture.inputs`. A mask that is given as numbers, 0 and 1, becomes
boolean, so that the graph itself says that it counts tokens. Complex numbers go in as pairs of real
ones on a last axis of 2: ONNX and engines have no complex inputs.
"""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from todo_compile._torch import flattened, unflattened

_TIMES = ("timestep", "timesteps", "t")


@dataclass(frozen=True)
class Flat:
    """A recorded call, flat.

    Attributes:
        names: of its tensors, in order.
        tensors: as recorded, timesteps excepted.
        leaves: everything in the call, in order; None in the places of tensors.
        fixed: see `fixed`.
        masks: types of those masks that were given as numbers, by name.
        pairs: names of those that were complex.
        places: of the tensors in `leaves`.
        tree: how `leaves` make up the call's arguments.
    """

    names: tuple[str, ...]
    tensors: tuple[Tensor, ...]
    leaves: tuple[Any, ...]
    places: tuple[int, ...]
    tree: Any
    fixed: Mapping[str, str]
    masks: Mapping[str, torch.dtype]
    pairs: frozenset[str] = frozenset()

    @property
    def by_name(self) -> dict[str, Tensor]:
        """Tensors by name."""
        return dict(zip(self.names, self.tensors, strict=True))

    @property
    def text(self) -> str:
        """What is fixed, for comparison."""
        return f"{self.tree} {self.leaves!r}"


def flatten(arguments: Mapping[str, Any]) -> Flat:
    """`Flat` of a call's arguments."""
    given = {**arguments, "return_dict": False} if "return_dict" in arguments else dict(arguments)
    pairs, tree = flattened(given)
    places = tuple(i for i, (_, leaf) in enumerate(pairs) if isinstance(leaf, Tensor))
    paths = [pairs[i][0] for i in places]
    tensors = tuple(_timely(pairs[i][0], cast("Tensor", pairs[i][1])) for i in places)
    names = _names(paths)
    masks = {n: t.dtype for n, t in zip(names, tensors, strict=True) if _is_mask(n, t)}
    tensors = tuple(
        t.to(torch.bool) if n in masks else t for n, t in zip(names, tensors, strict=True)
    )
    halves = frozenset(n for n, t in zip(names, tensors, strict=True) if t.is_complex())
    tensors = tuple(
        torch.view_as_real(t.resolve_conj()) if n in halves else t
        for n, t in zip(names, tensors, strict=True)
    )
    leaves = tuple(None if i in places else leaf for i, (_, leaf) in enumerate(pairs))
    return Flat(names, tensors, leaves, places, tree, fixed(given), masks, halves)


def fixed(arguments: Mapping[str, Any]) -> dict[str, str]:
    """What a call has besides tensors and absent arguments, by where it is."""
    return {
        "_".join(path): repr(leaf)
        for path, leaf in flattened(dict(arguments))[0]
        if not isinstance(leaf, Tensor) and leaf is not None and path != ("return_dict",)
    }


def wrapper(flat: Flat, component: str, name: str) -> type[nn.Module]:
    """A module class around the denoiser, whose ``forward`` takes the call's tensors.

    Args:
        flat: of the call.
        component: attribute that the denoiser hangs on.
        name: of the class, which errors show: the denoiser's own.
    """

    def init(self: nn.Module, module: nn.Module) -> None:
        nn.Module.__init__(self)
        setattr(self, component, module)

    def forward(self: nn.Module, *values: Tensor) -> Any:
        leaves = list(flat.leaves)
        for key, place, value in zip(flat.names, flat.places, values, strict=True):
            leaves[place] = _as_given(flat, key, value)
        found = getattr(self, component)(**unflattened(leaves, flat.tree))
        return _plain(found)

    names = ("self", *flat.names)
    each = [inspect.Parameter(n, inspect.Parameter.POSITIONAL_OR_KEYWORD) for n in names]
    forward.__signature__ = inspect.Signature(each)  # pyright: ignore[reportFunctionMemberAccess]
    return type(name, (nn.Module,), {"__init__": init, "forward": forward})


def _as_given(flat: Flat, name: str, value: Tensor) -> Tensor:
    """What the denoiser was given in the place of a tensor that goes in."""
    if name in flat.pairs:
        return torch.view_as_complex(value.float().contiguous())
    return value.to(flat.masks[name]) if name in flat.masks else value


def _plain(found: Any) -> Any:
    """What is denoised alone, of all that a denoiser returns; several are a picture each."""
    first: Any = found if isinstance(found, Tensor) else found[0]
    if isinstance(first, list):
        return tuple(cast("list[Tensor]", first))
    return first


def _timely(path: tuple[str, ...], tensor: Tensor) -> Tensor:
    if len(path) != 1 or path[0] not in _TIMES:
        return tensor
    if not tensor.is_floating_point():
        tensor = tensor.to(torch.float32)
    return tensor[None] if tensor.dim() == 0 else tensor


def _is_mask(name: str, tensor: Tensor) -> bool:
    """Whether it says of every token, by 1 or 0, whether it counts. What is added to scores is 0
    for tokens that count."""
    if "mask" not in name or tensor.dim() != 2 or tensor.dtype is torch.bool:
        return False
    return bool(((tensor == 0) | (tensor == 1)).all()) and bool((tensor == 1).any())


def _names(paths: Sequence[tuple[str, ...]]) -> tuple[str, ...]:
    """The last key of each where that is unique, else the whole path."""
    short = [_short(path) for path in paths]
    counts = Counter(short)
    whole = ["_".join(path) for path in paths]
    return tuple(s if counts[s] == 1 else w for s, w in zip(short, whole, strict=True))


def _short(path: tuple[str, ...]) -> str:
    last = max((i for i, key in enumerate(path) if not key.isdigit()), default=0)
    return "_".join(path[last:])
