"""An output's inputs and outputs as its manifest describes them: names, types, shapes, batches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Protocol

from pydantic import (
    BeforeValidator,
    PlainSerializer,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)

from todo_compile.batches import BatchRange, parse_batch
from todo_compile.bundle.entries import Frozen
from todo_compile.errors import ConfigError


class Spec(Protocol):
    """A tensor's name, shape and type, whoever describes it."""

    @property
    def name(self) -> str: ...
    @property
    def shape(self) -> Sequence[int]: ...
    @property
    def dtype(self) -> object: ...


def _batch_range(value: object) -> BatchRange | None:
    if value is None:
        return None
    try:
        found = parse_batch(value)
    except ConfigError as error:
        raise ValueError(error.message) from error
    if not isinstance(found, BatchRange):
        raise ValueError(f"{value!r} is no range")
    return found


class Tensor(Frozen):
    """An input or output of the engine.

    Attributes:
        name: in the engine.
        shape: its sizes. The first is -1 if it may be any of `batches`; no other is ever.
        dtype: "float16".
        batches: the range of the first size, a string such as ``1..4`` in the file. None for a
            tensor of fixed shape, whose entry has no such key.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    batches: Annotated[BatchRange | None, BeforeValidator(_batch_range), PlainSerializer(str)] = (
        None
    )

    @model_validator(mode="after")
    def _consistent(self) -> Tensor:
        wanted = 0 if self.batches is None else 1
        if self.shape[:1].count(-1) != wanted or min(self.shape[1:], default=0) < 0:
            raise ValueError(f"the shape {self.shape} does not fit batches {self.batches}")
        return self

    @model_serializer(mode="wrap")
    def _without_none(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        values = handler(self)
        if self.batches is None:  # as it was before there were ranges
            del values["batches"]
        return values

    def fits(self, shape: tuple[int, ...]) -> bool:
        """Whether the engine takes `shape` here."""
        if self.batches is None:
            return shape == self.shape
        return bool(shape) and shape[0] in self.batches and shape[1:] == self.shape[1:]

    def at(self, batch: int) -> tuple[int, ...]:
        """The shape for a batch; a fixed one stays what it is."""
        return self.shape if self.batches is None else (batch, *self.shape[1:])

    @property
    def text(self) -> str:
        """The shape for people: ``1..4, 4, 64, 64``."""
        first = [] if self.batches is None else [f"{self.batches.least}..{self.batches.most}"]
        return ", ".join([*first, *map(str, self.shape[len(first) :])])


def tensors(specs: Sequence[Spec], batches: Sequence[BatchRange | None] = ()) -> list[Tensor]:
    """`Tensor` entries of what anybody says of tensors.

    Args:
        specs: the tensors.
        batches: for each the range of its first size; empty if all are fixed.
    """
    return [
        Tensor(
            name=spec.name,
            shape=tuple(spec.shape) if batch is None else (-1, *spec.shape[1:]),
            dtype=str(spec.dtype).removeprefix("torch."),
            batches=batch,
        )
        for spec, batch in zip(specs, batches or [None] * len(specs), strict=True)
    ]
