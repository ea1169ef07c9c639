"""The commutation rules: when pool(f(x)) == f(pool(x)), one function an operation family.

A rule receives the node f above a pooling, the token axis of its output, and the pooling. It
answers with a `Move` (which operands are pooled instead, on which axis) or with the reason why the
exchange would be wrong. Writing P for pooling with weights w that sum to one over each cell:

* rearranging (permute, view, squeeze): P acts on one axis; the axis is only renamed.
* affine in the channels (linear, bias, per-channel scale): P(Ax + b) = Σ w (Ax + b) = A(Px) + b.
* token-wise (norm over channels, activation, product with another token tensor): f acts on every
  token alone, so picking tokens before or after is the same; for averages it is not.
* concatenation: along channels every part is pooled; along tokens only the image's part is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch.fx import Node

from todo_compile.passes import ops
from todo_compile.passes.graph import GraphContext
from todo_compile.passes.grid.axes import Size, same
from todo_compile.passes.grid.reshapes import kept_axis
from todo_compile.passes.rewrite.pooling import Pooling


@dataclass(frozen=True, slots=True)
class Move:
    """A proved exchange.

    Args:
        rule: name, for statistics and provenance.
        operands: (operand, its token axis, pooling for it): what is pooled instead.
        sizes: new size argument of a view; None leaves the arguments alone.
    """

    rule: str
    operands: tuple[tuple[Node, int, Pooling], ...]
    sizes: tuple[Any, ...] | None = None


Rule = Callable[[GraphContext, Node, int, Pooling], Move | str]


def _source(node: Node) -> Node | None:
    return ops.tensor_arg(node, 0, "input", "self")


def through_permute(context: GraphContext, node: Node, axis: int, pooling: Pooling) -> Move | str:
    """permute, transpose: the token axis has another number."""
    source = _source(node)
    order = ops.permutation(node, len(context.shape(node) or ()))
    if source is None or order is None:
        return f"{node.name} is no plain permutation"
    return Move("permute", ((source, order[axis], pooling),))


def through_view(context: GraphContext, node: Node, axis: int, pooling: Pooling) -> Move | str:
    """view, reshape, flatten: allowed where the token axis stays whole (a split of heads)."""
    source, shape = _source(node), context.shape(node)
    before = context.shape(source) if source is not None else None
    if source is None or shape is None or before is None:
        return f"the shape before {node.name} is not known"
    if context.dtype(source) is not context.dtype(node):
        return f"{node.name} reads the bytes as another dtype"
    moved = kept_axis(shape, before, axis)
    if moved is None:
        return f"{node.name} folds the token axis into another"
    sizes = context.sizes(shape)
    sizes[axis] = pooling.length_after(int(shape[axis]))
    return Move("view", ((source, moved, pooling),), tuple(sizes))


def through_squeeze(context: GraphContext, node: Node, axis: int, pooling: Pooling) -> Move | str:
    """squeeze, unsqueeze: axes of size 1 come or go, the token axis is renumbered."""
    source, shape = _source(node), context.shape(node)
    before = context.shape(source) if source is not None else None
    if source is None or shape is None or before is None:
        return f"the shape before {node.name} is not known"
    if ops.op(node) == "squeeze" and ops.arg(node, 1, "dim") is None:
        return f"{node.name} drops every axis of size 1, which pooling may make one more of"
    moved = kept_axis(shape, before, axis)
    return (
        Move("squeeze", ((source, moved, pooling),))
        if moved is not None
        else f"{node.name} does more than add or drop axes of size 1"
    )


def through_linear(context: GraphContext, node: Node, axis: int, pooling: Pooling) -> Move | str:
    """linear with bias: P(Wx + b) = W(Px) + b, since the weights of a cell sum to one."""
    source, shape = ops.tensor_arg(node, 0, "input"), context.shape(node)
    if source is None or shape is None or axis == len(shape) - 1:
        return f"{node.name} mixes the pooled axis"
    return Move("linear", ((source, axis, pooling),))


def through_matmul(context: GraphContext, node: Node, axis: int, pooling: Pooling) -> Move | str:
    """matmul with a weight on the right: a linear without bias."""
    left, right = ops.tensor_arg(node, 0, "input", "self"), ops.tensor_arg(node, 1, "other", "mat2")
    if left is None or right is None or ops.op(node) != "matmul":
        return f"{node.name} is no product with a weight"
    left_shape, right_shape = context.shape(left), context.shape(right)
    if left_shape is None or right_shape is None or len(right_shape) != 2:
        return f"{node.name} is no product with a weight"
    if axis >= len(left_shape) - 1:
        return f"{node.name} mixes the pooled axis"
    return Move("linear", ((left, axis, pooling),))


def through_conv1d(context: GraphContext, node: Node, axis: int, pooling: Pooling) -> Move | str:
    """conv1d of kernel 1: a linear on (B, C, N)."""
    source, weight = ops.tensor_arg(node, 0, "input"), ops.tensor_arg(node, 1, "weight")
    shape = context.shape(weight) if weight is not None else None
    after, before = context.shape(node), context.shape(source) if source is not None else None
    if source is None or shape is None or not same(shape[-1], 1) or axis != 2:
        return f"{node.name} mixes neighbouring tokens"
    if after is None or before is None or not same(after[2], before[2]):
        return f"{node.name} strides or pads the tokens"
    return Move("linear", ((source, axis, pooling),))


def through_identity(context: GraphContext, node: Node, axis: int, pooling: Pooling) -> Move | str:
    """Casts, copies, inactive dropout: values stay."""
    del context
    source = _source(node)
    if source is None or ops.is_dropout_active(node):
        return f"{node.name} drops values at random"
    if any(isinstance(a, Node) for a in [*node.args[1:], *node.kwargs.values()]):
        return f"{node.name} takes its dtype from another tensor"
    return Move("identity", ((source, axis, pooling),))


def through_unary(context: GraphContext, node: Node, axis: int, pooling: Pooling) -> Move | str:
    """Element-wise functions: token-wise; ``neg`` is linear and takes averages too."""
    del context
    source = _source(node)
    if source is None or len(ops.operands(node)) != 1:
        return f"{node.name} has several operands"
    if not pooling.picks_tokens and ops.op(node) != "neg":
        return f"{ops.op(node)} is not linear, so it does not commute with averages"
    return Move("token-wise", ((source, axis, pooling),))


def through_binary(context: GraphContext, node: Node, axis: int, pooling: Pooling) -> Move | str:
    """add, mul, …: operands with the token axis are pooled, the others are the same for all tokens.

    For averages: a sum of token tensors is linear; a product only if one factor is the same for
    all tokens; anything else is not.
    """
    shape = context.shape(node)
    assert shape is not None
    pooled: list[tuple[Node, int, Pooling]] = []
    first: Any = ops.arg(node, 0, "input", "self")
    for operand in dict.fromkeys(ops.operands(node)):
        known = context.shape(operand)
        if known is None:
            return f"the shape of {operand.name} is not known"
        own = len(known) - (len(shape) - axis)
        if own >= 0 and not same(known[own], 1):
            if not same(known[own], shape[axis]):
                return f"{operand.name} does not have the tokens on the same axis"
            pooled.append((operand, own, pooling))
    if not pooled:
        return f"{node.name} makes the token axis by broadcasting"
    if not pooling.picks_tokens:
        name = ops.op(node)
        alone = len(pooled) == 1 and ops.operands(node).count(pooled[0][0]) == 1
        linear = name in ("add", "sub", "rsub")
        linear |= name == "mul" and alone
        linear |= name == "div" and alone and pooled[0][0] is first and not _rounds(node)
        if not linear:
            return f"{name} of token tensors does not commute with averages"
    return Move("token-wise", tuple(pooled))


def _rounds(node: Node) -> bool:
    return ops.arg(node, 2, "rounding_mode") is not None


def through_norm(context: GraphContext, node: Node, axis: int, pooling: Pooling) -> Move | str:
    """layer_norm, rms_norm over channels: token-wise, so for selected tokens only."""
    source, shape = _source(node), context.shape(node)
    normalised = ops.arg(node, 1, "normalized_shape")
    if source is None or shape is None or not isinstance(normalised, (list, tuple)):
        return f"{node.name} normalises over tokens"
    if axis >= len(shape) - len(normalised):
        return f"{node.name} normalises over tokens"
    if not pooling.picks_tokens:
        return f"{ops.op(node)} is not linear, so it does not commute with averages"
    return Move("token-wise", ((source, axis, pooling),))


def through_cat(context: GraphContext, node: Node, axis: int, pooling: Pooling) -> Move | str:
    """Concatenation: along tokens the image's part is pooled, along another axis every part."""
    parts = ops.operands(node)
    shapes = [context.shape(p) for p in parts]
    known = [s for s in shapes if s is not None]
    shape = context.shape(node)
    if shape is None or len(known) != len(parts) or len(set(parts)) != len(parts):
        return f"the parts of {node.name} are not known"
    joined = ops.normal_dim(ops.arg(node, 1, "dim", "axis", default=0), len(shape))
    if joined != axis:
        return Move("concatenation", tuple((p, axis, pooling) for p in parts))
    start: Size = 0
    for part, part_shape in zip(parts, known, strict=True):
        if same(start, pooling.offset) and same(part_shape[axis], pooling.tokens):
            return Move("concatenation", ((part, axis, pooling.at(0)),))
        start = start + part_shape[axis]
    return f"no part of {node.name} is exactly the image"


def through_slice(context: GraphContext, node: Node, axis: int, pooling: Pooling) -> Move | str:
    """Slices on other axes than the tokens'."""
    source, shape = _source(node), context.shape(node)
    if source is None or shape is None:
        return f"the shape before {node.name} is not known"
    if ops.normal_dim(ops.arg(node, 1, "dim", default=0), len(shape)) == axis:
        return f"{node.name} cuts the token axis"
    return Move("slice", ((source, axis, pooling),))


def through_part(context: GraphContext, node: Node, axis: int, pooling: Pooling) -> Move | str:
    """getitem of a split: never, the other parts (queries) must keep all their tokens.

    Keys and values of a fused qkv projection could only be pooled before it by cutting its weight
    in two; they are pooled after it.
    """
    del context, axis, pooling
    source = _source(node)
    if source is not None and ops.op(source) in ("chunk", "split", "unbind"):
        return f"{source.name} takes apart a projection that the queries share"
    return f"{node.name} takes part of a tensor"


def _table(*families: tuple[Sequence[str] | frozenset[str], Rule]) -> dict[str, Rule]:
    return {name: rule for names, rule in families for name in names}


RULES: dict[str, Rule] = _table(
    (("permute", "transpose", "t", "mT", "movedim", "moveaxis"), through_permute),
    (("view",), through_view),
    (("squeeze", "unsqueeze"), through_squeeze),
    (("linear",), through_linear),
    (("matmul",), through_matmul),
    (("conv1d",), through_conv1d),
    (ops.IDENTITY, through_identity),
    (ops.UNARY, through_unary),
    (ops.BINARY - {"masked_fill", "where", "iadd", "imul", "isub"}, through_binary),
    (("layer_norm", "rms_norm"), through_norm),
    (("cat",), through_cat),
    (("slice", "narrow"), through_slice),
    (("getitem",), through_part),
)
"""Canonical op → rule. What is not here stops the pooling, which is always correct."""
