"""What numbers a tensor can hold, as far as the graph tells: intervals, for masks.

    cat([text_mask (B, T), ones (B, N)], 1)[:, None, None, :]     image part: 1 everywhere
    (1 − mask) · −10000                                           image part: 0 everywhere
    16 · sigmoid(table)                                           between 0 and 16
    an input of the model                                         anything

Asked for a range of positions on one axis, `values_of` follows the tensor upwards to constants and
gives the least and the greatest number that can be there, and whether each row holds one and the
same number along the range. What it does not know can hold anything. A tensor whose memory is
written is not known.
"""

from __future__ import annotations

import math

import torch
from torch.fx import Node

from todo_compile.passes import ops
from todo_compile.passes.graph import GraphContext
from todo_compile.passes.values import numbers, places
from todo_compile.passes.values.interval import ANYTHING, TRUTH, Question, Range, Values

_DEPTH = 64  # masks are made in far fewer steps
_RULES = {**places.RULES, **numbers.RULES}
"""Canonical op → rule. What is not here can hold anything."""


def values_of(context: GraphContext, node: Node, where: Range, depth: int = 0) -> Values:
    """What `node` can hold at the positions `where`."""
    unknown = TRUTH if context.dtype(node) is torch.bool else ANYTHING
    shape = context.shape(node)
    if shape is None or depth > _DEPTH or context.memory.is_written(node):
        return unknown
    constant = context.constant(node)
    if constant is not None:
        return _measured(constant, where)
    rule = _RULES.get(ops.op(node))
    if rule is None:
        return unknown

    def ask(operand: Node, place: Range) -> Values:
        return values_of(context, operand, place, depth + 1)

    found = rule(Question(context, node, where, ask))
    return unknown if found is None else found


def _measured(tensor: torch.Tensor, where: Range) -> Values:
    part = tensor.detach()
    if where.axis is not None:
        part = part.narrow(where.axis, where.start, where.stop - where.start)
    if part.numel() == 0 or part.is_complex():
        return ANYTHING
    part = part.to(torch.float64)
    low, high = (float(v) for v in part.aminmax())
    if math.isnan(low) or math.isnan(high):
        return ANYTHING
    uniform = where.axis is not None and bool((part == part.narrow(where.axis, 0, 1)).all())
    return Values(low, high, uniform or low == high)
