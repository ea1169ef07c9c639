"""Attention that is spelled out around a softmax.

    softmax(baddbmm(empty, q, kᵀ, alpha=s)) → bmm(·, v)
    softmax(einsum("bid,bjd->bij", q, k) * s + bias) → einsum(·, v)

Which operand is the key, and on which axes, is read from the labels of the two products.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch.fx import Node

from todo_compile.passes import ops
from todo_compile.passes.find.attention import AttentionSite, Operand
from todo_compile.passes.find.chains import Chain, climb, descend, may_grow
from todo_compile.passes.find.masks import Mask, take_mask
from todo_compile.passes.find.products import WITH_BIAS, Label, Product
from todo_compile.passes.find.search import Search
from todo_compile.passes.grid.axes import same


@dataclass(frozen=True, slots=True)
class Unlike:
    """A softmax that is no site of attention.

    Args:
        reason: why not.
        products: those found above and below it.
    """

    reason: str
    products: tuple[Product, ...]


def spelled_out(search: Search, softmax: Node) -> AttentionSite | Unlike:
    """The site around a softmax, or why it is none."""
    rank = search.rank(softmax)
    dim = ops.arg(softmax, 1, "dim", "axis")
    if rank is None or not isinstance(dim, int):
        return Unlike("the axis of the softmax is not known", ())
    axis = ops.normal_dim(dim, rank)
    chain = Chain([(softmax, axis)])
    first = climb(search, softmax, axis, chain)
    last = descend(search, softmax, axis, chain)
    if isinstance(first, str) or last is None or isinstance(last, str):
        found = [p[0] for p in (first, last) if isinstance(p, tuple)]
        reasons = [p for p in (first, last) if isinstance(p, str)]
        return Unlike("; ".join(reasons), tuple(found))
    site = _between(search, softmax, chain, first, last)
    if isinstance(site, str):
        return Unlike(site, (first[0], last[0]))
    _add_bias(search, site, first, chain)
    _refuse_other_readers(search, site)
    return site


def _between(
    search: Search,
    softmax: Node,
    chain: Chain,
    first: tuple[Product, int],
    last: tuple[Product, int, int],
) -> AttentionSite | str:
    """The site made of two products, if they are query by key and attention by value."""
    scores, score_axis = first
    keys = scores.side_with(scores.out_labels[score_axis])
    if keys is None:
        return "the softmax runs over an axis that queries and keys share"
    key_side, key_axis = keys
    key, key_labels = scores.operand(key_side)
    query, query_labels = scores.operand(1 - key_side)
    summed = [label for label in query_labels if label not in scores.out_labels]
    out = set(scores.out_labels)
    rows = [label for label in query_labels if label in out and label not in key_labels]
    columns = [label for label in key_labels if label in out and label not in query_labels]
    if len(summed) != 1 or not rows or len(columns) != 1 or summed[0] not in key_labels:
        if not search.joins_activations(scores):
            name = ops.op(scores.node)
            return f"its scores come from {name} with a weight, not straight from queries and keys"
        return "the product above the softmax is not one of queries and keys"
    final, value_side, value_axis = last
    value, value_labels = final.operand(value_side)
    _, probability_labels = final.operand(1 - value_side)
    channels = [
        axis
        for axis, label in enumerate(value_labels)
        if label in final.out_labels and label not in probability_labels
    ]
    if len(channels) != 1:
        return "the product after the softmax is not one of probabilities and values"
    row = _query_axis(search, query, query_labels, rows, search.context.shape(key), key_axis)
    return AttentionSite(
        anchor=softmax,
        output=final.node,
        query=Operand(query, row, query_labels.index(summed[0]), 1 - key_side),
        key=Operand(key, key_axis, key_labels.index(summed[0]), key_side),
        value=Operand(value, value_axis, channels[0], value_side),
        spelling="product",
        scores=chain.nodes,
        score=scores,
        result=final,
    )


def _query_axis(
    search: Search,
    query: Node,
    labels: tuple[Label, ...],
    rows: list[Label],
    key_shape: tuple[object, ...] | None,
    key_axis: int,
) -> int:
    """Which axis of the query its tokens are on.

    Where all heads share one key head, the heads are rows of the product too: the tokens are as
    many as the keys, or else the last of them. Whether they are the keys' is asked later.
    """
    axes = [labels.index(label) for label in rows]
    shape = search.context.shape(query)
    if len(axes) > 1 and shape is not None and key_shape is not None:
        alike = [axis for axis in axes if same(shape[axis], key_shape[key_axis])]
        return (alike or axes)[-1]
    return axes[-1]


def _add_bias(
    search: Search, site: AttentionSite, first: tuple[Product, int], chain: Chain
) -> None:
    """Record what is added to the scores, by the nodes above the softmax or by ``baddbmm``."""
    scores, score_axis = first
    node, masks = scores.node, list(chain.masks)
    operand = ops.tensor_arg(node, 0, "input", "self") if ops.op(node) in WITH_BIAS else scores.bias
    site.refusal = chain.refusal
    if ops.destination(node) is not None:
        site.refusal = "the scores are written into memory that was there before"
    elif operand is not None and search.varies(operand, node, score_axis):
        mask = Mask.on_axis(search.context, operand, score_axis, node)
        if scores.bias is None:
            site.placeholder = (operand, mask.axis)
        else:
            masks.append(mask)
            if how := chain.bent or may_grow(node):
                site.refusal = f"a bias on the scores may grow after it is added ({how})"
    if len(masks) > 1:
        site.refusal = site.refusal or "more than one bias is added to the scores"
    elif masks:
        refusal = site.refusal
        take_mask(search.context, site, masks[0])
        site.refusal = refusal or site.refusal


def _refuse_other_readers(search: Search, site: AttentionSite) -> None:
    """Scores lose columns, and probabilities have other values: nobody else may read them."""
    for node, _ in site.scores:
        if node is not site.anchor and len(search.context.users(node)) > 1:
            site.refusal = "the attention scores are used elsewhere too"
    if len(search.context.users(site.anchor)) > 1:
        site.refusal = "the attention probabilities are used elsewhere too"
