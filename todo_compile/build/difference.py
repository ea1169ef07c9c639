"""What a rewrite changed in a graph, and that it changed nothing else."""

from __future__ import annotations

from collections.abc import Iterable

from torch.fx import GraphModule, Node
from torch.fx.node import map_arg

from todo_compile.errors import PassError
from todo_compile.passes import ops
from todo_compile.passes.find import casts
from todo_compile.passes.graph import BUG, GraphContext


def subsampled(dense: GraphModule, module: GraphModule, outputs: Iterable[str]) -> frozenset[str]:
    """Nodes that are new or have another shape, and feed one of `outputs` (which are not among
    them) through nodes that are or have."""
    before, now = GraphContext(dense), GraphContext(module)
    shapes = {n.name: before.shape(n) for n in dense.graph.nodes}
    nodes = {n.name: n for n in module.graph.nodes}
    found: set[str] = set()
    pending = [nodes[name] for name in outputs]
    while pending:
        for node in pending.pop().all_input_nodes:
            same = node.name in shapes and shapes[node.name] == now.shape(node)
            if not same and node.name not in found:
                found.add(node.name)
                pending.append(node)
    return frozenset(found)


def check_rest(
    dense: GraphModule, module: GraphModule, own: frozenset[str], outputs: frozenset[str]
) -> None:
    """Beside the nodes `own` and the `outputs` that they feed, both graphs must be the same.

    Raises:
        PassError: a node differs, or reads what was subsampled for a site.
    """
    before = {n.name: _text(n) for n in dense.graph.nodes}
    for node in module.graph.nodes:
        if node.name in own or node.name in outputs or _is_cast(node):
            continue
        if before.get(node.name) != _text(node):
            raise PassError(f"The rewrite changed {node.name}, which feeds no site.", remedy=BUG)
        read = [n.name for n in node.all_input_nodes if n.name in own]
        if read and not ops.is_description_query(node):
            raise PassError(
                f"{node.name} belongs to no site, and reads the subsampled {read[0]}.", remedy=BUG
            )


def _is_cast(node: Node) -> bool:
    return node.meta.get("todo_rule") == casts.RULE


def _text(node: Node) -> str:
    """A text that is equal for a node and its copy, unless one was rewritten; casts are ignored."""

    def name(source: Node) -> str:
        behind = source.args[0] if _is_cast(source) else source
        return behind.name if isinstance(behind, Node) else source.name

    return f"{node.op} {node.target} {map_arg((node.args, dict(node.kwargs)), name)}"
