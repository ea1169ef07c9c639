"""What the pooled attentions cost by themselves: what a plan's time is held against.

A rewritten model cannot be faster than the bound (self-attention of one key) and its attentions
together. What it takes beyond that is the compiler's own: poolings, copies, longer projections.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.fx import Graph

_ATTENTION = torch.ops.aten.scaled_dot_product_attention.default
_TENSORS = ("query", "key", "value", "attn_mask")


def attentions_beyond(plan: Graph, bound: Graph) -> list[dict[str, Any]]:
    """Arguments, as fake tensors, of the attentions of `plan` that read more keys than in `bound`.

    Both are rewritten copies of one graph, whose attentions come in the same order.
    """
    ours, cut = _calls(plan), _calls(bound)
    assert len(ours) == len(cut)
    return [
        own
        for own, least in zip(ours, cut, strict=True)
        if own["key"].shape[-2] > least["key"].shape[-2]
    ]


def _calls(graph: Graph) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    for node in graph.nodes:
        if node.target is _ATTENTION:
            given = dict(zip(_TENSORS, node.args, strict=False)) | dict(node.kwargs)
            fakes = {k: v.meta["val"] if k in _TENSORS and v is not None else v
                     for k, v in given.items()}  # fmt: skip
            found.append(fakes)
    return found


def ready(attentions: list[dict[str, Any]], device: str) -> Callable[[], Tensor]:
    """One call runs all of them, on seeded noise in the graph's shapes, strides and precision.

    Attentions alike share their inputs: what is kept is one of each kind.
    """
    generator = torch.Generator().manual_seed(0)
    kinds: dict[Any, dict[str, Any]] = {}

    def real(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        noise = torch.randn(value.shape, generator=generator).to(value.dtype)
        made = torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device=device)
        return made.copy_(noise)

    def key(call: dict[str, Any]) -> Any:
        return tuple(
            (k, v.shape, v.stride(), v.dtype) if isinstance(v, Tensor) else (k, v)
            for k, v in call.items()
        )

    run: list[dict[str, Any]] = []
    for call in attentions:
        if key(call) not in kinds:
            kinds[key(call)] = {k: real(v) for k, v in call.items()}
        run.append(kinds[key(call)])

    def every() -> Tensor:
        result = torch.empty(0)
        for inputs in run:
            result = F.scaled_dot_product_attention(**inputs)
        return result

    return every
