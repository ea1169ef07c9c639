"""What a dynamic batch asks of an exported file: constant reshapes, and a name of its own.

torch spells ``view(B, H·W, C)`` with the size of B read from a tensor, which ONNX needs four
operators for. Only the batch is dynamic, so the same reshape is the constant (-1, H·W, C), and the
file is operator for operator that of a fixed batch.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import torch

from todo_compile._torch import is_symbolic
from todo_compile.batches import NAME

if TYPE_CHECKING:
    import onnx_ir as ir
    from torch.fx import Graph

_RESHAPES = (torch.ops.aten.view.default, torch.ops.aten.reshape.default)


def fix_reshapes(graph: Graph) -> None:
    """Make the sizes of reshapes constants where one of them is dynamic; in place."""
    changed = False
    for node in graph.nodes:
        if node.target not in _RESHAPES:
            continue
        shape = node.meta["val"].shape
        dynamic = [is_symbolic(size) for size in shape]
        if sum(dynamic) == 1:
            sizes = [-1 if moves else int(size) for size, moves in zip(shape, dynamic, strict=True)]
            node.args = (node.args[0], sizes)
            changed = True
    if not changed:
        return
    for node in reversed(list(graph.nodes)):
        if node.target is torch.ops.aten.sym_size.int and not node.users:
            graph.erase_node(node)


def name_batch(model: ir.Model) -> None:
    """Call the dynamic size of a model's inputs "batch" wherever it appears; in place.

    torch numbers its symbols (``s53``) anew with every export.
    """
    import onnx_ir as ir

    found = {
        str(size.value)
        for value in model.graph.inputs
        for size in value.shape or ()
        if isinstance(size, ir.SymbolicDim)
    }
    if not found:
        return
    symbol = re.compile(rf"\b({'|'.join(map(re.escape, sorted(found)))})\b")
    values = [*model.graph.inputs]
    for node in model.graph:
        values += node.outputs
    for value in values:
        shape = value.shape
        if shape is None or all(isinstance(size, int) for size in shape):
            continue
        value.shape = ir.Shape(
            [
                size if isinstance(size, int) else ir.SymbolicDim(_renamed(size.value, symbol))
                for size in shape
            ]
        )


def _renamed(name: str | None, symbol: re.Pattern[str]) -> str | None:
    return None if name is None else symbol.sub(NAME, name)
