"""An output's inputs and outputs as its manifest describes them: names, types, shapes, batches."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import zip_longest
from typing import Annotated, Any, Protocol

from pydantic import (
    BeforeValidator,
    PlainSerializer,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)

from todo_compile.batches import BatchRange, Range, TextRange
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


def _range_of(kind: type[Range]) -> BeforeValidator:
    def read(value: object) -> Range | None:
        if value is None:
            return None
        try:
            found = kind.parse(value)
        except ConfigError as error:
            raise ValueError(error.message) from error
        if not isinstance(found, kind):
            raise ValueError(f"{value!r} is no range")
        return found

    return BeforeValidator(read)


class Tensor(Frozen):
    """An input or output of the engine.

    Attributes:
        name: in the engine.
        shape: its sizes. The first is -1 if it may be any of `batches`, the second if it may be any
            of `texts`; no other is ever.
        dtype: "float16".
        batches: the range of the first size, a string such as ``1..4`` in the file. None where it
            is fixed; the entry has no such key then.
        texts: the same of the second size, where that is the tokens of a text.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    batches: Annotated[BatchRange | None, _range_of(BatchRange), PlainSerializer(str)] = None
    texts: Annotated[TextRange | None, _range_of(TextRange), PlainSerializer(str)] = None

    @model_validator(mode="after")
    def _consistent(self) -> Tensor:
        dynamic = {axis for axis, one in self._ranges if one is not None}
        stated = {axis for axis, size in enumerate(self.shape) if size == -1}
        if dynamic != stated or min(self.shape, default=0) < -1:
            raise ValueError(
                f"the shape {self.shape} does not fit batches {self.batches}, texts {self.texts}"
            )
        return self

    @property
    def _ranges(self) -> tuple[tuple[int, Range | None], ...]:
        return ((0, self.batches), (1, self.texts))

    @model_serializer(mode="wrap")
    def _without_none(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        values = handler(self)
        for name in ("batches", "texts"):  # as it was before there were ranges
            if getattr(self, name) is None:
                del values[name]
        return values

    def fits(self, shape: tuple[int, ...]) -> bool:
        """Whether the engine takes `shape` here."""
        known = dict(self._ranges)
        return len(shape) == len(self.shape) and all(
            size == own if (bound := known.get(axis)) is None else size in bound
            for axis, (size, own) in enumerate(zip(shape, self.shape, strict=True))
        )

    def at(self, batch: int, tokens: int = 0) -> tuple[int, ...]:
        """The shape for a batch and a number of tokens of text; what is fixed stays what it is."""
        sizes = (batch, tokens)
        return tuple(sizes[axis] if own == -1 else own for axis, own in enumerate(self.shape))

    @property
    def profile(self) -> tuple[tuple[int, ...], ...]:
        """The least, usual and largest shape of a tensor that has a range."""
        known = dict(self._ranges)

        def at(which: str) -> tuple[int, ...]:
            pairs = enumerate(self.shape)
            return tuple(getattr(known[axis], which) if own == -1 else own for axis, own in pairs)

        return tuple(map(at, ("least", "tuned", "most")))

    @property
    def text(self) -> str:
        """The shape for people: ``1..4, 4, 64, 64``."""
        known = dict(self._ranges)
        return ", ".join(
            str(own) if (bound := known.get(axis)) is None else f"{bound.least}..{bound.most}"
            for axis, own in enumerate(self.shape)
        )


def tensors(
    specs: Sequence[Spec],
    batches: Sequence[BatchRange | None] = (),
    texts: Sequence[TextRange | None] = (),
) -> list[Tensor]:
    """`Tensor` entries of what anybody says of tensors.

    Args:
        specs: the tensors.
        batches: for each the range of its first size; empty if all are fixed.
        texts: the same of its second size, where that is the tokens of a text.
    """
    none = [None] * len(specs)
    return [
        Tensor(
            name=spec.name,
            shape=tuple(
                -1 if bound is not None else size
                for size, bound in zip_longest(spec.shape, (batch, text)[: len(spec.shape)])
            ),
            dtype=str(spec.dtype).removeprefix("torch."),
            batches=batch,
            texts=text,
        )
        for spec, batch, text in zip(specs, batches or none, texts or none, strict=True)
    ]
