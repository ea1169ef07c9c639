"""Trace every repeated block once: the first is traced, one operator stands for each of the others.

    first(x) ─ second ─ third    →    enter(x), what `first` does, leave, block, block

A denoiser is a few kinds of blocks many times over, and tracing takes a millisecond an operation. A
block that is `alike` the first, and is called with what the first was called with but for the
content of tensors, does the same: `copies` writes it out afterwards. What is not so certain is
traced as it is.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from todo_compile._torch import flattened, unflattened
from todo_compile.capture.alike import Alikeness
from todo_compile.capture.block_calls import call_of, is_made_of
from todo_compile.capture.marks import forget, marks, remember

LEAST_PARTS = 5
"""Modules in a block from which on it is worth the operators."""

_TENSOR = object()
_count = itertools.count()


class RepeatedError(Exception):
    """A trace in which operators stand for blocks cannot be relied on; says why."""


@dataclass
class Kind:
    """Blocks that do the same.

    Attributes:
        path: of the first, below the module that is traced.
        call: all about how it is called but the content of tensors.
        results: leaves and tree of what it returned, with a marker for each tensor; None where that
            is unknown, or cannot be returned by another operator.
        number: that the operators know it by.
    """

    path: str
    call: tuple[Any, ...]
    results: tuple[list[Any], Any] | None = None
    number: int = field(default_factory=_count.__next__)


@dataclass
class Repeated:
    """What a trace did with the blocks of a module.

    Attributes:
        alikeness: of the parts of that module.
        kinds: by number.
        firsts: blocks that were traced with an operator before and after, and their `Alikeness`.
        others: (number of the kind, path) of the blocks that an operator stands for, in order.
        called: blocks that were called.
        again: path of one that was called a second time; None while there is none.
    """

    alikeness: Alikeness
    kinds: dict[int, Kind] = field(default_factory=dict[int, Kind])
    firsts: dict[nn.Module, int] = field(default_factory=dict[nn.Module, int])
    others: list[tuple[int, str]] = field(default_factory=list[tuple[int, str]])
    called: set[nn.Module] = field(default_factory=set[nn.Module])
    again: str | None = None

    def check(self) -> None:
        """After the trace, with the blocks' own ``forward`` again.

        Raises:
            RepeatedError: the second call of a block may do something else than its first.
        """
        if self.again is not None:
            raise RepeatedError(f"{self.again} is called more than once")
        for module, number in self.firsts.items():
            if self.alikeness.number(module) != number:
                raise RepeatedError(f"a call of {type(module).__name__} changes its attributes")


@contextmanager
def traced_once(root: nn.Module) -> Generator[Repeated]:
    """While open, a trace of `root`, with fixed sizes, is one for `copies.write_out_blocks`."""
    found = Repeated(Alikeness(root))
    numbers = found.alikeness.numbers(root)
    repeated = _repeated(root, numbers)
    kinds: dict[int, list[Kind]] = {}
    wrapped: list[nn.Module] = []
    try:
        for path, module in root.named_modules():
            number = numbers[module]
            if number is not None and number in repeated:
                _wrap(module, path, number, kinds.setdefault(number, []), found)
                wrapped.append(module)
        yield found
    finally:
        for module in wrapped:
            del module.__dict__["forward"]
        for number in found.kinds:
            forget(number)


def _repeated(root: nn.Module, numbers: dict[nn.Module, int | None]) -> set[int]:
    """The alike that are met more than once where only the first of them is looked into."""
    met: set[int] = set()
    again: set[int] = set()
    waiting = [root]
    while waiting:
        for part in waiting.pop().children():
            number = numbers[part]
            if number in met:
                again.add(number)
                continue
            waiting.append(part)
            if number is not None and sum(1 for _ in part.modules()) > LEAST_PARTS:
                met.add(number)
    return again


def _wrap(module: nn.Module, path: str, number: int, kinds: list[Kind], found: Repeated) -> None:
    original = module.forward

    @functools.wraps(original)
    def forward(*args: Any, **kwargs: Any) -> Any:
        if module in found.called:
            found.again = path
        found.called.add(module)
        call, tensors = call_of(args, kwargs)
        if call is None or not tensors:
            return original(*args, **kwargs)
        kind = next((kind for kind in kinds if kind.call == call), None)
        if kind is None:
            kind = Kind(path, call)
            kinds.append(kind)
            found.kinds[kind.number] = kind
            found.firsts[module] = number
            return _first(kind, original, args, kwargs, tensors)
        if kind.results is None:
            return original(*args, **kwargs)
        found.others.append((kind.number, path))
        leaves, tree = kind.results
        made = iter(marks().block(kind.number, tensors))
        return unflattened([next(made) if leaf is _TENSOR else leaf for leaf in leaves], tree)

    module.forward = forward


def _first(
    kind: Kind,
    original: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    tensors: list[torch.Tensor],
) -> Any:
    """Trace the first of a kind, with an operator before and after."""
    marks().enter(kind.number, tensors)
    result = original(*args, **kwargs)
    leaves, tree = flattened(result)
    results = [leaf for _, leaf in leaves]
    new = [leaf for leaf in results if isinstance(leaf, torch.Tensor)]
    marks().leave(kind.number, new)
    call, after = call_of(args, kwargs)
    untouched = call == kind.call and list(map(id, after)) == list(map(id, tensors))
    if untouched and is_made_of(results, new, tensors):
        remember(kind.number, new)
        kind.results = [_TENSOR if isinstance(r, torch.Tensor) else r for r in results], tree
    return result
