"""Joint attention keeps the weight of the image against the text.

    softmax([q·text, q·image])            softmax([q·text, q·pooled + log(tokens of the cell)])

In joint attention text and image keys share one softmax. A pooled key stands for a whole cell, but
counts once: without help the image as a whole would lose weight to the text by the product of the
factors. Adding log n to the score of a key that stands for n tokens makes it weigh as n equal keys:
where the tokens of every cell are equal the result is the dense one exactly (proportional attention
in ToMe, Bolya et al., arXiv 2210.09461, section 3). Self-attention needs none of this: a factor
that is the same for all keys falls out of the softmax.

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

RULE = "keep-mass"


def mass_obstacle(context: GraphContext, site: AttentionSite) -> str | None:
    """Why the weights cannot be kept at a site; None if they can."""
    if site.mask is not None and context.dtype(site.mask) is torch.bool:
        return "a boolean mask has no room for the weights of joint attention's pooled keys"
    return None


def keep_mass(context: GraphContext, site: AttentionSite, pooling: Pooling, keys: int) -> None:
    """Add the weights to the scores of a site whose keys were pooled to `keys`, text included."""
    if site.score is None:
        _in_mask(context, site, pooling, keys)
    else:
        _in_scores(context, site, pooling, keys)


def _in_mask(context: GraphContext, site: AttentionSite, pooling: Pooling, keys: int) -> None:
    """Fused attention takes the weights as its mask, or on top of the mask that it has."""
    node = site.anchor
    with context.graph.inserting_before(node):
        mask = ops.tensor_arg(node, 3, "attn_mask")
        if mask is None:
            query = site.operands_now()[0]
            rank = len(context.shape(query) or ())
            ops.set_arg(
                node, 3, "attn_mask", _weights(context, query, pooling, keys, rank - 1, rank)
            )
        else:
            ops.set_arg(node, 3, "attn_mask", _added(context, mask, -1, pooling, keys))


def _in_scores(context: GraphContext, site: AttentionSite, pooling: Pooling, keys: int) -> None:
    """Spelled-out attention gets a sum right before its softmax."""
    softmax = site.anchor
    scores = ops.tensor_arg(softmax, 0, "input", "self")
    assert scores is not None
    axis = next(axis for node, axis in site.scores if node is scores)
    with context.graph.inserting_before(softmax):
        softmax.replace_input_with(scores, _added(context, scores, axis, pooling, keys))


def _added(context: GraphContext, to: Node, axis: int, pooling: Pooling, keys: int) -> Node:
    """`to` with the weights on its key axis, which may have had size 1."""
    shape = context.shape(to)
    assert shape is not None
    axis %= len(shape)
    weights = _weights(context, to, pooling, keys, axis, len(shape))
    after = (*shape[:axis], keys, *shape[axis + 1 :])
    return context.call(ops.ADD, (to, weights), like=to, shape=after, rule=RULE)


def _weights(
    context: GraphContext, like: Node, pooling: Pooling, keys: int, axis: int, rank: int
) -> Node:
    """log(tokens that a key stands for), with the keys on `axis` of `rank` axes.

    Type and device are those of `like`.
    """

    def full(shape: list[int], value: float) -> Node:
        # Made from a tensor of the graph, so that it follows its type and device wherever it runs.
        return context.call(ops.NEW_FULL, (like, shape, value), like=like, shape=shape, rule=RULE)

    def join(parts: Sequence[Node], dim: int, shape: list[int]) -> Node:
        if len(parts) == 1:
            return parts[0]
        return context.call(ops.CAT, (list(parts), dim), like=like, shape=shape, rule=RULE)

    def side(length: int, factor: int, dim: int) -> Node:
        cells = pooled_size(length, factor)
        last = length - (cells - 1) * factor

        def strip(count: int) -> list[int]:
            return [count, 1] if dim == 0 else [1, count]

        if last == factor or cells == 1:
            return full(strip(cells), math.log(last))
        parts = [full(strip(cells - 1), math.log(factor)), full(strip(1), math.log(last))]
        return join(parts, dim, strip(cells))

    rows, columns = pooling.pooled_rows, pooling.pooled_columns
    cells = context.call(
        ops.ADD,
        (
            side(pooling.rows, pooling.row_factor, 0),
            side(pooling.columns, pooling.column_factor, 1),
        ),
        like=like,
        shape=[rows, columns],
        rule=RULE,
    )
    image = context.call(
        ops.RESHAPE, (cells, [rows * columns]), like=like, shape=[rows * columns], rule=RULE
    )
    parts = [image]
    if pooling.offset:
        parts.insert(0, full([pooling.offset], 0.0))
    rest = keys - pooling.offset - rows * columns
    if rest:
        parts.append(full([rest], 0.0))
    line = join(parts, 0, [keys])
    shape = [1] * axis + [keys] + [1] * (rank - axis - 1)
    return context.call(ops.RESHAPE, (line, shape), like=like, shape=shape, rule=RULE)
