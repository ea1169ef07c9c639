"""What one operation does to axes: which axis of its result is which axis of what goes in.

    transpose(x, 1, 2)      axes (0, 2, 1) of x                     plain
    linear(x, w)            axes (0, 1, None) of x, new channels    plain
    add(x, table)           axes (0, 1, 2) of x, (None, 0, 1)       plain
    view(x, …)              by the row-major order                  reshapes
    cat([text, x], 1)       end to end on axis 1                    joins
    x[:, 77:]               a part of axis 1                        takes
    slice_scatter(x, y, 1)  axis 1, if y is of the same positions   replaces
    flip(x, [1])            axis 1 backwards                        mirrors

Following the image's axes down the graph (`grid.effects`) and moving a pooling up
(`rewrite.hoist_rules`) both read this, so an operation is described once, in `table`.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from torch.fx import Node

from todo_compile.passes.grid.axes import Size

Shape = tuple[Size, ...]
Kind = Literal["plain", "reshapes", "joins", "takes", "replaces", "mirrors"]

Linear = Callable[[Sequence[Node]], bool]
"""Whether a result is linear in these operands together, the others being the same everywhere."""


def always(_: Sequence[Node]) -> bool:
    """Linear in any operands."""
    return True


def never(_: Sequence[Node]) -> bool:
    """Linear in none."""
    return False


@dataclass(frozen=True, slots=True)
class Source:
    """An operand whose axes the result has.

    Args:
        node: the operand.
        axes: for each axis of the result the axis of the operand that it is, position by position;
            None where it is none of them.
    """

    node: Node
    axes: tuple[int | None, ...]


@dataclass(frozen=True, slots=True)
class Cut:
    """What is taken of an axis.

    Args:
        start: first position, from the end if negative; None if it is not known, or if just one
            position is taken.
        size: number of positions.
        step: between them.
        key: equal for cuts that take the same; None where that is not known.
    """

    start: Size | None
    size: Size
    step: Any
    key: Hashable


@dataclass(frozen=True, slots=True)
class Effect:
    """What one operation does to axes.

    Args:
        sources: operands whose axes the result has.
        kind: how; see above.
        rule: name of the exchange with a pooling below it; "" if none is made.
        linear: in which operands it is linear, so that the mean of results is the result of means.
        stuck: why no pooling may be moved above it.
        closed: axis of the result → why a pooling on it may not.
        joined: the axis on which `sources` are joined end to end.
        cuts: axis of the source → what is taken of it, or replaced.
        mirrored: axes that run backwards.
    """

    sources: tuple[Source, ...]
    kind: Kind = "plain"
    rule: str = ""
    linear: Linear = always
    stuck: str = ""
    closed: Mapping[int, str] = field(default_factory=dict[int, str])
    joined: int = -1
    cuts: Mapping[int, Cut] = field(default_factory=dict[int, Cut])
    mirrored: frozenset[int] = frozenset()
