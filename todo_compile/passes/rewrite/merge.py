"""Make one of several poolings of the same tensor.

x ─┬─ pool ─ to_k ─ …            x ─ pool ─┬─ to_k ─ …
   └─ pool ─ to_v ─ …      →               └─ to_v ─ …
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from torch.fx import Node

from todo_compile.passes.graph import GraphContext
from todo_compile.passes.rewrite.pooling import Pooling


@dataclass(slots=True)
class MergeResult:
    """Poolings that went, and those that took over and may be able to move further."""

    removed: list[Node] = field(default_factory=list[Node])
    kept: list[Node] = field(default_factory=list[Node])


def merge_pools(context: GraphContext, pools: Sequence[Node]) -> MergeResult:
    """Merge poolings with equal source and arguments; the first in the graph stays."""
    groups: dict[tuple[object, ...], list[Node]] = {}
    for pool in pools:
        if Pooling.of(pool)[0] in context.written:
            continue  # between two readings of the same node its memory may have changed
        groups.setdefault(pool.args, []).append(pool)
    result = MergeResult()
    doubled = [group for group in groups.values() if len(group) > 1]
    if not doubled:
        return result
    order = {node: index for index, node in enumerate(context.graph.nodes)}
    for group in doubled:
        first, *others = sorted(group, key=order.__getitem__)
        for other in others:
            other.replace_all_uses_with(first)
            context.forget(other)
            result.removed.append(other)
        result.kept.append(first)
    return result
