"""When pool(f(x)) == f(pool(x)): the exchange of a pooling with the operation above it.

What the operation does to axes is read off its effect (`passes.operators`). The answer is a `Move`
(which operands are pooled instead, on which axis) or the reason why the exchange would be wrong.
Writing P for pooling with weights w that sum to one over each cell:

* rearranging (permute, view, squeeze, expand): P acts on one axis; the axis is only renamed.
* affine in the channels (linear, bias, per-channel scale): P(Ax + b) = Σ w (Ax + b) = A(Px) + b.
* token-wise (norm or length over channels, activation, product with another token tensor): f acts
  on every token alone, so picking tokens before or after is the same; for averages it is not.
* concatenation: along channels every part is pooled; along tokens only the image's part is.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch.fx import Node

from todo_compile.passes import ops
from todo_compile.passes.graph import GraphContext
from todo_compile.passes.grid.axes import Size, same
from todo_compile.passes.grid.reshapes import kept_axis
from todo_compile.passes.operators.effect import Effect
from todo_compile.passes.operators.parts import is_apart
from todo_compile.passes.operators.table import effect_of
from todo_compile.passes.rewrite.pooling import Pooling


@dataclass(frozen=True, slots=True)
class Move:
    """A proved exchange.

    Args:
        rule: name, for statistics and provenance.
        operands: (operand, its token axis, pooling for it): what is pooled instead.
        sizes: new size argument of a view or of an expand; None leaves the arguments alone.
        sized: what is called with it.
    """

    rule: str
    operands: tuple[tuple[Node, int, Pooling], ...]
    sizes: tuple[Any, ...] | None = None
    sized: Callable[..., Any] = ops.RESHAPE


def exchange(context: GraphContext, node: Node, axis: int, pooling: Pooling) -> Move | str:
    """What is pooled instead of the result of `node`, or why nothing can be."""
    effect = effect_of(context, node)
    if effect is None or not effect.rule:
        return _no_rule(node)
    if stuck := effect.stuck or effect.closed.get(axis):
        return stuck
    if effect.kind == "reshapes":
        return _through_view(context, node, effect, axis, pooling)
    if effect.rule == "expand":
        return _through_expand(context, node, effect, axis, pooling)
    if effect.kind == "joins" and effect.joined == axis:
        return _through_cat(context, node, effect, pooling)
    found = [(s.node, own, pooling) for s in effect.sources if (own := s.axes[axis]) is not None]
    if not found:
        return f"{node.name} makes the token axis"
    if not pooling.picks_tokens and not effect.linear([operand for operand, _, _ in found]):
        return f"{ops.op(node)} is not linear, so it does not commute with averages"
    return Move(effect.rule, tuple(found))


def _no_rule(node: Node) -> str:
    source = ops.tensor_arg(node, 0, "input", "self")
    if ops.op(node) == "getitem" and source is not None and is_apart(source):
        # Keys and values of a fused projection could only be pooled before it by cutting its
        # weight in two: the queries must keep all their tokens.
        return f"{source.name} takes apart a projection that the queries share"
    return f"no rule moves pooling above {ops.op(node) or node.name}"


def _through_view(
    context: GraphContext, node: Node, effect: Effect, axis: int, pooling: Pooling
) -> Move | str:
    """Allowed where the token axis stays whole (a split of heads)."""
    source, shape = effect.sources[0].node, context.shape(node)
    before = context.shape(source)
    assert shape is not None and before is not None
    moved = kept_axis(shape, before, axis)
    if moved is None:
        return f"{node.name} folds the token axis into another"
    sizes = context.sizes(shape)
    sizes[axis] = pooling.length_after(int(shape[axis]))
    return Move(effect.rule, ((source, moved, pooling),), tuple(sizes))


def _through_expand(
    context: GraphContext, node: Node, effect: Effect, axis: int, pooling: Pooling
) -> Move | str:
    """Where the tokens are those of the source: a number for each, say, over its channels."""
    (source,) = effect.sources
    own, shape = source.axes[axis], context.shape(node)
    assert shape is not None
    if own is None:
        return f"{node.name} makes the token axis"
    if any(not isinstance(n, int) and o is None for n, o in zip(shape, source.axes, strict=True)):
        return f"a size that {node.name} makes is dynamic"
    sizes = context.sizes(shape)
    sizes[axis] = pooling.length_after(int(shape[axis]))
    return Move(effect.rule, ((source.node, own, pooling),), tuple(sizes), ops.EXPAND)


def _through_cat(context: GraphContext, node: Node, effect: Effect, pooling: Pooling) -> Move | str:
    """Along tokens the image's part is pooled."""
    start: Size = 0
    for source in effect.sources:
        length = (context.shape(source.node) or ())[effect.joined]
        if same(start, pooling.offset) and same(length, pooling.tokens):
            return Move(effect.rule, ((source.node, effect.joined, pooling.at(0)),))
        start = start + length
    return f"no part of {node.name} is exactly the image"
