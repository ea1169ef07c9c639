"""What a graph costs: multiply-adds counted as two operations, and bytes that attention touches.

Counted are the operations that take the time: linear, convolution, products and attention.
Norms, activations and copies are left out, as is usual when FLOPs are quoted.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from torch.fx import Node

from todo_compile.passes import ops
from todo_compile.passes.families import LINEAR
from todo_compile.passes.find.attention import AttentionSite, fused_operands
from todo_compile.passes.find.products import product
from todo_compile.passes.graph import GraphContext
from todo_compile.passes.grid.axes import Size

TENSOR_LIMIT = 2**31 - 1
"""Elements in one tensor beyond which TensorRT refuses a network."""


def _count(context: GraphContext, sizes: Iterable[Size]) -> int:
    """Elements; a dynamic size counts as one, so that ratios still hold, or as the batch that
    figures are wanted for."""
    return math.prod(map(context.number, sizes))


def flops(context: GraphContext, node: Node) -> int:
    """Floating-point operations of one node (0 for what is not counted)."""
    name = ops.op(node)
    shape = context.shape(node)
    if shape is None:
        return 0
    if name in LINEAR or name == "addmm":
        rows = ops.tensor_arg(node, 1 if name == "addmm" else 0, "input", "mat1")
        known = context.shape(rows) if rows is not None else None
        return 2 * _count(context, shape) * _count(context, known[-1:]) if known else 0
    if name in ("conv2d", "conv1d", "conv3d", "convolution"):
        weight = ops.tensor_arg(node, 1, "weight")
        known = context.shape(weight) if weight is not None else None
        return 2 * _count(context, shape) * _count(context, known[1:]) if known else 0
    if name == "scaled_dot_product_attention":
        query, key, _ = map(context.shape, fused_operands(node))
        if query is None or key is None:
            return 0
        return 2 * (_count(context, query) + _count(context, shape)) * _count(context, key[-2:-1])
    if (pair := product(context, node)) is not None:
        sizes: dict[int | str, int] = {}
        for operand, labels in ((pair.left, pair.left_labels), (pair.right, pair.right_labels)):
            for label, size in zip(labels, context.shape(operand) or (), strict=False):
                sizes[label] = max(sizes.get(label, 1), context.number(size))
        return 2 * math.prod(sizes.values())
    return 0


def graph_flops(context: GraphContext) -> int:
    """Floating-point operations of the whole graph."""
    return sum(flops(context, node) for node in context.graph.nodes)


@dataclass(frozen=True, slots=True)
class SiteCost:
    """Cost of one attention.

    Args:
        batch: batch × heads; a dynamic batch counts as one, see `GraphContext.number`.
        query_tokens, key_tokens: sequence lengths.
        head_dim, value_dim: channels of a head in query and key, and in value.
        itemsize: bytes an element.
    """

    batch: int
    query_tokens: int
    key_tokens: int
    head_dim: int
    value_dim: int
    itemsize: int

    @property
    def flops(self) -> int:
        """Both products: 2·B·Nq·Nk·(d + dv)."""
        return (
            2 * self.batch * self.query_tokens * self.key_tokens * (self.head_dim + self.value_dim)
        )

    @property
    def score_elements(self) -> int:
        """Elements of QKᵀ if it is materialised."""
        return self.batch * self.query_tokens * self.key_tokens

    @property
    def operand_bytes(self) -> int:
        """Bytes of Q, K, V and the result, each moved once: what a fused kernel must touch."""
        per_query = self.head_dim + self.value_dim
        return self.itemsize * self.batch * per_query * (self.query_tokens + self.key_tokens)


def site_cost(context: GraphContext, site: AttentionSite) -> SiteCost | None:
    """Cost of a site as the graph stands; None if its token counts are no numbers, nor known."""
    query_node, key_node, value_node = site.operands_now()
    query, key, value = map(context.shape, (query_node, key_node, value_node))
    dtype = context.dtype(key_node)
    if query is None or key is None or value is None or dtype is None:
        return None
    named = (
        query[site.query.tokens],
        key[site.key.tokens],
        key[site.key.channels],
        value[site.value.channels],
    )
    if context.batch is None and not all(isinstance(s, int) for s in named):
        return None
    rest = [s for i, s in enumerate(query) if i not in (site.query.tokens, site.query.channels)]
    return SiteCost(
        batch=_count(context, rest),
        query_tokens=context.number(named[0]),
        key_tokens=context.number(named[1]),
        head_dim=context.number(named[2]),
        value_dim=context.number(named[3]),
        itemsize=dtype.itemsize,
    )
