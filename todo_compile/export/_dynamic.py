"""What dynamic sizes ask of an exported file: constant reshapes, and names of their own.

torch spells ``view(B, H·W, C)`` with the size of B read from a tensor, which ONNX needs four
operators for. Where only the batch is dynamic the same reshape is the constant (-1, H·W, C), and
the file is operator for operator that of a fixed batch. So it is with the tokens of a text.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch

from todo_compile._torch import is_symbolic
from todo_compile.batches import NAME, TEXT_NAME

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


def name_sizes(model: ir.Model) -> None:
    """Call the dynamic sizes of a model's inputs "batch" and "text" wherever they appear; in place.

    A first size is the batch, a second one the tokens of a text.

    torch numbers its symbols (``s53``) anew with every export.
    """
    import onnx_ir as ir

    names = {
        str(size.value): (NAME, TEXT_NAME)[axis]
        for value in model.graph.inputs
        for axis, size in enumerate((value.shape or ())[:2])
        if isinstance(size, ir.SymbolicDim)
    }
    if not names:
        return
    symbol = re.compile(rf"\b({'|'.join(map(re.escape, sorted(names)))})\b")
    values = [*model.graph.inputs]
    for node in model.graph:
        values += node.outputs
    for value in values:
        shape = value.shape
        if shape is None or all(isinstance(size, int) for size in shape):
            continue
        value.shape = ir.Shape(
            [
                size
                if isinstance(size, int)
                else ir.SymbolicDim(_renamed(size.value, symbol, names))
                for size in shape
            ]
        )


def _renamed(name: str | None, symbol: re.Pattern[str], names: Mapping[str, str]) -> str | None:
    return None if name is None else symbol.sub(lambda found: names[found[0]], name)
