"""Regions where autocast is switched off, written into the graph around them.

    wrap_with_autocast(cuda, None, False, None, body, x)      →      what `body` does with x

A file runs where no autocast is on, so a region that only switches it off does nothing: its body is
part of the graph as everything else is. Then attention in it is found, ONNX has no graph in a graph
to translate, and complex numbers in it are written as real ones. (Regions that switch autocast on
change numbers, and stay.)
"""

from __future__ import annotations

from typing import Any

import torch
from torch.export import ExportedProgram
from torch.fx import GraphModule, Node
from torch.fx.node import map_arg

_NAME = "wrap_with_autocast"


def write_out_regions(program: ExportedProgram) -> int:
    """Put the bodies of regions without effect in their place; returns how many."""
    module = program.graph_module
    count = 0
    while (found := next(filter(_does_nothing, program.graph.nodes), None)) is not None:
        _write_out(module, found)
        count += 1
    if count:
        program.graph.eliminate_dead_code(is_impure_node=lambda node: not _is_body(node))
        program.graph.lint()
        module.recompile()
        program.validate()
    return count


def _does_nothing(node: Node) -> bool:
    """Whether a node calls a body with autocast off."""
    called = node.op == "call_function" and getattr(node.target, "__name__", "") == _NAME
    return called and len(node.args) > 4 and node.args[2] is False


def _is_body(node: Node) -> bool:
    """Whether a node only names a graph."""
    owner = node.graph.owning_module
    return node.op == "get_attr" and isinstance(getattr(owner, str(node.target), None), GraphModule)


def _write_out(module: GraphModule, call: Node) -> None:
    named: Any = call.args[4]
    body: GraphModule = getattr(module, str(named.target))
    inputs = [n for n in body.graph.nodes if n.op == "placeholder"]
    here: dict[Node, Any] = dict(zip(inputs, call.args[5:], strict=True))
    with module.graph.inserting_before(call):
        for node in body.graph.nodes:
            if node.op in ("placeholder", "output"):
                continue
            here[node] = module.graph.node_copy(node, here.__getitem__)
            if node.op == "get_attr":
                here[node].target = _moved(module, body, str(node.target))
    (returned,) = next(n for n in body.graph.nodes if n.op == "output").args
    results: Any = map_arg(returned, here.__getitem__)
    for user in list(call.users):
        result = results[user.args[1]]
        if any(reader.op == "output" for reader in user.users):  # results are known by their names
            user.target, user.args = torch.ops.aten.alias.default, (result,)
        else:
            user.replace_all_uses_with(result)
            module.graph.erase_node(user)
    module.graph.erase_node(call)


def _moved(module: GraphModule, body: GraphModule, name: str) -> str:
    """A body's own attribute under a name that its new owner does not have."""
    new = f"_{name.replace('.', '_')}"
    while hasattr(module, new):
        new = f"{new}_"
    owner: Any = body
    for part in name.split("."):
        owner = getattr(owner, part)
    setattr(module, new, owner)
    return new
