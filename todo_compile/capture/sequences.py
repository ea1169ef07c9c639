"""``pad_sequence`` as padding and a stack, which rows, columns and complex numbers are followed
through: Z-Image makes its batch that way, of sequences that mostly are of one length already.

    pad_sequence([a, b])  →  stack([a, pad(b)])
"""

from __future__ import annotations

from typing import Any

import torch
from torch.export import ExportedProgram
from torch.fx import Node

from todo_compile._torch import fake_mode_of

_aten = torch.ops.aten


def write_out_sequences(program: ExportedProgram) -> bool:
    """Write every ``pad_sequence`` of a captured program as what it is, in place.

    Returns:
        Whether there was one. Those that pad on the left, or whose lengths are not numbers, stay.
    """
    found = [n for n in program.graph.nodes if n.target is _aten.pad_sequence.default]
    changed = [_written(program, node) for node in found]
    if not any(changed):
        return False
    program.graph.lint()
    program.graph_module.recompile()
    program.validate()
    return True


def _written(program: ExportedProgram, node: Node) -> bool:
    schema = ("sequences", "batch_first", "padding_value", "padding_side")
    defaults: dict[str, Any] = {"batch_first": False, "padding_value": 0.0, "padding_side": "right"}
    given: dict[str, Any] = {
        **defaults,
        **dict(zip(schema, node.args, strict=False)),
        **node.kwargs,
    }
    parts: list[Node] = list(given["sequences"])
    lengths = [part.meta["val"].shape[0] for part in parts]
    if given["padding_side"] != "right" or not all(type(n) is int for n in lengths):
        return False
    if len(set(lengths)) > 1 and node.meta["val"].is_complex():
        return False  # no padding of complex numbers is written with real ones

    def emit(target: Any, *args: Any) -> Node:
        with program.graph.inserting_before(node):
            made = program.graph.call_function(target, args)
        made.meta = {key: value for key, value in node.meta.items() if key != "val"}
        mode = fake_mode_of(node.meta["val"])
        assert mode is not None
        with mode:
            made.meta["val"] = target(*torch.fx.map_arg(args, lambda one: one.meta["val"]))
        return made

    most = max(lengths)
    padded = [
        part
        if length == most
        else emit(
            _aten.constant_pad_nd.default,
            part,
            [0, 0] * (part.meta["val"].dim() - 1) + [0, most - length],
            given["padding_value"],
        )
        for part, length in zip(parts, lengths, strict=True)
    ]
    made = emit(_aten.stack.default, padded, 0 if given["batch_first"] else 1)
    if any(user.op == "output" for user in node.users):  # results are known by their names
        node.target, node.args, node.kwargs = _aten.alias.default, (made,), {}
    else:
        node.replace_all_uses_with(made)
        program.graph.erase_node(node)
    return True
