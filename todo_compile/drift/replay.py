"""Run a graph, or the part of it that differs, from values that are known already."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch.export.graph_signature import InputKind
from torch.fx import GraphModule, Node
from torch.fx.node import map_arg

from todo_compile.errors import ModelError

if TYPE_CHECKING:
    from torch.export import ExportedProgram


def lifted_tensors(program: ExportedProgram) -> dict[str, Any]:
    """Placeholder → parameter, buffer or constant of an exported program, in order.

    Raises:
        ModelError: the program keeps something else among its inputs.
    """
    found: dict[str, Any] = {}
    for spec in program.graph_signature.input_specs:
        if spec.kind is InputKind.USER_INPUT:
            continue
        target = spec.target or ""
        held: Any = program.state_dict.get(target, program.constants.get(target))
        if held is None:
            raise ModelError(f"The captured model keeps {target!r} in a way that drift cannot run.")
        found[str(spec.arg.name)] = held
    return found


def descendants(graph: torch.fx.Graph, start: Callable[[Node], bool]) -> frozenset[Node]:
    """Nodes for which `start` holds, and all that depends on them."""
    found: set[Node] = set()
    for node in graph.nodes:
        if start(node) or any(n in found for n in node.all_input_nodes):
            found.add(node)
    return frozenset(found)


def wanted_nodes(
    graph: torch.fx.Graph, changed: frozenset[Node], kept: Mapping[str, Any], last: str | None
) -> frozenset[Node]:
    """Nodes to compute: those that differ, and what they need that was not kept."""
    ends = [n for n in graph.nodes if (n.op == "output" if last is None else n.name == last)]
    wanted: set[Node] = set()
    pending: list[Node] = list(ends)
    while pending:
        node = pending.pop()
        if node in wanted or (node.name in kept and node not in changed):
            continue
        wanted.add(node)
        pending += node.all_input_nodes
    return frozenset(wanted)


def run(
    module: GraphModule,
    graph: torch.fx.Graph,
    values: Mapping[str, Any],
    look: Callable[[Node, Any], None] | None = None,
    wanted: frozenset[Node] | None = None,
    last: str | None = None,
) -> Any:
    """Run `graph`, or the `wanted` nodes of it, starting from `values` by name."""
    nodes = [n for n in graph.nodes if wanted is None or n in wanted]
    remaining = {n: sum(u in wanted for u in n.users) if wanted else len(n.users) for n in nodes}
    env: dict[Node, Any] = {}

    def value(node: Node) -> Any:
        return env[node] if node in env else values[node.name]

    with torch.no_grad():
        for node in nodes:
            result: Any
            if node.op == "placeholder":
                result = values[node.name]
            elif node.op == "get_attr":
                result = module
                for part in str(node.target).split("."):
                    result = getattr(result, part)
            else:
                args, kwargs = map_arg((node.args, dict(node.kwargs)), value)  # type: ignore[misc]
                if node.op == "output":
                    return args[0]
                if node.op == "call_method":
                    result = getattr(args[0], str(node.target))(*args[1:], **kwargs)
                elif node.op == "call_function":
                    result = node.target(*args, **kwargs)  # type: ignore[operator]
                else:
                    result = module.get_submodule(str(node.target))(*args, **kwargs)
            env[node] = result
            if look is not None:
                look(node, result)
            if node.name == last:
                return result
            for source in node.all_input_nodes:  # memory is given back as soon as it can be
                if source in remaining:
                    remaining[source] -= 1
                    if remaining[source] == 0:
                        env.pop(source, None)
    return None


def first_tensor(output: Any) -> torch.Tensor:
    """The first of a graph's outputs."""
    found = output[0] if isinstance(output, (list, tuple)) else output
    assert isinstance(found, torch.Tensor)
    return found
