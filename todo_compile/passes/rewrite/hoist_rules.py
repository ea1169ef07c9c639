"""When pool(f(x)) == f(pool(x)): the exchange of a pooling with the operation above it.

What the operation does to axes is read off its effect (`passes.operators`). The answer is a `Move`
(which operands are pooled instead, on which axis) or the reason why the exchange would be wrong.
Graphs run from left to right; P pools with weights w that sum to one over each cell.

Rearranging (permute, squeeze, view and expand, which have functions of their own below):

    x ─ permute ─ P          →   x ─ P ─ permute
    P acts on one axis, which is only renamed.

Affine in the channels (linear, bias, scale of a channel, sum of two token tensors):

    x ─ linear(A, b) ─ P     →   x ─ P ─ linear(A, b)
    Σ w (Ax + b) = A (Σ w x) + b, since Σ w = 1.

Token-wise (norm or length over channels, activation, product with another token tensor):

    x ─ f ─ P                →   x ─ P ─ f
    f sees one token at a time, so f of the picked tokens are the picked f. P must pick: f of a mean
    is not the mean of f.

Concatenation on the channels, and any operation on several token tensors:

    x ─┐                         x ─ P ─┐
       cat(-1) ─ P           →          cat(-1)
    y ─┘                         y ─ P ─┘
    P treats every channel alike.
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
    """A view that keeps the token axis whole: a split of heads, or its undoing.

        x (1, N, C) ─ view (1, N, H, C/H) ─ P   →   x ─ P (1, n, C) ─ view (1, n, H, C/H)

    What lies before the token axis and what lies behind it are regrouped among themselves, so token
    i of the result is made of token i alone.
    """
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
    """Repetition along other axes than the tokens', of a number for each token, say.

        x (1, N, 1) ─ expand (1, N, C) ─ P   →   x ─ P (1, n, 1) ─ expand (1, n, C)

    Token i of the result is a copy of token i.
    """
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
    """Concatenation along tokens: the image's part is pooled.

        text ─┐                              text ──────┐
              cat(1) ─ P of the image   →               cat(1)
        image ┘                              image ─ P ─┘

    P leaves every other token alone. The image must lie in one part.
    """
    start: Size = 0
    for source in effect.sources:
        length = (context.shape(source.node) or ())[effect.joined]
        if _holds(start, length, pooling):
            inside = pooling.at(pooling.offset - start)
            return Move(effect.rule, ((source.node, effect.joined, inside),))
        start = start + length
    return f"no part of {node.name} has the whole image"


def _holds(start: Size, length: Size, pooling: Pooling) -> bool:
    """Whether the image lies within `length` tokens from `start`."""
    if isinstance(start, int) and isinstance(length, int):
        return start <= pooling.offset and pooling.offset + pooling.tokens <= start + length
    return same(start, pooling.offset) and same(length, pooling.tokens)
