"""What grid inference knows while it walks a graph: the state that its rules share."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field, replace

from torch.fx import Node

from todo_compile.passes import ops
from todo_compile.passes.graph import GraphContext
from todo_compile.passes.grid.axes import (
    Atom,
    Axes,
    Dim,
    Size,
    Unifier,
    has_roles,
    renewed,
)

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
        weights: tensors that are the same whatever comes in.
        written: tensors whose memory something was written into, see `writes`.
        padded: ranges that are an input's, longer or shorter at their ends, in the same order.
    """

    context: GraphContext
    unifier: Unifier = field(default_factory=Unifier)
    axes: dict[Node, Axes] = field(default_factory=dict[Node, Axes])
    outputs: dict[Node, list[Axes]] = field(default_factory=dict[Node, list[Axes]])
    items: dict[Hashable, Atom] = field(default_factory=dict[Hashable, Atom])
    evidence: dict[int, str] = field(default_factory=dict[int, str])
    weights: set[Node] = field(default_factory=set[Node])
    written: set[Node] = field(default_factory=set[Node])
    padded: set[int] = field(default_factory=set[int])

    def visit(self, node: Node) -> None:
        """Note whether `node` is made of weights alone; nodes come in the graph's order."""
        if node.op in ("call_function", "call_method"):
            alone = self.weights.issuperset(node.all_input_nodes) or ops.makes_constants(node)
        else:
            alone = ops.is_weight(node, self.context.value(node))
        if alone:
            self.weights.add(node)
        elif self.context.memory.writes(node):  # into what was made of constants, perhaps
            self.weights.difference_update(self.context.memory.written_by(node))

    def aligned(self, dims: Sequence[tuple[Node, Dim]]) -> Dim | None:
        """Dimensions of several tensors that meet position by position, as one; None if none is.

        A weight says what it knows of rows and columns, but makes nothing one range: two pictures
        may be given the same table of positions, and stay two.
        """
        result: Dim | None = None
        for node, dim in sorted((pair for pair in dims if pair[1]), key=self._is_weight):
            if result is None:
                result = dim
            elif node not in self.weights:
                result = self.unifier.unify(result, dim)
            elif has_roles(dim):
                like = tuple(renewed(atom) for atom in dim)
                result = self.unifier.unify(result, like)
                for atom in like:
                    if atom.role:
                        self.prove(atom, atom.role)
        return result

    def _is_weight(self, pair: tuple[Node, Dim]) -> bool:
        return pair[0] in self.weights

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
