"""Replace every pooling by static ATen slices, reshapes and means.

    pool_tokens(x, 1, …)   →   reshape (B, H, W, C) ─ slice H ─ slice W ─ reshape (B, N', C)

No random numbers, no gather by data, no resize operator: what remains builds in every compiler.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch.fx import Node

from todo_compile.passes.graph import GraphContext
from todo_compile.passes.rewrite.pooling import Pooling, is_pool, lowering_steps, resolve


def lower_pools(context: GraphContext, nodes: Sequence[Node] | None = None) -> int:
    """Lower the poolings among `nodes` (default: all in the graph); returns how many."""
    pools = [n for n in (context.graph.nodes if nodes is None else nodes) if is_pool(n)]
    for pool in reversed(pools):
        if pool.users:  # else it was lowered with the one below it
            _lower(context, pool)
        context.forget(pool)
    return len(pools)


def _lower(context: GraphContext, pool: Node) -> None:
    """Poolings of several images right above each other are one join of their parts."""
    source, axis, pooling = Pooling.of(pool)
    poolings = [pooling]
    while is_pool(source) and len(source.users) == 1 and Pooling.of(source)[1] == axis:
        below = poolings[-1]
        above, _, pooling = Pooling.of(source)
        if pooling.offset < below.offset + below.tokens:
            break
        source = above
        poolings.append(pooling)
    shape = context.shape(source)
    assert shape is not None
    values: list[Any] = [source]
    rule = str(pool.meta.get("todo_rule", "pool"))
    sites = pool.meta["todo_sites"]
    with context.graph.inserting_before(pool), context.working_on(*sites):
        for target, arguments, result in lowering_steps(list(shape), axis, poolings):
            concrete = tuple(_concrete(context, resolve(a, values)) for a in arguments)
            values.append(
                context.call(target, concrete, like=pool, shape=result, rule=rule, name="todo_pool")
            )
    pool.replace_all_uses_with(values[-1])


def _concrete(context: GraphContext, argument: Any) -> Any:
    """An argument with what it says of sizes in numbers; a list of tensors stays."""
    if isinstance(argument, list) and not any(isinstance(item, Node) for item in argument):
        return context.sizes(argument)
    return argument
