"""What the search for attention knows of a graph: activations, and products of two of them.

An activation depends on an input of the model; weights, and what is computed from weights and
constants alone, do not. A projection multiplies an activation with a weight; attention multiplies
activations with each other, so its products are found whatever stands between them.
"""

from __future__ import annotations

from torch.fx import Node

from todo_compile.passes import ops
from todo_compile.passes.find.products import Product, einsum_pairs, linear_product, product
from todo_compile.passes.graph import GraphContext
from todo_compile.passes.grid.axes import same


class Search:
    """One search through one graph, which must not change meanwhile."""

    def __init__(self, context: GraphContext) -> None:
        self.context = context
        self._activations: set[Node] = set()
        self._products: dict[Node, Product | None] = {}
        for node in context.graph.nodes:
            if self._depends_on_inputs(node):
                self._activations.add(node)
                if context.memory.writes(node):  # into what was made of constants, perhaps
                    self._activations.update(context.memory.written_by(node))

    def _depends_on_inputs(self, node: Node) -> bool:
        if node.op == "placeholder":
            return self.rank(node) is not None and not ops.is_weight(node, self.context.value(node))
        if not any(n in self._activations for n in node.all_input_nodes):
            return False
        queries = ops.is_size_query(node) or ops.is_description_query(node)
        return not queries and not ops.makes_constants(node)

    def is_activation(self, node: Node) -> bool:
        """Whether the values of `node` depend on an input that is no weight."""
        return node in self._activations

    def rank(self, node: Node) -> int | None:
        """Number of axes of a tensor node, else None."""
        shape = self.context.shape(node)
        return None if shape is None else len(shape)

    def product(self, node: Node) -> Product | None:
        """`node` as a product of two tensors; a projection by a weight is none, a matmul is."""
        if node not in self._products:
            found = product(self.context, node)
            if (found is None and (found := linear_product(self.context, node)) is not None) or (
                found is not None and ops.op(node) in ("addmm", "addmm_")
            ):
                found = found if self.is_activation(found.right) else None
            self._products[node] = found
        return self._products[node]

    def pairs(self, node: Node) -> list[Product]:
        """Every two activations that `node` multiplies and sums over: more only in an einsum."""
        pair = self.product(node)
        found = [pair] if pair is not None else []
        if pair is None and ops.op(node) == "einsum":
            found = einsum_pairs(self.context, node)
        return [p for p in found if self.joins_activations(p)]

    def joins_activations(self, pair: Product) -> bool:
        """Whether both operands are activations and something is summed over."""
        shared = set(pair.left_labels) & set(pair.right_labels)
        return (
            self.is_activation(pair.left)
            and self.is_activation(pair.right)
            and any(label not in pair.out_labels for label in shared)
        )

    def aligned(self, source: Node, node: Node, axis: int) -> int | None:
        """Axis of `source` that is `axis` of `node`, shapes broadcast; None: no such axis there.

        `source` has no such axis if it is broadcast along it.
        """
        known, shape = self.context.shape(source), self.context.shape(node)
        if known is None or shape is None:
            return None
        own = axis - (len(shape) - len(known))
        return own if own >= 0 and same(known[own], shape[axis]) else None

    def varies(self, operand: Node, node: Node, axis: int) -> bool:
        """Whether `operand` has values of its own along `axis` of `node`, or may have."""
        known, shape = self.context.shape(operand), self.context.shape(node)
        if known is None or shape is None:  # a symbolic number has no axes
            return self.context.value(operand) is None
        own = axis - (len(shape) - len(known))
        return own >= 0 and not same(known[own], 1)
