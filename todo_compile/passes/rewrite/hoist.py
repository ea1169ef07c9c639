"""Move pooling upwards, above the projections, by small commutation rules.

    x ─ linear ─ view ─ transpose ─ pool ─ k      →      x ─ pool ─ linear ─ view ─ transpose ─ k

Pooling is linear over tokens, acts alike on every channel, and its weights sum to one. So it
commutes with whatever treats every token alike and is affine (a projection with its bias), and, if
it only selects tokens, with whatever treats every token alike. `hoist_rules` proves each such
exchange, or refuses it with a reason.

A node moves only if nobody but the pooling reads it: otherwise its work would be done twice.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from torch.fx import Node

from todo_compile.passes.graph import GraphContext
from todo_compile.passes.rewrite.hoist_rules import Move, exchange
from todo_compile.passes.rewrite.merge import merge_pools
from todo_compile.passes.rewrite.pool import new_pool, reads_of, span
from todo_compile.passes.rewrite.pooling import Pooling, is_pool

WAITS = "another image of the same tokens is pooled right above it"
"""Why a pooling stays below another: it moves when, and as far as, that one does."""


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


def hoist_pools(
    context: GraphContext, pools: Sequence[Node], *, without: frozenset[str] = frozenset()
) -> HoistResult:
    """Move every pooling as far up as the rules allow; merges those that meet.

    Args:
        without: names of rules that are switched off.
    """
    result = HoistResult()
    pending = list(pools)
    while pending:
        while pending:
            pool = pending.pop()
            with context.working_on(*pool.meta["todo_sites"]):
                move = find_move(context, pool, without)
                if isinstance(move, str):
                    result.stops[pool] = move
                    continue
                above = Pooling.of(pool)[0]
                pending += apply_move(context, pool, move)
                # What pools another image of the same tokens waited below this one.
                waiting = [user for user in above.users if user in result.stops]
                pending += waiting
                for other in waiting:
                    del result.stops[other]
            result.moves[move.rule] = result.moves.get(move.rule, 0) + 1
        # Two poolings of one tensor become one reader of it, which may free the next step.
        merged = merge_pools(context, list(result.stops))
        result.merged += len(merged.removed)
        for pool in merged.removed + merged.kept:
            del result.stops[pool]
        pending = merged.kept
    return result


def find_move(
    context: GraphContext, pool: Node, without: frozenset[str] = frozenset()
) -> Move | str:
    """The exchange of a pooling with the node above it, or why there is none."""
    source, axis, pooling = Pooling.of(pool)
    if is_pool(source):
        return WAITS
    if source.op not in ("call_function", "call_method"):
        return f"{source.name} is where the tokens come from"
    if context.memory.writes(source):
        return f"{source.name} writes into memory"
    readers = context.users(source)
    if len(readers) > 1:
        return f"{source.name} is read by others too, it would be computed twice"
    move = exchange(context, source, axis, pooling)
    if isinstance(move, str):
        return move
    if move.rule in without:
        return f"the rule {move.rule!r} is switched off"
    for operand, _, _ in move.operands:
        if sum(not isinstance(size, int) for size in context.shape(operand) or ()) > 1:
            return f"more than one size of {operand.name} is dynamic"
        dtype = context.dtype(operand)
        if not pooling.picks_tokens and not (
            dtype and (dtype.is_floating_point or dtype.is_complex)
        ):
            return f"{operand.name} holds whole numbers: their mean would be rounded otherwise"
    # Pooled tokens may be a view of the operand; whoever reads them last must find it unwritten.
    moved = [source, *(operand for operand, _, _ in move.operands)]
    if writer := context.memory.writer(moved, context.memory.position(source), span(pool)[1]):
        return f"{writer.name} writes into the memory of {source.name} before it is read"
    return move


def apply_move(context: GraphContext, pool: Node, move: Move) -> list[Node]:
    """Exchange `pool` and the node above it; returns the new poolings."""
    source, _, _ = Pooling.of(pool)
    after = context.shape(pool)
    assert after is not None
    new: list[Node] = []
    for operand, axis, pooling in move.operands:
        rule = f"hoist-{move.rule}"
        raised = new_pool(
            context,
            operand,
            axis,
            pooling,
            before=source,
            until=span(pool)[1],
            reads=reads_of(pool),
            rule=rule,
        )
        source.replace_input_with(operand, raised)
        new.append(raised)
    if move.sizes is not None:
        source.op, source.target = "call_function", move.sized
        source.args, source.kwargs = (source.args[0], list(move.sizes)), {}
    context.drop_size_assertions(source)
    context.set_shape(source, after)
    pool.replace_all_uses_with(source)
    context.forget(pool)
    return new
