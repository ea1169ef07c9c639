"""What belongs to one block, as it is in another block that is alike: names, fake values."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import torch

from todo_compile._torch import fake_mode_of, map_tensors, storage_of
from todo_compile.capture.repeated import RepeatedError


class MovedNames:
    """Names of what belongs to one block, as another block has them."""

    def __init__(self, old: str, new: str) -> None:
        self._old = old
        self._new = new
        self._stacks: dict[int, dict[str, Any]] = {}

    def name(self, name: str) -> str:
        """`name` of the other block.

        Raises:
            RepeatedError: it is no name of the one block's.
        """
        if not name.startswith(f"{self._old}."):
            raise RepeatedError(f"{self._old} has to do with {name or 'an input'}")
        return self._new + name.removeprefix(self._old)

    def stack(self, stack: dict[str, tuple[str, Any]], depth: int) -> dict[str, Any]:
        """An ``nn_module_stack`` of the other block, from `depth` on."""
        if (found := self._stacks.get(id(stack))) is None:
            found = self._stacks[id(stack)] = {}
            for key, (path, kind) in list(stack.items())[depth:]:
                moved = self.name(path)
                before, _, after = key.rpartition(path)  # after: "@1" of what is called again
                found[before + moved + after] = (moved, kind)
        return found


class MovedValues:
    """Fake values of one block as another block has them.

    Args:
        own_memory: the other block has memory of its own for all of them.
    """

    def __init__(self, *, own_memory: bool) -> None:
        self._own_memory = own_memory
        self._places: dict[int | None, tuple[Any, Any]] = {}

    def add(self, first: Any, other: Any) -> None:
        """What was at one place in the one block is at another in the other."""
        self._places[storage_of(first)] = first, other

    def moved(self, value: Any) -> Any:
        """The same value where the other block has it, if that is known; else the value itself."""
        return map_tensors(self._moved, value)

    def _moved(self, value: torch.Tensor) -> torch.Tensor:
        place = storage_of(value)
        if place not in self._places and self._own_memory:
            length = value.untyped_storage().nbytes() // value.element_size()
            with fake_mode_of(value) or nullcontext():
                memory = torch.empty(length, dtype=value.dtype, device=value.device)
                self.add(value, _at_its_place(value, memory))
        first, other = self._places.get(place, (None, None))
        if first is None or value.dtype != first.dtype:
            return value
        if value is first:
            return other
        with fake_mode_of(other) or nullcontext():
            return _at_its_place(value, other)


def _at_its_place(value: torch.Tensor, memory: torch.Tensor) -> torch.Tensor:
    return memory.as_strided(value.shape, value.stride(), value.storage_offset())
