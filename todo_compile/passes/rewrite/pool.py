"""Insert pooling right at the site, where it is always correct.

    k ─┐                     k ─ pool_tokens ─┐
    q ─┤ attention     →     q ───────────────┤ attention
    v ─┘                     v ─ pool_tokens ─┘

In spelled-out attention the scores between the two products lose key columns, so views among them,
the uninitialised ``baddbmm`` input and an additive mask with a key axis follow.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from torch.fx import Node

from todo_compile.passes import ops
from todo_compile.passes.find.attention import AttentionSite
from todo_compile.passes.graph import GraphContext
from todo_compile.passes.plan.choose import Decision
from todo_compile.passes.rewrite.mass import weigh_keys
from todo_compile.passes.rewrite.pooling import Pooling, pool_tokens

RULE = "pool-at-site"

Reads = tuple[tuple[str, str], ...]
"""(site, operand) pairs that one pooling serves."""


def insert_pools(context: GraphContext, decisions: Sequence[Decision]) -> list[Node]:
    """Pool keys and values of every site that the plan rewrites; returns the new nodes."""
    pools: list[Node] = []
    for decision in decisions:
        if decision.poolings:
            with context.working_on(decision.site.name):
                pools += _pool_site(context, decision)
    return pools


def new_pool(
    context: GraphContext,
    source: Node,
    axis: int,
    pooling: Pooling,
    *,
    before: Node,
    until: int,
    reads: Reads,
    rule: str,
) -> Node:
    """A pooling of `source` on `axis`, placed before `before`.

    Args:
        until: position of the last operation that its result must reach unchanged.
        reads: whose operands it pools.
    """
    shape = context.shape(source)
    assert shape is not None
    length = pooling.length_after(int(shape[axis]))
    with context.graph.inserting_before(before):
        pool = context.call(
            pool_tokens,
            (source, axis, *pooling.arguments()),
            like=source,
            shape=(*shape[:axis], length, *shape[axis + 1 :]),
            rule=rule,
        )
    pool.meta["todo_span"] = context.memory.position(before), until
    pool.meta["todo_reads"] = reads
    return pool


def reads_of(pool: Node) -> Reads:
    """Whose operands `pool` pools."""
    return pool.meta["todo_reads"]


def span(pool: Node) -> tuple[int, int]:
    """Positions between which nothing may write into what `pool` reads."""
    return pool.meta["todo_span"]


def _pool_site(context: GraphContext, decision: Decision) -> list[Node]:
    """Of several images the last is pooled first, so that those before it stay where they are."""
    site = decision.site
    score = site.anchor if site.score is None else site.score.node
    pools: list[Node] = []
    until = context.memory.position(site.output)

    def pooled(what: str, source: Node, axis: int, user: Node) -> Node:
        for pooling in reversed(decision.poolings):
            if not pooling.pools:
                continue
            # Only masks that are the same for all image keys, or picked as they are, come here.
            other = what == "mask" and not pooling.picks_tokens
            how = replace(pooling, sampling="nearest") if other else pooling
            source = new_pool(
                context, source, axis, how,
                before=user, until=until, reads=((site.name, what),), rule=RULE,
            )  # fmt: skip
            pools.append(source)
        return source

    site.replace_key(pooled("key", site.key.node, site.key.tokens, score))
    site.replace_value(pooled("value", site.value.node, site.value.tokens, site.output))
    if site.mask is not None and site.mask_axis is not None:
        assert site.mask_user is not None
        mask = pooled("mask", site.mask, site.mask_axis, site.mask_user)
        site.mask_user.replace_input_with(site.mask, mask)
    keys = decision.keys_after
    if site.placeholder is not None:
        _shrink_placeholder(context, site, keys)
    for node, axis in site.scores:
        _shrink(context, node, axis, keys)
    if decision.weighs_keys:
        weigh_keys(context, site, decision.poolings, keys, against_text=decision.keeps_mass)
    context.mark(site.output)
    return pools


def _shrink(context: GraphContext, node: Node, axis: int, keys: int) -> None:
    """A node among the scores now has `keys` key columns on `axis`."""
    shape = context.shape(node)
    assert shape is not None
    after = (*shape[:axis], keys, *shape[axis + 1 :])
    context.drop_size_assertions(node)
    if ops.op(node) == "view":
        source = ops.tensor_arg(node, 0, "input", "self")
        assert source is not None
        node.target, node.op = ops.RESHAPE, "call_function"
        node.args, node.kwargs = (source, context.sizes(after)), {}
    context.set_shape(node, after)


def _shrink_placeholder(context: GraphContext, site: AttentionSite, keys: int) -> None:
    """``baddbmm(empty(B, Nq, Nk), …, beta=0)`` never reads its first operand, but its shape."""
    assert site.placeholder is not None
    node, axis = site.placeholder
    shape = context.shape(node)
    assert shape is not None
    if ops.op(node) in ops.EMPTY_OPS and len(node.users) == 1:
        sizes = ops.int_list(node, 0, "size")
        if len(sizes) == len(shape):
            sizes[axis] = keys
            ops.set_int_list(node, 0, "size", sizes)
            context.set_shape(node, (*shape[:axis], keys, *shape[axis + 1 :]))
            return
    assert site.score is not None
    user = site.score.node
    with context.graph.inserting_before(user):
        cut = context.call(
            ops.SLICE,
            (node, axis, 0, keys, 1),
            like=node,
            shape=(*shape[:axis], keys, *shape[axis + 1 :]),
            rule=RULE,
        )
    user.replace_input_with(node, cut)
