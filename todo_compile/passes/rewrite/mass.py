"""Pooled keys weigh as many tokens as they stand for, where that makes a difference.

    softmax([q·text, q·image])            softmax([q·text, q·pooled + log(tokens of the cell)])
    softmax([q·cells, q·smaller cell])    softmax([q·cells, q·smaller cell + log(smaller / whole)])

A pooled key stands for a whole cell, but counts once. In joint attention, where text and image keys
share one softmax, the image as a whole would so lose weight to the text by the product of the
factors; and where a factor does not divide the side, the last cell stands for fewer tokens than the
others. Adding log n to the score of a key that stands for n tokens makes it weigh as n equal keys:
where the tokens of every cell are equal the result is the dense one exactly (proportional attention
in ToMe, Bolya et al., arXiv 2210.09461, section 3). A factor that is the same for all keys cancels
in the softmax, so self-attention over whole cells needs none of this.

The addend is made of constants: one number for each key, 0 for text.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch.fx import Node

from todo_compile.passes import ops
from todo_compile.passes.find.attention import AttentionSite
from todo_compile.passes.graph import GraphContext
from todo_compile.passes.rewrite.pooling import Pooling, pooled_size

RULE = "weigh-keys"


def weigh_keys(
    context: GraphContext,
    site: AttentionSite,
    poolings: Sequence[Pooling],
    keys: int,
    *,
    against_text: bool,
) -> None:
    """Add the weights to the scores of a site whose keys were pooled to `keys`, text included.

    Args:
        poolings: of every image among the keys, in their order.
        against_text: cells weigh as their tokens; otherwise whole cells weigh as one key.
    """
    weights = _Weights(context, poolings, keys, against_text)
    if site.score is None:
        _in_mask(context, site, weights)
    else:
        _in_scores(context, site, weights)


def _whole_cell(pooling: Pooling) -> float:
    return math.log(pooling.row_factor * pooling.column_factor)


def _in_mask(context: GraphContext, site: AttentionSite, weights: _Weights) -> None:
    """Fused attention takes the weights as its mask, or on top of the mask that it has."""
    node = site.anchor
    with context.graph.inserting_before(node):
        mask = ops.tensor_arg(node, 3, "attn_mask")
        query = site.operands_now()[0]
        rank = len(context.shape(query) or ())
        if mask is None:
            new = weights.on_axis(query, rank - 1, rank)
        elif context.dtype(mask) is torch.bool:
            new = _where_visible(context, mask, query, weights)
        else:
            new = _added(context, mask, -1, weights)
        ops.set_arg(node, 3, "attn_mask", new)


def _where_visible(context: GraphContext, mask: Node, like: Node, weights: _Weights) -> Node:
    """A mask of True and False, as weights and −∞ of the query's type."""
    shape = context.shape(mask)
    assert shape is not None
    line = weights.on_axis(like, len(shape) - 1, len(shape))
    after = (*shape[:-1], weights.keys)
    return context.call(ops.WHERE_ELSE, (mask, line, -math.inf), like=like, shape=after, rule=RULE)


def _in_scores(context: GraphContext, site: AttentionSite, weights: _Weights) -> None:
    """Spelled-out attention gets a sum right before its softmax."""
    softmax = site.anchor
    scores = ops.tensor_arg(softmax, 0, "input", "self")
    assert scores is not None
    axis = next(axis for node, axis in site.scores if node is scores)
    with context.graph.inserting_before(softmax):
        softmax.replace_input_with(scores, _added(context, scores, axis, weights))


def _added(context: GraphContext, to: Node, axis: int, weights: _Weights) -> Node:
    """`to` with the weights on its key axis, which may have had size 1."""
    shape = context.shape(to)
    assert shape is not None
    axis %= len(shape)
    line = weights.on_axis(to, axis, len(shape))
    after = (*shape[:axis], weights.keys, *shape[axis + 1 :])
    return context.call(ops.ADD, (to, line), like=to, shape=after, rule=RULE)


class _Weights:
    """log(tokens that a key stands for), and 0 for text: one number for each key.

    Not `against_text` a whole cell counts as one token.
    """

    def __init__(
        self, context: GraphContext, poolings: Sequence[Pooling], keys: int, against_text: bool
    ) -> None:
        self._context, self._poolings, self.keys = context, poolings, keys
        self._against_text = against_text

    def on_axis(self, like: Node, axis: int, rank: int) -> Node:
        """The weights on one of `rank` axes, with the type and device of `like`."""
        parts: list[Node] = []
        tokens = keys = 0  # of the sequence before and after pooling, up to here
        for pooling in self._poolings:
            if gap := pooling.offset - tokens:
                parts.append(self._full(like, [gap], 0.0))
            parts.append(self._cells(like, pooling))
            keys += gap + pooling.pooled_tokens
            tokens = pooling.offset + pooling.tokens
        if rest := self.keys - keys:
            parts.append(self._full(like, [rest], 0.0))
        line = self._joined(parts, 0, [self.keys])
        return self._reshaped(line, [1] * axis + [self.keys] + [1] * (rank - axis - 1))

    def _cells(self, like: Node, pooling: Pooling) -> Node:
        """The weights of one image's cells, in their order."""
        context, unit = self._context, 0.0 if self._against_text else _whole_cell(pooling)
        if not pooling.pools:
            return self._full(like, [pooling.tokens], 0.0)
        rows, columns = pooling.pooled_rows, pooling.pooled_columns
        down = self._side(like, pooling.rows, pooling.row_factor, 0, unit)
        across = self._side(like, pooling.columns, pooling.column_factor, 1, 0.0)
        cells = context.call(ops.ADD, (down, across), like=like, shape=[rows, columns], rule=RULE)
        if pooling.frames > 1:
            frames = self._full(like, [pooling.frames, 1, 1], 0.0)
            shape = [pooling.frames, rows, columns]
            cells = context.call(ops.ADD, (frames, cells), like=like, shape=shape, rule=RULE)
        return self._reshaped(cells, [pooling.pooled_tokens])

    def _side(self, like: Node, length: int, factor: int, dim: int, unit: float) -> Node:
        count = pooled_size(length, factor)
        last = length - (count - 1) * factor

        def strip(cells: int, tokens: int) -> Node:
            shape = [cells, 1] if dim == 0 else [1, cells]
            return self._full(like, shape, math.log(tokens) - unit)

        if last == factor or count == 1:
            return strip(count, last)
        whole = [count, 1] if dim == 0 else [1, count]
        return self._joined([strip(count - 1, factor), strip(1, last)], dim, whole)

    def _full(self, like: Node, shape: list[int], value: float) -> Node:
        # Made from a tensor of the graph, so that it follows its type and device wherever it runs.
        return self._context.call(
            ops.NEW_FULL, (like, shape, value), like=like, shape=shape, rule=RULE
        )

    def _joined(self, parts: Sequence[Node], dim: int, shape: list[int]) -> Node:
        if len(parts) == 1:
            return parts[0]
        return self._context.call(
            ops.CAT, (list(parts), dim), like=parts[0], shape=shape, rule=RULE
        )

    def _reshaped(self, node: Node, shape: list[int]) -> Node:
        return self._context.call(ops.RESHAPE, (node, shape), like=node, shape=shape, rule=RULE)
