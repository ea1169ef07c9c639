"""Make one of several poolings of the same tensor.

    x ─┬─ pool ─ to_k ─ …            x ─ pool ─┬─ to_k ─ …
       └─ pool ─ to_v ─ …      →               └─ to_v ─ …

Equal arguments on equal memory give equal tensors.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from torch.fx import Node

from todo_compile.passes.graph import GraphContext
from todo_compile.passes.rewrite.pool import reads_of, span
from todo_compile.passes.rewrite.pooling import Pooling


@dataclass(slots=True)
class MergeResult:
    """Poolings that went, and those that took over and may be able to move further."""

    removed: list[Node] = field(default_factory=list[Node])
    kept: list[Node] = field(default_factory=list[Node])


def merge_pools(context: GraphContext, pools: Sequence[Node]) -> MergeResult:
    """Merge poolings with equal source and arguments; the first in the graph stays.

    Not where the source's memory is written between the two: they read different tokens.
    """
    groups: dict[tuple[object, ...], list[Node]] = {}
    for pool in pools:
        groups.setdefault(pool.args, []).append(pool)
    result = MergeResult()
    for group in groups.values():
        first, *others = sorted(group, key=span)
        for other in others:
            start, until = span(first)[0], max(span(first)[1], span(other)[1])
            if context.memory.writer([Pooling.of(first)[0]], start - 1, until):
                continue
            first.meta["todo_span"] = start, until
            first.meta["todo_reads"] = *reads_of(first), *reads_of(other)
            sites = *first.meta["todo_sites"], *other.meta["todo_sites"]
            first.meta["todo_sites"] = tuple(dict.fromkeys(sites))
            other.replace_all_uses_with(first)
            context.forget(other)
            result.removed.append(other)
            if first not in result.kept:
                result.kept.append(first)
    return result
