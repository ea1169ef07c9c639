"""What grid inference knows while it walks a graph: the state that its rules share."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass, field

from torch.fx import Node

from todo_compile.passes import ops
from todo_compile.passes.graph import GraphContext
from todo_compile.passes.grid.axes import Atom, Axes, Size, Unifier

Shape = tuple[Size, ...]


@dataclass(eq=False, slots=True)
class GridState:
    """Knowledge so far.

    Args:
        context: the graph.
        unifier: which ranges are the same.
        axes: axes of every tensor visited.
        outputs: axes of each output of a node that has several (chunk, split, unbind).
        items: (range, part of the batch) → that range in those items alone, see `batches`.
    """

    context: GraphContext
    unifier: Unifier = field(default_factory=Unifier)
    axes: dict[Node, Axes] = field(default_factory=dict[Node, Axes])
    outputs: dict[Node, list[Axes]] = field(default_factory=dict[Node, list[Axes]])
    items: dict[Hashable, Atom] = field(default_factory=dict[Hashable, Atom])

    def source(self, node: Node) -> Axes | None:
        """Axes of the tensor that `node` works on, its first argument."""
        first = source_of(node)
        return None if first is None else self.axes.get(first)


Rule = Callable[[GridState, Node, Shape], Axes | None]
"""Axes of the output of a node, given its shape; None where nothing can be said of it."""


def source_of(node: Node) -> Node | None:
    """The tensor that `node` works on, its first argument."""
    return ops.tensor_arg(node, 0, "input", "self", "query", "tensor")
