"""Operators that tell a trace's reader where blocks are; they have no kernels and do nothing.

``enter(kind, given)`` and ``leave(kind, results)`` stand before and after what the first block of a
kind does, ``block(kind, given)`` stands for another one.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.fx import Node
from torch.fx.node import has_side_effect

from todo_compile._torch import overload_name

_NAMESPACE = "todo_compile_blocks"

_forms: dict[int, list[tuple[Any, ...]]] = {}
"""Number of a kind → what ``block`` returns for it."""


def mark_of(node: Node) -> str:
    """The name of the operator that a node calls; "" where it is none of these."""
    namespace, name = overload_name(node.target) or ("", "")
    return name if namespace == _NAMESPACE else ""


def remember(kind: int, results: Sequence[torch.Tensor]) -> None:
    """From now on ``block`` returns tensors like `results` for a kind."""
    _forms[kind] = [_form(tensor) for tensor in results]


def forget(kind: int) -> None:
    """Undo `remember`."""
    _forms.pop(kind, None)


def _form(tensor: torch.Tensor) -> tuple[Any, ...]:
    length = tensor.untyped_storage().nbytes() // tensor.element_size()
    place = tuple(tensor.shape), tensor.stride(), tensor.storage_offset()
    return length, place, tensor.dtype, tensor.device


def _made(number: int, given: list[torch.Tensor]) -> list[torch.Tensor]:  # noqa: ARG001
    return [
        torch.empty(length, dtype=dtype, device=device).as_strided(*place)
        for length, place, dtype, device in _forms[number]
    ]


def _nothing(number: int, tensors: list[torch.Tensor]) -> None:
    """Marks a place."""


class Marks:
    """The operators: `enter`, `leave` and `block`, all with (number of a kind, tensors)."""

    def __init__(self) -> None:
        self._library = torch.library.Library(_NAMESPACE, "DEF")  # they live as long as it does
        self.enter = self._defined("enter", "()", _nothing)
        self.leave = self._defined("leave", "()", _nothing)
        self.block = self._defined("block", "Tensor[]", _made)

    def _defined(self, name: str, result: str, made: Callable[..., Any]) -> Any:
        self._library.define(f"{name}(int kind, Tensor[] tensors) -> {result}")
        torch.library.register_fake(f"{_NAMESPACE}::{name}", made, lib=self._library)
        operator = getattr(getattr(torch.ops, _NAMESPACE), name).default
        has_side_effect(operator)  # a trace keeps what nobody reads
        return operator


@functools.cache
def marks() -> Marks:
    """The operators, defined once in a process."""
    return Marks()
