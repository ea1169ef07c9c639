"""All that a reader of a captured graph can see of it, to compare two."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.export import ExportedProgram
from torch.fx import Node
from torch.fx.node import map_arg

from todo_compile._torch import is_same_view, storage_of
from todo_compile.capture.marks import mark_of


def _described(value: Any) -> Any:
    if isinstance(value, Tensor):
        place = tuple(value.shape), value.stride(), value.storage_offset()
        return place, value.dtype, value.device, value.requires_grad
    return list(map(_described, value)) if isinstance(value, (list, tuple)) else value


def _shared(node: Node) -> list[tuple[bool, bool]]:
    """Which operands a node is, and whose memory it has."""
    value = node.meta.get("val")
    operands = [operand.meta.get("val") for operand in node.all_input_nodes]
    tensors = [o for o in operands if isinstance(o, Tensor) and isinstance(value, Tensor)]
    return [(is_same_view(value, o), storage_of(value) == storage_of(o)) for o in tensors]


def lines(program: ExportedProgram) -> list[tuple[Any, ...]]:
    """All that a reader of a graph can see."""
    found: list[tuple[Any, ...]] = []
    for node in program.graph.nodes:
        assert not mark_of(node)
        given = map_arg((node.args, dict(node.kwargs)), lambda n: f"%{n.name}")
        stack = list(node.meta.get("nn_module_stack", {}).items())
        value = _described(node.meta.get("val"))
        found.append((node.op, node.name, node.target, str(given), stack, value, _shared(node)))
    signature = program.graph_signature
    return [*found, (str(signature.input_specs), str(signature.output_specs))]
