"""Which parts of a module are provably alike: whatever is done with one, the other would do too.

    blocks.0 ─ attn ─ to_q (640, 640)          blocks.1 ─ attn ─ to_q (640, 640)
             └ ff   ─ up (640, 5120)                    └ ff   ─ up (640, 5120)

Alike are two modules of one class of a known library, whose parameters and buffers have the same
names and descriptions, whose attributes are equal by type and value, and whose parts are alike. An
attribute that cannot be compared (an object of a class that is not known, a tensor, a bound method)
makes a module like no other, as do hooks, a ``forward`` of the instance, and what it shares with
another part: a module or a tensor that two paths lead to.
"""

from __future__ import annotations

import abc
import enum
import functools
import types
from collections import Counter, OrderedDict
from collections.abc import Hashable, Iterator
from typing import Any, Generic

import torch
from torch import nn

LIBRARIES = frozenset({"torch", "diffusers"})
"""Packages whose classes keep what they do in their attributes, where it can be compared. (Layers
of transformers get hooks while their model runs.)
"""

_VALUES = (
    type(None), bool, int, str, bytes, torch.dtype, torch.device, torch.layout, torch.Size,
)  # fmt: skip
_NAMED = (type, types.FunctionType, types.BuiltinFunctionType)
"""What is the same thing only where it is the same object."""

_BASES = frozenset({object, dict, OrderedDict, abc.ABC, Generic})
"""Of other classes those that keep nothing hidden."""

_PARTS, _PARAMETERS, _BUFFERS = "_modules", "_parameters", "_buffers"


class UnknownError(Exception):
    """A value cannot be compared with others."""


class Alikeness:
    """Compares the parts of one module, as they are when they are asked about.

    Args:
        root: the module that all others belong to.
    """

    def __init__(self, root: nn.Module) -> None:
        self._numbers: dict[Hashable, int] = {}
        self._owners = Counter(id(held) for held in _held(root))

    def number(self, module: nn.Module) -> int | None:
        """The same for modules that are alike; None for one that is like no other."""
        return self.numbers(module)[module]

    def numbers(self, root: nn.Module) -> dict[nn.Module, int | None]:
        """`number` of a module and all its parts."""
        found: dict[nn.Module, int | None] = {}
        self._number(root, found)
        return found

    def _number(self, module: nn.Module, found: dict[nn.Module, int | None]) -> int | None:
        if module in found:
            return found[module]
        parts = [
            (name, None if part is None else (self._number(part, found),))
            for name, part in vars(module)[_PARTS].items()
        ]
        found[module] = None
        if self._owners[id(module)] > 1 or (None,) in [part for _, part in parts]:
            return None
        try:
            key = (type(module), tuple(parts), *self._own(module))
        except UnknownError:
            return None
        found[module] = self._numbers.setdefault(key, len(self._numbers))
        return found[module]

    def _own(self, module: nn.Module) -> tuple[Hashable, ...]:
        """What a module is, besides its parts."""
        if not _is_known(type(module)):
            raise UnknownError
        attributes: list[tuple[str, Hashable]] = []
        for name, value in vars(module).items():
            if name in (_PARTS, _PARAMETERS, _BUFFERS):
                continue
            if name == "forward" or (name.endswith("_hooks") and value):
                raise UnknownError
            attributes.append((name, compared(value)))
        attributes.sort(key=lambda pair: pair[0])
        tensors = (self._tensors(vars(module)[each]) for each in (_PARAMETERS, _BUFFERS))
        return (tuple(attributes), *tensors)

    def _tensors(self, held: dict[str, torch.Tensor | None]) -> Hashable:
        if any(value is not None and self._owners[id(value)] > 1 for value in held.values()):
            raise UnknownError
        return tuple((name, None if t is None else described(t)) for name, t in held.items())


def described(tensor: torch.Tensor) -> Hashable:
    """All of a tensor but what it holds.

    Raises:
        UnknownError: it has no strides.
    """
    if tensor.layout is not torch.strided:
        raise UnknownError
    return (
        type(tensor), tensor.dtype, tensor.device, tensor.shape, tensor.stride(),
        tensor.storage_offset(), tensor.requires_grad,
    )  # fmt: skip


def compared(value: Any) -> Hashable:
    """The same for values that nothing can tell apart but their identity.

    Raises:
        UnknownError: it is of a class that is not known.
    """
    return _compared(value, ())


def _compared(value: Any, inside: tuple[int, ...]) -> Hashable:
    kind = type(value)
    if kind in _VALUES:
        return kind, value
    if kind in (float, complex):
        return kind, repr(value)  # tells 0.0 from -0.0, and is the same for two nan
    if kind in _NAMED or isinstance(value, (type, enum.Enum)):
        return _Same(value)
    if id(value) in inside:
        raise UnknownError
    within = (*inside, id(value))
    if kind in (list, tuple):
        return kind, tuple(_compared(item, within) for item in value)
    if kind in (set, frozenset):
        return kind, frozenset(_compared(item, within) for item in value)
    if kind in (dict, OrderedDict):
        return kind, _items(value, within)
    if kind is functools.partial:
        return kind, _compared((value.func, value.args, value.keywords), within)
    if not _is_plain_object(value):
        raise UnknownError
    items = _items(value, within) if isinstance(value, dict) else ()  # a configuration of diffusers
    return kind, items, _items(vars(value), within)


def _items(mapping: dict[Any, Any], inside: tuple[int, ...]) -> Hashable:
    return tuple((_compared(k, inside), _compared(v, inside)) for k, v in mapping.items())


class _Same:
    """Equal where it is of the same object, which it keeps from being freed."""

    def __init__(self, value: object) -> None:
        self._value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and self._value is other._value

    def __hash__(self) -> int:
        return id(self._value)


def _is_plain_object(value: Any) -> bool:
    """Whether all that a value knows is in its ``__dict__``, or in itself as a mapping."""
    kind: type = type(value)
    if isinstance(value, (nn.Module, torch.Tensor)) or not _is_known(kind):
        return False
    slots = any(vars(base).get("__slots__") for base in kind.__mro__)
    bases = all(base in _BASES or _is_known(base) for base in kind.__mro__)
    return hasattr(value, "__dict__") and bases and not slots


def _is_known(kind: type) -> bool:
    """Whether a class is written in Python, in one of the libraries."""
    library, _, rest = kind.__module__.partition(".")
    return library in LIBRARIES and not rest.startswith("_C")


def _held(module: nn.Module) -> Iterator[object]:
    """All parts and tensors, each as often as a path leads to it."""
    for part in vars(module)[_PARTS].values():
        if part is not None:
            yield part
            yield from _held(part)
    for each in (_PARAMETERS, _BUFFERS):
        yield from (value for value in vars(module)[each].values() if value is not None)
