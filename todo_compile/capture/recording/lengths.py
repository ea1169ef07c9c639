"""Which tensors of a denoiser's call are text, and how its pipeline is told their length.

Two runs are compared. Most pipelines take the greatest length of a text, or have a tokenizer that
does; others pass every text as long as it is, so that the prompt decides.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Literal, Self

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from todo_compile.errors import ConfigError, ModelError

# What is told: two lengths for which every pipeline's text differs.
_PROBES: tuple[tuple[Literal["length", "words"], tuple[int, int]], ...] = (
    ("length", (64, 96)),
    ("words", (8, 24)),
)


@dataclass(frozen=True)
class Lengths:
    """Two calls with texts of different lengths.

    Attributes:
        pipeline: its class, for people.
        by: what it was told: its greatest ``length``, or the ``words`` of the prompt.
        numbers: both of them.
        seen: tensors of both calls.
        run: the pipeline: what it is told → the tensors of its denoiser's call.
    """

    pipeline: str
    by: Literal["length", "words"]
    numbers: tuple[int, int]
    seen: tuple[Mapping[str, Tensor], Mapping[str, Tensor]]
    run: Callable[..., Mapping[str, Tensor]]

    @classmethod
    def of(cls, pipeline: str, run: Callable[..., Mapping[str, Tensor]]) -> Self:
        """Ask a pipeline.

        Raises:
            ConfigError: all its texts are of one length, or it takes none.
        """
        for by, numbers in _PROBES:
            try:
                seen = run(**{by: numbers[0]}), run(**{by: numbers[1]})
            except ModelError:  # a part of the pipeline takes its own length alone (Karlo's prior)
                continue
            if _differing(*seen):
                return cls(pipeline, by, numbers, seen, run)
        raise ConfigError(
            f"{pipeline} passes no text whose length could be chosen.",
            remedy="Leave --text-tokens out.",
        )

    def told(self, wanted: int) -> dict[str, Any]:
        """What the pipeline is told for a text of `wanted` tokens.

        Raises:
            ConfigError: it cannot pass so many.
        """
        short, long = self.numbers
        found = _differing(*self.seen)
        name = max(found, key=lambda n: self.seen[0][n].dim())
        first, second = (seen[name].shape[found[name]] for seen in self.seen)
        number = short + Fraction((wanted - first) * (long - short), second - first)
        if number.denominator != 1 or number < 1:
            # The whole number that can be told and lies next, and what comes of it.
            step = Fraction(second - first, long - short)
            whole = max(1, round(number))
            while (near := first + (whole - short) * step).denominator != 1:
                whole += 1
            raise ConfigError(
                f"{self.pipeline} cannot pass {wanted} tokens of text.",
                remedy=f"{near} is close and works.",
            )
        told = {self.by: int(number)}
        if self.by == "words":  # of which the pipeline may take no more than some
            most = self.run(**told)[name].shape[found[name]]
            if most != wanted:
                raise ConfigError(
                    f"{self.pipeline} cannot pass {wanted} tokens of text.",
                    remedy=f"It passes at most {most}.",
                )
        return told

    def even(self, call: Mapping[str, Tensor]) -> frozenset[str]:
        """Names of the text's tensors where its length is their second size, and one for all;
        none where a size depends on it otherwise."""
        found = _differing(*self.seen)
        sizes = {
            tuple(one[name].shape[axis] if axis == 1 else 0 for one in (*self.seen, call))
            for name, axis in found.items()
        }
        return frozenset(found) if len(sizes) == 1 and 0 not in min(sizes) else frozenset()

    def ranged(self) -> frozenset[str]:
        """Names of the text's tensors, for a range of its lengths.

        Raises:
            ConfigError: one graph cannot be for several.
        """
        if names := self.even(self.seen[0]):
            return names
        raise ConfigError(
            f"{self.pipeline} has a length of text in "
            f"{', '.join(sorted(_differing(*self.seen)))}, and not alike in all of them, so one "
            "output cannot be for several.",
            remedy="Give --text-tokens one number.",
        )


def reads_apart(
    run: Callable[[Mapping[str, Any]], object],
    calls: Sequence[Mapping[str, Any]],
    tokens: Sequence[int],
) -> bool:
    """Whether a denoiser attends to its text by itself, never to text and others in one sequence.

    Args:
        run: the denoiser, by its shapes alone.
        calls: with two lengths of text.
        tokens: of both texts.
    """
    seen: list[list[int]] = []
    for call in calls:
        mode = _Keys()
        try:
            with mode:
                run(call)
        except Exception:  # noqa: BLE001  # whatever a network without values raises: unknown
            return False
        seen.append(mode.keys)
    one, other = seen
    if len(one) != len(other):
        return False
    grown = [[a, b] for a, b in zip(one, other, strict=True) if a != b]
    return bool(grown) and all(pair == list(tokens) for pair in grown)


class _Keys(TorchFunctionMode):
    """Keeps how many keys every fused attention has."""

    def __init__(self) -> None:
        super().__init__()
        self.keys: list[int] = []

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        del types
        given = kwargs or {}
        if func is torch.nn.functional.scaled_dot_product_attention:
            self.keys.append((args[1] if len(args) > 1 else given["key"]).shape[-2])
        return func(*args, **given)


def _differing(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> dict[str, int]:
    """Name → the axis whose size differs, of tensors in both calls."""
    return {
        name: next(d for d, n in enumerate(tensor.shape) if n != other[name].shape[d])
        for name, tensor in one.items()
        if name in other and tensor.dim() >= 2 and tensor.shape != other[name].shape
    }
