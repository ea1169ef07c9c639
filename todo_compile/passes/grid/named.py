"""Inputs whose rows and columns the caller names: ``{"sample": (2, 3)}``.

    sample (B, 4, 64, 64)   →   [B][c][H][W]

For models whose graph minds no neighbours at all: patches of one cell, embedded by a 1×1
convolution.
"""

from __future__ import annotations

from torch.fx import Node

from todo_compile.errors import ConfigError
from todo_compile.passes.graph import GraphContext
from todo_compile.passes.grid.axes import Axes, Dim, fresh, fresh_dim


def named_inputs(context: GraphContext) -> dict[Node, Axes]:
    """Axes of the inputs that the caller named image axes of.

    Raises:
        ConfigError: there is no such input, or it has no such axes.
    """
    inputs = {_name(n): n for n in context.graph.nodes if n.op == "placeholder"}
    found: dict[Node, Axes] = {}
    for name, (rows, columns) in context.image_axes.items():
        node = inputs.get(name)
        shape = context.shape(node) if node is not None else None
        if node is None or shape is None:
            raise ConfigError(f"image_axes names {name!r}, which is no tensor that goes in.")
        if not 0 < rows < len(shape) > columns > 0 or rows == columns:
            raise ConfigError(
                f"image_axes says that rows and columns of {name} are its axes {rows} and "
                f"{columns}; it has axes 0 to {len(shape) - 1}, of which 0 is the batch.",
                remedy='Give name → (axis of rows, axis of columns), e.g. {"sample": (2, 3)}.',
            )
        roles = {0: "B", rows: "H", columns: "W"}
        dims: list[Dim] = [fresh_dim(size, roles.get(i, "")) for i, size in enumerate(shape)]
        for side in (rows, columns):  # a side of one position is one, where the other is longer
            dims[side] = dims[side] or (fresh(1, roles[side]),)
        found[node] = tuple(dims)
    return found


def _name(node: Node) -> str:
    """The argument's name; Dynamo writes ``L_sample_`` for the argument ``sample``."""
    target = str(node.target)
    return target[2:-1] if target.startswith("L_") and target.endswith("_") else target
