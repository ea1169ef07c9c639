"""Values of what is computed element by element: interval arithmetic and certain comparisons."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch.fx import Node

from todo_compile.passes import ops
from todo_compile.passes.families import IDENTITY
from todo_compile.passes.values.interval import Question, Rule, Values, number


def _cast(q: Question) -> Values | None:
    source = q.source
    if source is None or ops.is_dropout_active(q.node):
        return None
    found, dtype = q.aligned(source), q.context.dtype(q.node)
    if dtype is torch.bool:
        return _truth(found)
    if dtype is not None and not dtype.is_floating_point:
        return replace(found, low=_floor(found.low), high=-_floor(-found.high))
    return found


def _floor(value: float) -> float:
    return value if math.isinf(value) else float(math.floor(value))


def _truth(found: Values) -> Values:
    if found.low > 0 or found.high < 0:
        return replace(found, low=1.0, high=1.0)
    if found.low == found.high == 0:
        return found
    return Values(0.0, 1.0, found.uniform)


def _unary(function: Callable[[float], float], *, falling: bool = False) -> Rule:
    """A function that only rises, or only falls."""

    def rule(q: Question) -> Values | None:
        source = q.source
        if source is None:
            return None
        found = q.aligned(source)
        ends = [function(found.low), function(found.high)]
        low, high = reversed(ends) if falling else ends
        return None if math.isnan(low) or math.isnan(high) else Values(low, high, found.uniform)

    return rule


def _not(q: Question) -> Values | None:
    source = q.source
    if source is None or (ops.op(q.node) == "bitwise_not" and not _is_bool(q, source)):
        return None
    found = _truth(q.aligned(source))
    return Values(1 - found.high, 1 - found.low, found.uniform)


def _is_bool(q: Question, node: Any) -> bool:
    return isinstance(node, bool) or (
        isinstance(node, Node) and q.context.dtype(node) is torch.bool
    )


def _pair(q: Question) -> tuple[Values, Values]:
    first = ops.arg(q.node, 0, "input", "self")
    return q.aligned(first), q.aligned(ops.arg(q.node, 1, "other"))


def _binary(function: Callable[[float, float], float]) -> Rule:
    """A function whose extremes lie at the ends of both intervals."""

    def rule(q: Question) -> Values | None:
        left, right = _pair(q)
        ends = [function(a, b) for a in (left.low, left.high) for b in (right.low, right.high)]
        if any(map(math.isnan, ends)):
            return None
        return Values(min(ends), max(ends), left.uniform and right.uniform)

    return rule


def _sum(sign: int, reverse: bool = False) -> Rule:
    def rule(q: Question) -> Values | None:
        alpha: Any = ops.arg(q.node, 2, "alpha", default=1)
        if not isinstance(alpha, (int, float)):
            return None

        def function(a: float, b: float) -> float:
            a, b = (b, a) if reverse else (a, b)
            return a + sign * alpha * b

        return _binary(function)(q)

    return rule


def _divided(a: float, b: float) -> float:
    return a / b if b else math.nan


def _quotient(q: Question) -> Values | None:
    right = q.aligned(ops.arg(q.node, 1, "other"))
    if right.low <= 0 <= right.high or ops.arg(q.node, 2, "rounding_mode") is not None:
        return None
    return _binary(_divided)(q)


def _compare(function: Callable[[Values, Values], bool | None]) -> Rule:
    """A comparison that is certain, or not."""

    def rule(q: Question) -> Values:
        left, right = _pair(q)
        known = function(left, right)
        uniform = left.uniform and right.uniform
        return Values(0.0, 1.0, uniform) if known is None else number(float(known))

    return rule


def _less(left: Values, right: Values) -> bool | None:
    return True if left.high < right.low else False if left.low >= right.high else None


def _less_equal(left: Values, right: Values) -> bool | None:
    return True if left.high <= right.low else False if left.low > right.high else None


def _equal(left: Values, right: Values) -> bool | None:
    if left.is_one_number and right.is_one_number:
        return left.low == right.low
    return False if left.high < right.low or right.high < left.low else None


def _negated(function: Callable[[Values, Values], bool | None]) -> Rule:
    def rule(left: Values, right: Values) -> bool | None:
        known = function(left, right)
        return None if known is None else not known

    return _compare(rule)


def _swapped(function: Callable[[Values, Values], bool | None]) -> Rule:
    return _compare(lambda left, right: function(right, left))


def _logical(function: Callable[[float, float], float]) -> Rule:
    def rule(q: Question) -> Values | None:
        operands = q.node.args[:2]
        if not ops.op(q.node).startswith("logical") and not all(_is_bool(q, o) for o in operands):
            return None
        left, right = map(_truth, _pair(q))
        return Values(
            function(left.low, right.low),
            function(left.high, right.high),
            left.uniform and right.uniform,
        )

    return rule


def _where(q: Question) -> Values | None:
    condition, yes, no = (
        ops.arg(q.node, i, n) for i, n in enumerate(("condition", "input", "other"))
    )
    return _chosen(q, condition, lambda: q.aligned(yes), lambda: q.aligned(no))


def _masked_fill(q: Question) -> Values | None:
    source, mask = q.source, ops.arg(q.node, 1, "mask")
    value = ops.arg(q.node, 2, "value")
    if source is None:
        return None
    return _chosen(q, mask, lambda: q.aligned(value), lambda: q.aligned(source))


def _chosen(
    q: Question, condition: Any, yes: Callable[[], Values], no: Callable[[], Values]
) -> Values | None:
    if not isinstance(condition, Node):
        return None
    asked = q.aligned(condition)
    if asked.is_one_number:
        return yes() if asked.low else no()
    one, other = yes(), no()
    uniform = asked.uniform and one.uniform and other.uniform
    return replace(one.hull(other), uniform=uniform)


def _clamp(q: Question) -> Values | None:
    source = q.source
    low, high = ops.arg(q.node, 1, "min"), ops.arg(q.node, 2, "max")
    if source is None or isinstance(low, Node) or isinstance(high, Node):
        return None
    least = -math.inf if low is None else float(low)
    most = math.inf if high is None else float(high)
    found = q.aligned(source)
    return Values(
        min(max(found.low, least), most), min(max(found.high, least), most), found.uniform
    )


def _product(a: float, b: float) -> float:
    return 0.0 if a == 0 and math.isfinite(b) else a * b


def _sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x)) if x > -700 else 0.0


RULES: Mapping[str, Rule] = {
    **dict.fromkeys((*IDENTITY, "bool", "int", "long", "double"), _cast),
    "neg": _unary(lambda x: -x, falling=True),
    "tanh": _unary(math.tanh),
    "sigmoid": _unary(_sigmoid),
    "relu": _unary(lambda x: max(x, 0.0)),
    **dict.fromkeys(("logical_not", "bitwise_not", "invert"), _not),
    "add": _sum(1),
    "sub": _sum(-1),
    "rsub": _sum(-1, reverse=True),
    "mul": _binary(_product),
    "div": _quotient,
    "maximum": _binary(max),
    "minimum": _binary(min),
    "lt": _compare(_less),
    "le": _compare(_less_equal),
    "gt": _swapped(_less),
    "ge": _swapped(_less_equal),
    "eq": _compare(_equal),
    "ne": _negated(_equal),
    **dict.fromkeys(("logical_and", "bitwise_and", "and_", "__and__"), _logical(min)),
    **dict.fromkeys(("logical_or", "bitwise_or", "or_", "__or__"), _logical(max)),
    "where": _where,
    "masked_fill": _masked_fill,
    **dict.fromkeys(("clamp", "clip"), _clamp),
}
