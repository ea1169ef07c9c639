"""Attention that is spelled out around a softmax.

    softmax(baddbmm(empty, q, kᵀ, alpha=s)) → bmm(·, v)
    softmax(einsum("bid,bjd->bij", q, k) * s + bias) → einsum(·, v)

Which operand is the key, and on which axes, is read from the labels of the two products.
"""

from __future__ import annotations

from torch.fx import Node

from todo_compile.passes import ops
from todo_compile.passes.find.attention import AttentionSite, NearMiss, Operand
from todo_compile.passes.find.chains import climb, descend
from todo_compile.passes.find.masks import Mask, take_mask
from todo_compile.passes.find.products import Product
from todo_compile.passes.graph import GraphContext


def spelled_out(context: GraphContext, softmax: Node) -> AttentionSite | NearMiss | None:
    """The site around a softmax; a near miss; or None where it has nothing of attention."""
    shape = context.shape(softmax)
    dim = ops.arg(softmax, 1, "dim", "axis")
    if shape is None or not isinstance(dim, int):
        return None
    axis = ops.normal_dim(dim, len(shape))
    chain: list[tuple[Node, int]] = [(softmax, axis)]
    masks: list[Mask] = []
    first = climb(context, softmax, axis, chain, masks)
    last = descend(context, softmax, axis, chain)
    if last is None or (isinstance(last, str) and isinstance(first, str)):
        return None  # a softmax without a product on either side, or on one side only
    if isinstance(last, str):
        return NearMiss(softmax, last)
    if isinstance(first, str):
        return NearMiss(softmax, first)
    site = _between(softmax, chain, first, last)
    if isinstance(site, AttentionSite):
        _add_bias(context, site, first, masks)
        _refuse_other_readers(context, site)
    return site


def _between(
    softmax: Node,
    chain: list[tuple[Node, int]],
    first: tuple[Product, int],
    last: tuple[Product, int, int],
) -> AttentionSite | NearMiss:
    """The site made of two products, if they are query by key and attention by value."""
    scores, score_axis = first
    keys = scores.side_with(scores.out_labels[score_axis])
    if keys is None:
        return NearMiss(softmax, "the softmax axis belongs to both operands of the score product")
    key_side, key_axis = keys
    key, key_labels = scores.operand(key_side)
    query, query_labels = scores.operand(1 - key_side)
    summed = [label for label in query_labels if label not in scores.out_labels]
    rows = [
        label for label in query_labels if label in scores.out_labels and label not in key_labels
    ]
    columns = [
        label for label in key_labels if label in scores.out_labels and label not in query_labels
    ]
    if len(summed) != 1 or len(rows) != 1 or len(columns) != 1 or summed[0] not in key_labels:
        return NearMiss(softmax, "the score product is no query-by-key product")
    final, value_side, value_axis = last
    value, value_labels = final.operand(value_side)
    _, probability_labels = final.operand(1 - value_side)
    channels = [
        axis
        for axis, label in enumerate(value_labels)
        if label in final.out_labels and label not in probability_labels
    ]
    if len(channels) != 1:
        return NearMiss(softmax, "the value product is no attention-by-value product")
    return AttentionSite(
        anchor=softmax,
        output=final.node,
        query=Operand(
            query, query_labels.index(rows[0]), query_labels.index(summed[0]), 1 - key_side
        ),
        key=Operand(key, key_axis, key_labels.index(summed[0]), key_side),
        value=Operand(value, value_axis, channels[0], value_side),
        spelling="product",
        scores=chain,
        score=scores,
        result=final,
    )


def _add_bias(
    context: GraphContext, site: AttentionSite, first: tuple[Product, int], masks: list[Mask]
) -> None:
    """Record what is added to the scores, by the nodes above the softmax or by ``baddbmm``."""
    scores, score_axis = first
    bias_operand = ops.tensor_arg(scores.node, 0, "input", "self")
    if ops.op(scores.node) == "baddbmm" and bias_operand is not None:
        if scores.bias is None:
            site.placeholder = (bias_operand, score_axis)
        else:
            masks = [*masks, Mask.on_axis(context, bias_operand, score_axis, scores.node)]
    if len(masks) > 1:
        site.refusal = "more than one bias is added to the scores"
    elif masks:
        take_mask(context, site, masks[0])


def _refuse_other_readers(context: GraphContext, site: AttentionSite) -> None:
    """Scores lose columns, and probabilities have other values: nobody else may read them."""
    for node, _ in site.scores:
        if node is not site.anchor and len(context.users(node)) > 1:
            site.refusal = "the attention scores are used elsewhere too"
    if len(context.users(site.anchor)) > 1:
        site.refusal = "the attention probabilities are used elsewhere too"
