"""Make implicit type promotion explicit, for consumers that know none.

    cat(fp16, fp32)   →   cat(to(fp16, fp32), fp32)

torch concatenates tensors of different dtypes by promoting them; ONNX's ``Concat`` and TensorRT's
strongly typed networks refuse (SDXL's added conditions in half precision do this).
"""

from __future__ import annotations

from functools import reduce
from typing import Any

import torch
from torch.fx import Node

from todo_compile.passes import ops
from todo_compile.passes.graph import GraphContext, nodes_of

RULE = "explicit-cast"


def promote_concatenations(context: GraphContext) -> int:
    """Cast the parts of every mixed concatenation to its result's dtype; returns how many casts."""
    count = 0
    for node in nodes_of(list(context.graph.nodes), "cat", "stack"):
        parts = ops.operands(node)
        dtypes = [context.dtype(p) for p in parts]
        known = [d for d in dtypes if d is not None]
        if len(known) != len(parts) or len(set(known)) < 2:
            continue
        wanted = reduce(torch.promote_types, known)
        replaced: list[Any] = []
        for part, dtype in zip(parts, known, strict=True):
            replaced.append(part if dtype == wanted else _cast(context, part, wanted, node))
            count += dtype != wanted
        node.args = (replaced, *node.args[1:])
    return count


def _cast(context: GraphContext, part: Node, dtype: torch.dtype, before: Node) -> Node:
    shape = context.shape(part)
    assert shape is not None
    with context.graph.inserting_before(before):
        return context.call(ops.CAST, (part, dtype), like=part, shape=shape, rule=RULE, dtype=dtype)
