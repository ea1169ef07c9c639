"""Graphs that a node calls, and which of its operands each of their inputs is.

    x (B, H·W, C) ─ tag_activation_checkpoint(body, x, …)        body:  x (B, N, C) ─ attention ─ …

A checkpointed block is a graph of its own: it sees packed tokens, whose grid is proved by the
dataflow outside, and hands them on to whatever comes after it. So axes go in with the operands and
come out with the outputs.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch.fx import GraphModule, Node

from todo_compile.passes.graph import GraphContext
from todo_compile.passes.grid.axes import Axes, same

_ONE_BODY = frozenset(
    ("tag_activation_checkpoint", "wrap_activation_checkpoint", "wrap", "invoke_subgraph")
)
"""Run their only body once, on their last operands in order, and return what it returns."""
_BRANCHES = frozenset(("cond",))
"""Run one of their bodies, on their last operands in order."""


def bodies(module: GraphModule, node: Node) -> list[GraphModule]:
    """The graphs that `node` calls, in order."""
    found: list[GraphModule] = []
    operands = node.all_input_nodes if node.op == "call_function" else ()
    for operand in operands:
        if operand.op != "get_attr":
            continue
        body: Any = module
        for part in str(operand.target).split("."):
            body = getattr(body, part, None)
        if isinstance(body, GraphModule):
            found.append(body)
    return found


def returns_its_bodys(node: Node) -> bool:
    """Whether the outputs of `node` are those of the one body that it calls."""
    return _name(node) in _ONE_BODY


def inputs_of(context: GraphContext, node: Node, body: GraphModule) -> dict[Node, Node] | None:
    """Input of `body` → operand of `node`; None where that is not known."""
    if _name(node) not in _ONE_BODY | _BRANCHES:
        return None
    inner = GraphContext(body)
    inputs = [n for n in body.graph.nodes if n.op == "placeholder"]
    operands = _flat(node.args)[-len(inputs) :] if inputs else []
    if len(operands) != len(inputs):
        return None
    for mine, given in zip(inputs, operands, strict=True):
        if not isinstance(given, Node):
            return None
        left, right = inner.shape(mine), context.shape(given)
        if (left is None) != (right is None):
            return None
        if left is None or right is None:
            continue
        if len(left) != len(right) or not all(map(same, left, right)):
            return None
    return dict(zip(inputs, operands, strict=True))


def returned(body: GraphModule, axes: Mapping[Node, Axes]) -> list[Axes]:
    """Axes of everything that `body` returns; none for what is no tensor."""
    output = next(n for n in body.graph.nodes if n.op == "output").args[0]
    values = output if isinstance(output, (list, tuple)) else [output]
    return [axes.get(v, ()) if isinstance(v, Node) else () for v in values]


def _name(node: Node) -> str:
    return str(getattr(node.target, "__name__", "")) if node.op == "call_function" else ""


def _flat(arguments: Any) -> list[Any]:
    """Arguments with lists and tuples opened."""
    found: list[Any] = []
    for argument in arguments:
        found += _flat(argument) if isinstance(argument, (list, tuple)) else [argument]
    return found
