"""Image tokens that arrive packed, as (B, N, C): on a grid by the caller's word, or by dataflow.

    token_grids {4096: (64, 64), 256: (16, 16), 12288: (3, 64, 64), 5120: [(64, 64), (32, 32)]}
    image (B, 4096, C)     on 64×64: the caller named it; 12288 are three frames of it
    image (B, 5120, C)     two pictures, one after the other: what is drawn, and a reference
    text  (B, 256, C)      stays text: the image is larger

    patch grid (64, 64), from a resolution
    image (B, 4096, C)     on 64×64, if the graph is a denoiser of exactly these tokens

A number is no grid. Of the inputs with a number of tokens that the caller named, the most are the
image's, and nothing is where a picture or video of more cells goes in too; of two with as many, the
one is the image whose tokens the graph returns (both are, where they meet position by position).
What a resolution says counts only where the dataflow of a whole denoiser agrees, see `_denoised`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.fx import Node

from todo_compile._torch import is_models_own, is_symbolic, size_hint
from todo_compile.options import TokenGrid
from todo_compile.passes.graph import GraphContext
from todo_compile.passes.grid.axes import Axes, Dim, Size, Unifier, plain_size


@dataclass(frozen=True, slots=True)
class Walked:
    """The axes of a graph in which nothing was taken for packed tokens yet."""

    axes: Mapping[Node, Axes]
    unifier: Unifier


Walk = Callable[[], Walked]


@dataclass(frozen=True, slots=True)
class Packed:
    """Inputs of packed image tokens.

    Args:
        grids: input → (rows, columns) of its tokens, or (frames, rows, columns); those of several
            pictures in a row.
        evidence: what says so where the caller did not; else "".
    """

    grids: dict[Node, TokenGrid] = field(default_factory=dict[Node, TokenGrid])
    evidence: str = ""

    def symbolic(self, context: GraphContext) -> list[Any]:
        """Numbers of tokens that are symbols: those of a grid only in the call at hand."""
        sizes = [_tokens(context, node) for node in self.grids]
        return [size for size in sizes if not isinstance(size, int)]


def packed_inputs(context: GraphContext, walk: Walk) -> Packed:
    """Inputs of packed image tokens, by the call at hand.

    Args:
        context: the graph, with the grids that the caller named and the one that a resolution says.
        walk: follows axes through the graph; only called where something depends on it.
    """
    named = _named(context, walk) if context.token_grids else {}
    if named or context.patch_grid is None:
        return Packed(named)
    return _denoised(context, context.patch_grid, walk)


def _named(context: GraphContext, walk: Walk) -> dict[Node, TokenGrid]:
    """Inputs whose number of tokens the caller named a grid for."""
    inputs = _inputs(context)
    found = {
        n: shape[1]
        for n, shape in inputs.items()
        if len(shape) == 3 and shape[1] in context.token_grids
    }
    most = max(found.values(), default=0)
    if not found or any(_cells(shape, most) > most for shape in inputs.values()):
        return {}
    chosen = [node for node, tokens in found.items() if tokens == most]
    if len(chosen) > 1:
        chosen = _one_picture(context, chosen, walk())
    return dict.fromkeys(chosen, context.token_grids[most])


def _one_picture(context: GraphContext, nodes: list[Node], walked: Walked) -> list[Node]:
    """Those of `nodes`, of equally many tokens, that are one range: all, or what is returned."""
    ranges = {node: _range(walked, walked.axes[node][1]) for node in nodes if node in walked.axes}
    if len(set(ranges.values())) > 1:
        back = _returned(context, walked)
        ranges = {node: ident for node, ident in ranges.items() if ident in back}
    return list(ranges) if len(set(ranges.values())) == 1 else []


def _denoised(context: GraphContext, grid: tuple[int, int], walk: Walk) -> Packed:
    """The only input with the tokens of `grid`, if this is a whole denoiser of just these tokens.

    That is: no other input shows a picture or video, a noise level an item goes in, and the tokens
    come out again position by position. A block by itself is given no noise level; a prior, a
    text encoder or a side input returns no such tokens.
    """
    inputs = _inputs(context)
    found = [n for n, s in inputs.items() if len(s) == 3 and s[1] == grid[0] * grid[1]]
    if len(found) != 1 or any(len(shape) > 3 for shape in inputs.values()):
        return Packed()
    (node,) = found
    batch = inputs[node][0]
    levels = [
        n
        for n, shape in inputs.items()
        if shape in ((), (1,), (batch,)) and context.dtype(n) is not torch.bool
    ]
    if not levels:
        return Packed()
    walked = walk()
    if _range(walked, walked.axes[node][1]) not in _returned(context, walked):
        return Packed()
    rows, columns = grid
    evidence = (
        f"on {rows}×{columns} since res says so of the packed patches of {node.name}, "
        "which the graph denoises"
    )
    return Packed({node: grid}, evidence)


def _inputs(context: GraphContext) -> dict[Node, tuple[int, ...]]:
    """Shapes of what the caller passes, in the call at hand; weights are none of it."""
    found: dict[Node, tuple[int, ...]] = {}
    for node in context.graph.nodes:
        value = context.value(node)
        if node.op == "placeholder" and isinstance(value, torch.Tensor) and not is_models_own(node):
            found[node] = tuple(_number(size) for size in value.shape)
    return found


def _cells(shape: tuple[int, ...], tokens: int) -> int:
    """Positions of a picture (B, C, H, W) or a video (B, C, F, H, W) or (B, F, C, H, W), else 0.

    A table of as many columns as there are `tokens`, or more, is a bias or a mask over them.
    """
    if len(shape) == 4:
        return shape[2] * shape[3] if shape[3] < tokens else 0
    return max(shape[1:3]) * shape[3] * shape[4] if len(shape) == 5 else 0


def _returned(context: GraphContext, walked: Walked) -> set[int]:
    """Ranges that some output of the graph has, position by position."""
    output = next(n for n in context.graph.nodes if n.op == "output")
    axes = [walked.axes[node] for node in output.all_input_nodes if node in walked.axes]
    return {_range(walked, dim) for one in axes for dim in one} - {0}


def _range(walked: Walked, dim: Dim) -> int:
    """Which range a dimension is; 0 if it is several."""
    return walked.unifier.find(dim[0].ident) if len(dim) == 1 else 0


def _tokens(context: GraphContext, node: Node) -> Size:
    return plain_size(context.value(node).shape[1])


def _number(size: Any) -> int:
    """A size, or what a symbolic one is in the call at hand; 0 if that is not known."""
    return (size_hint(size) or 0) if is_symbolic(size) else int(size)
