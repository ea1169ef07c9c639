"""Move pooling upwards, above the projections, by small commutation rules.

    x ─ linear ─ view ─ transpose ─ pool ─ k      →      x ─ pool ─ linear ─ view ─ transpose ─ k

Pooling is linear over tokens, acts alike on every channel, and its weights sum to one. So it
commutes with whatever treats every token alike and is affine (a projection with its bias), and, if
it only selects tokens, with whatever treats every token alike. Each rule in `hoist_rules` proves
one such exchange and refuses with a reason where the proof fails.

A node moves only if nobody but the pooling reads it: otherwise its work would be done twice.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from torch.fx import Node

from todo_compile.passes import ops
from todo_compile.passes.graph import GraphContext
from todo_compile.passes.rewrite.hoist_rules import RULES, Move
from todo_compile.passes.rewrite.merge import merge_pools
from todo_compile.passes.rewrite.pool import new_pool
from todo_compile.passes.rewrite.pooling import Pooling, is_pool


@dataclass(slots=True)
class HoistResult:
    """What hoisting did.

    Args:
        moves: rule name → how often it fired.
        stops: poolings that stay where they are → why.
        merged: poolings that another one made superfluous.
    """

    moves: dict[str, int] = field(default_factory=dict[str, int])
    stops: dict[Node, str] = field(default_factory=dict[Node, str])
    merged: int = 0


def hoist_pools(context: GraphContext, pools: Sequence[Node]) -> HoistResult:
    """Move every pooling as far up as the rules allow; merges those that meet."""
    result = HoistResult()
    pending = list(pools)
    while pending:
        while pending:
            pool = pending.pop()
            move = find_move(context, pool)
            if isinstance(move, str):
                result.stops[pool] = move
                continue
            pending += apply_move(context, pool, move)
            result.moves[move.rule] = result.moves.get(move.rule, 0) + 1
        # Two poolings of one tensor become one reader of it, which may free the next step.
        merged = merge_pools(context, list(result.stops))
        result.merged += len(merged.removed)
        for pool in merged.removed + merged.kept:
            del result.stops[pool]
        pending = merged.kept
    return result


def find_move(context: GraphContext, pool: Node) -> Move | str:
    """The exchange of a pooling with the node above it, or why there is none."""
    source, axis, pooling = Pooling.of(pool)
    if source.op not in ("call_function", "call_method") or is_pool(source):
        return f"{source.name} is where the tokens come from"
    name = ops.op(source)
    rule = RULES.get(name)
    if rule is None:
        return f"no rule moves pooling above {name or source.name}"
    if source in context.written:
        return f"the memory of {source.name} is written in place"
    readers = context.users(source)
    if len(readers) > 1:
        return f"{source.name} is read by others too, it would be computed twice"
    return rule(context, source, axis, pooling)


def apply_move(context: GraphContext, pool: Node, move: Move) -> list[Node]:
    """Exchange `pool` and the node above it; returns the new poolings."""
    source, _, _ = Pooling.of(pool)
    after = context.shape(pool)
    assert after is not None
    new: list[Node] = []
    for operand, axis, pooling in move.operands:
        raised = new_pool(context, operand, axis, pooling, before=source, rule=f"hoist-{move.rule}")
        source.replace_input_with(operand, raised)
        new.append(raised)
    if move.sizes is not None:
        source.op, source.target = "call_function", ops.RESHAPE
        source.args, source.kwargs = (source.args[0], list(move.sizes)), {}
    context.drop_size_assertions(source)
    context.set_shape(source, after)
    pool.replace_all_uses_with(source)
    context.forget(pool)
    return new
