"""Conditions that hold between passes; each raises a PassError where it does not."""

from __future__ import annotations

from todo_compile.errors import PassError
from todo_compile.passes.base import State
from todo_compile.passes.graph import NodeError
from todo_compile.passes.plan import cost
from todo_compile.passes.rewrite.pool import span
from todo_compile.passes.rewrite.pooling import Pooling, is_pool


def no_pools(state: State) -> None:
    """No pooling is left that stands for other operations."""
    for node in state.context.graph.nodes:
        if is_pool(node):
            raise NodeError(node, f"{node.name} is a pooling that was not lowered")


def planned_keys(state: State) -> None:
    """Every rewritten site reads the planned number of keys and values, and its own query."""
    for decision in state.pooled:
        site, context = decision.site, state.context
        query, key, value = site.operands_now()
        planned = decision.keys_after
        if query is not site.query.node:
            raise NodeError(site.anchor, f"site {site.name} lost its query")
        for node, operand in ((key, site.key), (value, site.value)):
            shape = context.shape(node)
            if shape is None or shape[operand.tokens] != planned:
                raise NodeError(
                    site.anchor,
                    f"site {site.name} was planned for {planned} keys but reads {shape}",
                )


def untouched_memory(state: State) -> None:
    """Nothing writes into what a pooling reads, until its result is read for the last time."""
    memory = state.context.memory
    for node in state.context.graph.nodes:
        if not is_pool(node):
            continue
        start, until = span(node)
        if writer := memory.writer([Pooling.of(node)[0]], start - 1, until):
            raise NodeError(node, f"{writer.name} writes into what {node.name} reads")


def no_more_work(state: State) -> None:
    """The rewritten graph needs no more operations than the dense one."""
    if cost.graph_flops(state.context) > state.dense_flops:
        raise PassError("the rewritten graph needs more operations than the dense one")
