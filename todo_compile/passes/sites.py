"""Find attention: softmax(Q·Kᵀ·scale + bias)·V, however it is spelled.

    scaled_dot_product_attention(q, k, v)                             spelled "sdpa"
    softmax(baddbmm(empty, q, kᵀ, alpha=s)) → bmm(·, v)               spelled "product"
    softmax(einsum("bid,bjd->bij", q, k) * s + bias) → einsum(·, v)   spelled "product"

One match type serves all spellings: what later passes need is the key and value nodes, which of
their axes holds the tokens, and the nodes in between whose shape follows the key tokens. A softmax
that looks like attention but is not understood becomes a near miss with its reason, so that no
attention is missing from the report.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from torch.fx import Node

from todo_compile.passes import ops
from todo_compile.passes.axes import Size, same
from todo_compile.passes.graph import GraphContext
from todo_compile.passes.products import Product, product

# Written in place or not: the product has no other reader then (see the end of `_spelled_out`).
_SCALINGS = frozenset(("mul", "div", "mul_", "div_", "imul", "itruediv"))
_MASKINGS = frozenset(("add", "sub", "iadd", "add_"))


@dataclass(frozen=True, slots=True)
class Operand:
    """Query, key or value as it enters the site.

    Args:
        node: the tensor.
        tokens, channels: its token and channel axis.
        side: left (0) or right (1) in its product, for spelled-out attention.
    """

    node: Node
    tokens: int
    channels: int
    side: int = 0


@dataclass(eq=False, slots=True)
class AttentionSite:
    """One attention.

    Args:
        anchor: the SDPA node, or the softmax of a spelled-out attention.
        output: node that holds the result.
        query, key, value: operands as they enter.
        mask: additive bias or mask on the scores, with its key axis (None: no such axis).
        scores: nodes from the first product to the second whose shape has a key axis, with that
            axis; empty for SDPA.
        placeholder: uninitialised ``baddbmm`` input that must keep the shape of the scores.
        score, result: the query-by-key and attention-by-value products of a spelled-out attention.
        mask_user: the node that adds the mask.
        spelling: "sdpa" or "product".
        refusal: why the site must not be rewritten, known from its structure alone.
    """

    anchor: Node
    output: Node
    query: Operand
    key: Operand
    value: Operand
    spelling: Literal["sdpa", "product"]
    mask: Node | None = None
    mask_axis: int | None = None
    scores: list[tuple[Node, int]] = field(default_factory=list[tuple[Node, int]])
    placeholder: tuple[Node, int] | None = None
    score: Product | None = None
    result: Product | None = None
    mask_user: Node | None = None
    refusal: str | None = None

    @property
    def name(self) -> str:
        """Name of the anchor node, unique in its graph."""
        return self.anchor.name

    def operands_now(self) -> tuple[Node, Node, Node]:
        """Query, key and value as the graph has them now, after any rewriting."""
        if self.score is None or self.result is None:
            return fused_operands(self.anchor)
        return (
            self.score.read(self.query.side),
            self.score.read(self.key.side),
            self.result.read(self.value.side),
        )

    def replace_key(self, node: Node) -> None:
        """Let the site read its keys from `node`; the query stays, even if it was the same node."""
        if self.score is None:
            ops.set_arg(self.anchor, 1, "key", node)
        else:
            self.score.replace(self.key.side, node)

    def replace_value(self, node: Node) -> None:
        """Let the site read its values from `node`."""
        if self.result is None:
            ops.set_arg(self.anchor, 2, "value", node)
        else:
            self.result.replace(self.value.side, node)


@dataclass(frozen=True, slots=True)
class NearMiss:
    """A softmax between products that was not understood as attention."""

    node: Node
    reason: str


def find_sites(context: GraphContext) -> tuple[list[AttentionSite], list[NearMiss]]:
    """All attention in the graph in execution order, and what nearly was attention."""
    sites: list[AttentionSite] = []
    misses: list[NearMiss] = []
    for node in context.graph.nodes:
        name = ops.op(node)
        if name == "scaled_dot_product_attention":
            sites.append(_fused(context, node))
        elif name == "softmax":
            found = _spelled_out(context, node)
            if isinstance(found, AttentionSite):
                sites.append(found)
            elif found is not None:
                misses.append(found)
        elif name.startswith("_scaled_dot_product") or name in _OPAQUE:
            misses.append(NearMiss(node, f"{name} is a fused kernel that the passes cannot edit"))
    return sites, misses


_OPAQUE = frozenset(
    ("flex_attention", "_native_multi_head_attention", "multi_head_attention_forward",
     "_efficient_attention_forward", "_flash_attention_forward", "memory_efficient_attention")
)  # fmt: skip


def fused_operands(node: Node) -> tuple[Node, Node, Node]:
    """Query, key and value of a fused attention node, given by position or by name."""
    query, key, value = (
        ops.tensor_arg(node, i, n) for i, n in enumerate(("query", "key", "value"))
    )
    assert query is not None and key is not None and value is not None
    return query, key, value


def _fused(context: GraphContext, node: Node) -> AttentionSite:
    query, key, value = fused_operands(node)
    rank = len(context.shape(key) or ())
    site = AttentionSite(
        anchor=node,
        output=node,
        query=Operand(
            query, len(context.shape(query) or ()) - 2, len(context.shape(query) or ()) - 1
        ),
        key=Operand(key, rank - 2, rank - 1),
        value=Operand(
            value, len(context.shape(value) or ()) - 2, len(context.shape(value) or ()) - 1
        ),
        spelling="sdpa",
    )
    mask = ops.arg(node, 3, "attn_mask")
    if isinstance(mask, Node):
        site.mask_user = node
        _take_mask(context, site, mask, _from_end(context, mask, 1))
    if ops.arg(node, 5, "is_causal", default=False):
        site.refusal = "causal attention: keys are ordered in time, not in space"
    return site


def _from_end(context: GraphContext, node: Node, back: int) -> int:
    return len(context.shape(node) or ()) - back


@dataclass(frozen=True, slots=True)
class _Mask:
    """A tensor added to the scores, its own key axis (< 0: it has none), the node that adds it."""

    node: Node
    axis: int
    user: Node


def _mask(context: GraphContext, node: Node, axis: int, user: Node) -> _Mask:
    """A mask added by `user`, whose key axis is `axis`; shapes broadcast from the end."""
    rank = len(context.shape(user) or ())
    return _Mask(node, _from_end(context, node, rank - axis), user)


def _take_mask(context: GraphContext, site: AttentionSite, mask: Node, axis: int) -> None:
    """Record a mask; it has a key axis unless its size there is 1."""
    shape = context.shape(mask)
    site.mask = mask
    if shape is None or axis < 0:
        site.refusal = "the attention mask's shape is not known"
    elif not same(shape[axis], 1):
        site.mask_axis = axis


def _spelled_out(context: GraphContext, softmax: Node) -> AttentionSite | NearMiss | None:
    """The site around a softmax; a near miss; or None where it has nothing of attention."""
    shape = context.shape(softmax)
    dim = ops.arg(softmax, 1, "dim", "axis")
    if shape is None or not isinstance(dim, int):
        return None
    axis = ops.normal_dim(dim, len(shape))
    chain: list[tuple[Node, int]] = [(softmax, axis)]
    masks: list[_Mask] = []
    first = _climb(context, softmax, axis, chain, masks)
    last = _descend(context, softmax, axis, chain)
    if last is None or (isinstance(last, str) and isinstance(first, str)):
        return None  # a softmax without a product on either side, or on one side only
    if isinstance(last, str):
        return NearMiss(softmax, last)
    if isinstance(first, str):
        return NearMiss(softmax, first)
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
    site = AttentionSite(
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
    bias_operand = ops.tensor_arg(scores.node, 0, "input", "self")
    if ops.op(scores.node) == "baddbmm" and bias_operand is not None:
        if scores.bias is None:
            site.placeholder = (bias_operand, score_axis)
        else:
            masks.append(_mask(context, bias_operand, score_axis, scores.node))
    if len(masks) > 1:
        site.refusal = "more than one bias is added to the scores"
    elif masks:
        site.mask_user = masks[0].user
        _take_mask(context, site, masks[0].node, masks[0].axis)
    for node, _ in chain:
        if node is not softmax and len(context.users(node)) > 1:
            site.refusal = "the attention scores are used elsewhere too"
    if len(context.users(softmax)) > 1:
        site.refusal = "the attention probabilities are used elsewhere too"
    return site


def _climb(
    context: GraphContext,
    node: Node,
    axis: int,
    chain: list[tuple[Node, int]],
    masks: list[_Mask],
) -> tuple[Product, int] | str:
    """From the softmax up to the score product, noting biases: (product, key axis), or why not."""
    current = ops.tensor_arg(node, 0, "input", "self")
    for _ in range(16):  # longer chains are no attention that anyone writes
        if current is None:
            break
        if (found := product(context, current)) is not None:
            chain.append((current, axis))
            return found, axis
        name = ops.op(current)
        between = f"{name or current.name} stands between the score product and the softmax"
        shape = context.shape(current)
        operands = ops.operands(current)
        if shape is None or not operands:
            return between
        source = operands[0]
        if name in _SCALINGS | _MASKINGS and len(operands) == 2:
            source, other = _scores_operand(context, operands, shape)
            if source is None or other is None:
                return between
            other_shape = context.shape(other)
            scalar = other_shape is not None and all(same(s, 1) for s in other_shape)
            if name in _MASKINGS and not scalar:
                masks.append(_mask(context, other, axis, current))
            elif not scalar and not _constant_along(context, other, len(shape) - axis):
                return between
        elif (order := ops.permutation(current, len(shape))) is not None:
            chain.append((current, axis))
            axis = order[axis]
            current = source
            continue
        elif name == "view":
            moved = _through_view(context, current, source, axis)
            if moved is None:
                return "the scores are reshaped across the key axis"
            chain.append((current, axis))
            axis, current = moved, source
            continue
        elif not (name in ops.IDENTITY or (name in _SCALINGS | _MASKINGS and len(operands) == 1)):
            return between
        chain.append((current, axis))
        current = source
    return "no score product was found above the softmax"


def _scores_operand(
    context: GraphContext, operands: list[Node], shape: tuple[Size, ...]
) -> tuple[Node | None, Node | None]:
    """Which operand of an addition or scaling is the scores: the one computed by a product."""
    for source, other in (operands, operands[::-1]):
        known = context.shape(source)
        if known is None or len(known) != len(shape) or not all(map(same, known, shape)):
            continue
        above: Node | None = source
        for _ in range(8):
            if above is None or ops.op(above) in ops.EMPTY_OPS:
                break
            if product(context, above) is not None:
                return source, other
            above = ops.tensor_arg(above, 0, "input", "self")
    return None, None


def _constant_along(context: GraphContext, node: Node, back: int) -> bool:
    shape = context.shape(node)
    return shape is not None and (len(shape) < back or same(shape[-back], 1))


def _through_view(context: GraphContext, view: Node, source: Node, axis: int) -> int | None:
    """Axis of `source` that a view keeps whole as `axis`, or None."""
    before, after = context.shape(source), context.shape(view)
    if before is None or after is None:
        return None
    return kept_axis(after, before, axis)


def kept_axis(shape: tuple[Size, ...], other: tuple[Size, ...], axis: int) -> int | None:
    """Axis of `other` that is `axis` of `shape` under a row-major reshape between the two.

    The axis is kept whole if its size and the product of all sizes before it are the same.
    """
    lead: Size = 1
    for size in shape[:axis]:
        lead = lead * size
    seen: Size = 1
    for position, size in enumerate(other):
        if same(seen, lead) and same(size, shape[axis]):
            return position
        seen = seen * size
    return None


def _descend(
    context: GraphContext, softmax: Node, axis: int, chain: list[tuple[Node, int]]
) -> tuple[Product, int, int] | str | None:
    """From the softmax down to the value product: (product, value side, value token axis)."""
    current = softmax
    for _ in range(16):
        users = context.users(current)
        if not users:
            return None
        consumers = [u for u in users if product(context, u) is not None]
        if len(users) > 1 and consumers:
            users = consumers[:1]
        elif len(users) > 1:
            return "the softmax feeds several operations, none of them a value product"
        user = users[0]
        shape = context.shape(user)
        if (found := product(context, user)) is not None:
            side = 1 if found.left is current else 0
            label = found.operand(1 - side)[1][axis]
            value_labels = found.operand(side)[1]
            if found.left is found.right or label not in value_labels or label in found.out_labels:
                return "the softmax axis is not summed over by the product that follows"
            return found, side, value_labels.index(label)
        if shape is None:
            return None
        if (order := ops.permutation(user, len(shape))) is not None:
            axis = order.index(axis)
        elif ops.op(user) == "view":
            moved = _through_view(context, current, user, axis)
            if moved is None:
                return "the probabilities are reshaped across the key axis"
            axis = moved
        elif ops.op(user) not in ops.IDENTITY:
            return f"{ops.op(user) or user.name} stands between the softmax and the value product"
        chain.append((user, axis))
        current = user
    return None
