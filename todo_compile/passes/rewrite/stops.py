"""What it costs that a pooling stopped: projections above it that still run on all tokens.

    x ─ to_k ─ norm ─ pool ─ k      averages stop below the norm: to_k runs on all tokens of x

Counted is what would run on fewer tokens if the pooling stood above it, so only what nobody but
this pooling reads. Of a fused projection, whose other parts (queries) need all tokens, the pooled
part counts. Where two poolings share a projection neither counts it: the sum is a lower bound.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch.fx import Node

from todo_compile.passes import ops
from todo_compile.passes.families import LINEAR
from todo_compile.passes.graph import GraphContext
from todo_compile.passes.plan import cost
from todo_compile.passes.rewrite.pooling import Pooling, is_pool

_PARTS = frozenset({"getitem", "slice", "narrow", "select"})
_SPLITS = frozenset({"chunk", "split", "unbind"})


def extra_flops(context: GraphContext, pool: Node) -> int:
    """FLOPs that the projections above `pool` do for tokens that it then drops or merges.

    Args:
        context: of the graph, with the pooling not yet lowered.
        pool: a ``pool_tokens`` node that stays where it is, with those right below it.
    """
    source, axis, pooling = Pooling.of(pool)
    poolings = [pooling]
    below = pool
    while len(below.users) == 1 and is_pool(below := next(iter(below.users))):
        poolings.append(Pooling.of(below)[2])  # of another image of the same tokens
    images = [sum(p.tokens for p in poolings), sum(p.pooled_tokens for p in poolings)]
    length = (context.shape(source) or ())[axis]
    if not isinstance(length, int):
        return 0
    total = 0.0
    seen = {pool}
    pending = [(source, 1.0)]  # with the part of its result that the pooling reads
    while pending:
        node, part = pending.pop()
        if node in seen or node.op not in ("call_function", "call_method"):
            continue
        if not _only_for(context, node, seen):
            continue
        seen.add(node)
        name = ops.op(node)
        work = cost.flops(context, node)
        if work and not _is_projection(context, node):
            continue  # attention or a spatial convolution: nothing there is one token's alone
        total += work * part * _dropped(context, node, images, length)
        for operand in node.all_input_nodes:
            share = _share(context, node, operand) if name in _PARTS else 1.0
            pending.append((operand, part * share))
    return round(total)


def _only_for(context: GraphContext, node: Node, seen: set[Node]) -> bool:
    """Whether nobody else needs `node`: of what is taken apart, nobody else needs our part."""
    readers = context.users(node)
    if ops.op(node) in _SPLITS or all(ops.op(user) in _PARTS | _SPLITS for user in readers):
        return True
    return all(user in seen for user in readers)


def _share(context: GraphContext, part: Node, whole: Node) -> float:
    """Elements of a part against those of what it is taken from."""
    if ops.op(whole) in _SPLITS and whole.all_input_nodes:
        whole = whole.all_input_nodes[0]
    own, every = context.shape(part), context.shape(whole)
    if own is None or every is None:
        return 1.0
    numbers = [math.prod(map(context.number, shape)) for shape in (own, every)]
    return min(numbers[0] / numbers[1], 1.0) if numbers[1] else 1.0


def _is_projection(context: GraphContext, node: Node) -> bool:
    """A linear map of channels, the same for every token."""
    name = ops.op(node)
    if name == "matmul":
        right = ops.tensor_arg(node, 1, "other", "mat2")
        shape = context.shape(right) if right is not None else None
        return shape is not None and len(shape) == 2
    if name == "conv1d":
        weight = ops.tensor_arg(node, 1, "weight")
        shape = context.shape(weight) if weight is not None else None
        return shape is not None and shape[-1] == 1
    return name in LINEAR or name == "addmm"


def _dropped(context: GraphContext, node: Node, images: Sequence[int], length: int) -> float:
    """Share of a projection's rows that pooling above it would save.

    Args:
        images: tokens that are pooled, and those that are left of them.
        length: of the whole axis.
    """
    before, after = images
    shape = context.shape(node) or ()
    channels = 1 if ops.op(node) == "conv1d" else len(shape) - 1
    rows = [context.number(size) for i, size in enumerate(shape) if i != channels]
    for tokens, kept in (
        (length, length - before + after),
        (before, after),
    ):
        # Batch and tokens may be one axis, as in front of addmm.
        if tokens in rows or (len(rows) == 1 and rows[0] % tokens == 0):
            return 1 - kept / tokens
    return 0.0  # of the text beside the image, or of no tokens at all
