"""What a component is traced and called with, and which of its sizes have a range."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import nn

from todo_compile.batches import BatchRange, Range, TextRange
from todo_compile.capture.written import InputSpec
from todo_compile.options import TokenGrid


@dataclass(frozen=True, eq=False)
class ExampleInputs:
    """A wrapper and the tensors to call or trace it with: ``wrapper(*args)``.

    Attributes:
        wrapper: the component with a flat signature, see `wrappers`.
        specs: of the inputs, in order.
        args: one tensor for each spec; fake if the model is.
        output_names: names for the outputs of an exported file.
        batches: for each input the range that its first size may have; None for a fixed one.
        texts: the same of its second size, where that is the tokens of a text.
        token_grids, image_axes: where the image is, as `todo_compile.rewrite` takes them.
    """

    wrapper: nn.Module = field(repr=False)
    specs: tuple[InputSpec, ...]
    args: tuple[torch.Tensor, ...] = field(repr=False)
    output_names: tuple[str, ...]
    batches: tuple[BatchRange | None, ...] = ()
    texts: tuple[TextRange | None, ...] = ()
    token_grids: Mapping[int, TokenGrid] = field(default_factory=dict[int, TokenGrid])
    image_axes: Mapping[str, tuple[int, int]] = field(default_factory=dict[str, tuple[int, int]])

    def rows(self, count: int) -> tuple[torch.Tensor, ...]:
        """The tensors for a batch of `count`, which their range allows."""
        pairs = zip(self.args, self.batches, strict=True)
        return tuple(value if batch is None else value[:count] for value, batch in pairs)

    def giving(self, count: int) -> ExampleInputs:
        """The same where a call gives `count` tensors: a picture each."""
        if len(self.output_names) == count:
            return self
        (name,) = self.output_names
        return replace(self, output_names=tuple(f"{name}_{i}" for i in range(count)))

    @property
    def ranges(self) -> tuple[Range, ...]:
        """Of the batch and of the text, where they have one."""
        each = (next((one for one in many if one), None) for many in (self.batches, self.texts))
        return tuple(one for one in each if one is not None)

    @property
    def ends(self) -> list[tuple[torch.Tensor, ...]]:
        """The tensors at the least and the most of all ranges; once where there are none."""
        if not self.ranges:
            return [self.args]
        least = tuple(
            value[: None if batch is None else batch.least]
            if text is None
            else value[: None if batch is None else batch.least, : text.least]
            for value, batch, text in zip(
                self.args,
                self.batches or (None,) * len(self.args),
                self.texts or (None,) * len(self.args),
                strict=True,
            )
        )
        return [least, self.args]

    @property
    def input_names(self) -> tuple[str, ...]:
        """Names of the inputs, in order."""
        return tuple(spec.name for spec in self.specs)
