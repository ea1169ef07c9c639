"""How many items one call of an output has: a number, or a range of them.

    2        every call has 2
    1..4     1 to 4, tuned for 4
    1..2..4  1 to 4, tuned for 2

Tokens of a text are counted in the same way. Imports nothing heavy: options, manifests and the
runtime all speak of batches.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

from todo_compile.errors import ConfigError
from todo_compile.foreign import spelled

NAME = "batch"
"""Of the dynamic size in graphs and ONNX files."""
TEXT_NAME = "text"
"""Of the dynamic number of tokens of a text there."""

_LARGEST = 10**9


@dataclass(frozen=True, slots=True)
class Range:
    """Every number from `least` to `most`; at least two different ones.

    Args:
        least, most: inclusive.
        tuned: TensorRT chooses its kernels for this one. ONNX files have no such thing.

    Raises:
        ConfigError: not 1 ≤ least ≤ tuned ≤ most, or least = most.
    """

    least: int
    tuned: int
    most: int

    one: ClassVar[str] = "number"
    many: ClassVar[str] = "numbers"
    remedy: ClassVar[str] = "Give a number, 2, or a range, 1..4."

    def __post_init__(self) -> None:
        if self.least < 1:
            raise ConfigError(f"A {self.one} of {self.least} is not possible.", remedy=self.remedy)
        if not self.least <= self.tuned <= self.most or self.least == self.most:
            raise ConfigError(
                f"{self} is not a range of {self.many}: its numbers must rise.", remedy=self.remedy
            )

    @classmethod
    def parse(cls, given: object) -> int | Self:
        """A number or range in its one form: a range of a single number is that number.

        Whether a number is possible (0, 1000) is for whoever knows the model.

        Raises:
            ConfigError: it is neither a number nor a range.
        """
        if isinstance(given, cls):
            return given
        if isinstance(given, int) and not isinstance(given, bool):
            if abs(given) < _LARGEST:
                return given
            raise ConfigError(
                f"A {cls.one} of {spelled(given):.60} is not possible.", remedy=cls.remedy
            )
        parts: list[Any] = []
        if isinstance(given, str) and re.fullmatch(r"\s*-?\d{1,9}(\.\.-?\d{1,9}){0,2}\s*", given):
            parts = [int(part) for part in given.split("..")]
            if len(parts) == 1:
                return parts[0]
        elif isinstance(given, (tuple, list)):
            parts = list(given)  # pyright: ignore[reportUnknownArgumentType]
        if len(parts) not in (2, 3) or not all(type(p) is int and abs(p) < _LARGEST for p in parts):
            said = [spelled(part) for part in parts] or given
            raise ConfigError(f"{said!r:.80} is not a {cls.one}.", remedy=cls.remedy)
        least, most = parts[0], parts[-1]
        if least == most and set(parts) == {least}:
            return least
        return cls(least, parts[1] if len(parts) == 3 else most, most)

    def __str__(self) -> str:
        numbers = (self.least, self.most)
        if self.tuned != self.most:
            numbers = (self.least, self.tuned, self.most)
        return "..".join(map(str, numbers))

    def __contains__(self, batch: int) -> bool:
        return self.least <= batch <= self.most


class BatchRange(Range):
    """Every batch from `least` to `most`; at least two different ones.

    Args:
        least, most: inclusive.
        tuned: TensorRT chooses its kernels for this one. ONNX files have no such thing.
    """

    one = "batch"
    many = "batches"
    remedy = (
        "Give a number, 2, or a range, 1..4 (1..2..4 tunes the engine for 2; else for the most)."
    )


class TextRange(Range):
    """Every text of `least` to `most` tokens; at least two different numbers.

    Args:
        least, most: inclusive.
        tuned: TensorRT chooses its kernels for this one. ONNX files have no such thing.
    """

    one = "length of text"
    many = "lengths of text"
    remedy = "Give a number of tokens, 77, or a range, 77..308 (77..154..308 tunes for 154)."


Batch = int | BatchRange
BatchLike = int | str | Sequence[int] | BatchRange
"""What people write: ``2``, ``"2"``, ``"1..4"``, ``"1..2..4"``, ``(1, 4)``, ``(1, 2, 4)``."""
Text = int | TextRange
TextLike = int | str | Sequence[int] | TextRange
"""The same of the tokens of a text."""


def parse_batch(given: object) -> Batch:
    """A batch in its one form; see `Range.parse`.

    Raises:
        ConfigError: it is neither a number nor a range.
    """
    return BatchRange.parse(given)


def parse_text(given: object) -> Text:
    """A number of tokens of text in its one form; see `Range.parse`.

    Raises:
        ConfigError: it is neither a number nor a range.
    """
    return TextRange.parse(given)


def largest(batch: int | Range) -> int:
    """The most items of a call: what memory and figures are computed for."""
    return batch.most if isinstance(batch, Range) else batch


def halved(batch: Batch) -> Batch:
    """Images of a batch with guidance, which runs every image twice; at least one."""
    if isinstance(batch, BatchRange):
        return parse_batch([max(1, n // 2) for n in (batch.least, batch.tuned, batch.most)])
    return max(1, batch // 2)


def pieces(count: int, least: int, most: int) -> list[int]:
    """How to run `count` items in calls of `least` to `most`: the items in each.

    As few calls as possible, of them as many full ones as leave enough for the others. If `count`
    is too small for that, the last number is below `least` and the caller fills up.
    """
    calls = -(-count // most)
    if calls * least > count:
        return [*[most] * (calls - 1), count - most * (calls - 1)]
    sizes: list[int] = []
    for later in reversed(range(calls)):
        sizes.append(min(most, count - sum(sizes) - later * least))
    return sizes
