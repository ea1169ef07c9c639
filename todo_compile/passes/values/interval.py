"""Intervals of numbers along part of an axis, and the question for them."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from torch.fx import Node

from todo_compile.passes import ops
from todo_compile.passes.graph import GraphContext
from todo_compile.passes.grid.axes import same


@dataclass(frozen=True, slots=True)
class Values:
    """Numbers that part of a tensor can hold; True is 1 and False 0.

    Args:
        low, high: bounds; infinite where there is none.
        uniform: along the range that was asked for, a row holds one number.
    """

    low: float = -math.inf
    high: float = math.inf
    uniform: bool = False

    @property
    def is_one_number(self) -> bool:
        """Whether all of it is one and the same finite number."""
        return self.low == self.high and math.isfinite(self.low)

    def hull(self, other: Values) -> Values:
        """What can be in either."""
        return Values(
            min(self.low, other.low),
            max(self.high, other.high),
            (self.uniform and other.uniform) or (self.is_one_number and self == other),
        )


@dataclass(frozen=True, slots=True)
class Range:
    """Positions [start, stop) of an axis; no axis: all of the tensor."""

    axis: int | None
    start: int = 0
    stop: int = 0


ANYTHING = Values()
TRUTH = Values(0.0, 1.0)


def number(value: float) -> Values:
    """A tensor that is full of one number."""
    return ANYTHING if math.isnan(value) else Values(value, value, uniform=True)


@dataclass(frozen=True, slots=True)
class Question:
    """What can `node` hold at `where`? `ask` answers the same of its operands."""

    context: GraphContext
    node: Node
    where: Range
    ask: Callable[[Node, Range], Values]

    @property
    def source(self) -> Node | None:
        """The tensor that the node works on, its first argument."""
        return ops.tensor_arg(self.node, 0, "input", "self")

    @property
    def shape(self) -> tuple[Any, ...]:
        return self.context.shape(self.node) or ()

    def of(self, operand: Any, where: Range) -> Values:
        """The same question about another node, or a number."""
        if isinstance(operand, (bool, int, float)):
            return number(float(operand))
        if not isinstance(operand, Node) or self.context.shape(operand) is None:
            return ANYTHING
        return self.ask(operand, where)

    def whole(self, operand: Any) -> Values:
        """What an operand can hold anywhere."""
        return replace(self.of(operand, Range(None)), uniform=False)

    def aligned(self, operand: Any) -> Values:
        """What an operand can hold at the same positions; shapes broadcast from the last axis."""
        if not isinstance(operand, Node):
            return self.of(operand, Range(None))
        shape, axis = self.context.shape(operand), self.where.axis
        if shape is None or axis is None:
            return self.of(operand, Range(None))
        own = axis - (len(self.shape) - len(shape))
        if own < 0 or shape[own] == 1:
            return replace(self.of(operand, Range(None)), uniform=True)
        if not same(shape[own], self.shape[axis]):
            return ANYTHING
        return self.of(operand, replace(self.where, axis=own))

    def on_axis(self, operand: Node, axis: int | None, shift: int = 0) -> Values:
        """What an operand can hold at these positions, which lie on another axis of it."""
        if axis is None or self.where.axis is None:
            return self.whole(operand)
        start, stop = self.where.start + shift, self.where.stop + shift
        return self.of(operand, Range(axis, start, stop))


Rule = Callable[[Question], Values | None]
"""What the result of an operation can hold; None where nothing is known."""
