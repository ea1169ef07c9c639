"""What grid inference knows while it walks a graph: the state that its rules share."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch.fx import Node

from todo_compile.passes import ops
from todo_compile.passes.graph import GraphContext
from todo_compile.passes.grid.axes import Atom, Axes, Size, Unifier, plain_size

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
        evidence: range → role that something in the graph proves of it, "" where two disagree.
    """

    context: GraphContext
    unifier: Unifier = field(default_factory=Unifier)
    axes: dict[Node, Axes] = field(default_factory=dict[Node, Axes])
    outputs: dict[Node, list[Axes]] = field(default_factory=dict[Node, list[Axes]])
    items: dict[Hashable, Atom] = field(default_factory=dict[Hashable, Atom])
    evidence: dict[int, str] = field(default_factory=dict[int, str])

    def source(self, node: Node) -> Axes | None:
        """Axes of the tensor that `node` works on, its first argument."""
        first = source_of(node)
        return None if first is None else self.axes.get(first)

    def size(self, given: object) -> Size | None:
        """A size argument as a number or expression: the graph may compute it; None if unknown."""
        value: Any = self.context.value(given) if isinstance(given, Node) else given
        return plain_size(value) if isinstance(value, int | torch.SymInt) else None

    def prove(self, atom: Atom, role: str) -> None:
        """Record what an operation says of a range that was nameless so far."""
        before = self.evidence.get(atom.ident, role)
        self.evidence[atom.ident] = role if before == role else ""

    def settle(self) -> None:
        """Gather the evidence of ranges that turned out to be one."""
        gathered: dict[int, str] = {}
        for ident, role in self.evidence.items():
            root = self.unifier.find(ident)
            gathered[root] = role if gathered.get(root, role) == role else ""
        self.evidence = gathered

    def proved(self, axes: Axes) -> Axes:
        """Axes with the roles that were proved of their ranges anywhere; `settle` comes first."""
        return tuple(tuple(self._proved(atom) for atom in dim) for dim in axes)

    def _proved(self, atom: Atom) -> Atom:
        role = self.evidence.get(self.unifier.find(atom.ident), "")
        return atom if atom.role or not role else replace(atom, role=role)


Rule = Callable[[GridState, Node, Shape], Axes | None]
"""Axes of the output of a node, given its shape; None where nothing can be said of it."""


def source_of(node: Node) -> Node | None:
    """The tensor that `node` works on, its first argument."""
    return ops.tensor_arg(node, 0, "input", "self", "query", "tensor")
