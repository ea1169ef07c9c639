"""Image tokens that arrive packed, as (B, N, C): on a grid only if the caller named one for N.

    token_grids {4096: (64, 64), 1024: (32, 32), 256: (16, 16)}

    image (B, 4096, C)     on 64×64
    text  (B, 256, C)      stays text, whatever grid has 256 tokens: the image is larger

Text is no image because of its length. Where several inputs have the tokens of a grid, the most
tokens are the image's; an input that shows its rows and columns counts too.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.fx import Node

from todo_compile._torch import is_symbolic, size_hint
from todo_compile.passes.graph import GraphContext
from todo_compile.passes.grid.axes import Size, plain_size


def packed_inputs(context: GraphContext) -> dict[Node, tuple[int, int]]:
    """Input of packed tokens → its grid."""
    return {
        node: context.token_grids[tokens]
        for node, tokens in _packed(context).items()
        if isinstance(_tokens(context, node), int)
    }


def dynamic_packed(context: GraphContext) -> list[Any]:
    """Symbolic numbers of tokens that are those of a grid in the call at hand."""
    sizes = [_tokens(context, node) for node in _packed(context)]
    return [size for size in sizes if not isinstance(size, int)]


def _packed(context: GraphContext) -> dict[Node, int]:
    """Inputs of packed tokens, with their number in the call at hand."""
    found: dict[Node, int] = {}
    largest = 0
    shown = set(context.token_grids.values())
    for node in context.graph.nodes if context.token_grids else ():
        value = context.value(node)
        if node.op != "placeholder" or not isinstance(value, torch.Tensor):
            continue
        sizes = [_number(size) for size in value.shape]
        if value.dim() == 3 and sizes[1] in context.token_grids:
            found[node] = sizes[1]
            largest = max(largest, sizes[1])
        elif value.dim() == 4 and (sizes[2], sizes[3]) in shown:
            largest = max(largest, sizes[2] * sizes[3])
    return {node: tokens for node, tokens in found.items() if tokens == largest}


def _tokens(context: GraphContext, node: Node) -> Size:
    return plain_size(context.value(node).shape[1])


def _number(size: Any) -> int:
    """A size, or what a symbolic one is in the call at hand; 0 if that is not known."""
    return (size_hint(size) or 0) if is_symbolic(size) else int(size)
