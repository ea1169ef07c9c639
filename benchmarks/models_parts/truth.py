"""What attention is in an eager run: counted, and given subsampled keys and values.

    with Counted() as seen: model(*inputs)
    with Pooled(family, rewritten) as truth: expected = model(*inputs)

Both stand before torch's functions and know nothing of graphs and passes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from models_parts.families import Segment, Segments
from tests import oracle

FUSED = (F.scaled_dot_product_attention, F.multi_head_attention_forward)
PRODUCTS = (torch.matmul, Tensor.matmul, Tensor.__matmul__, torch.bmm, Tensor.bmm, torch.baddbmm,
            Tensor.baddbmm, torch.einsum)  # fmt: skip


class Counted(TorchFunctionMode):
    """Fused attentions, and the operands of products."""

    def __init__(self) -> None:
        super().__init__()
        self.fused = 0
        self.products: list[tuple[Tensor, Tensor]] = []

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func in FUSED:
            self.fused += 1
        elif func in PRODUCTS:
            tensors = [a for a in args if isinstance(a, Tensor)]
            if len(tensors) > 1:
                self.products.append((tensors[-2].detach().clone(), tensors[-1].detach().clone()))
        return func(*args, **(kwargs or {}))


def attentions(model: nn.Module, inputs: Sequence[Tensor]) -> tuple[int, int]:
    """(fused attentions, products of two tensors that both depend on the inputs) of a run.

    Two such products are one attention, where a softmax lies between them.
    """
    others = [t + 0.1 * torch.randn_like(t) if t.dim() > 2 and t.is_floating_point() else t
              for t in inputs]  # fmt: skip
    runs: list[Counted] = []
    for given in (inputs, others):
        with torch.no_grad(), Counted() as seen:
            model(*given)
        runs.append(seen)
    moved = [
        all(not torch.equal(a, b) for a, b in zip(one, other, strict=True))
        for one, other in zip(runs[0].products, runs[1].products, strict=True)
    ]
    return runs[0].fused, sum(moved)


class Pooled(TorchFunctionMode):
    """Fused attention with keys and values replaced by those that stand for them.

    Args:
        segments: where pictures are, from how the architecture is made.
        factors: (rows, columns) of the highest level.
        chosen: for each fused attention in the order of calls, whether it is to be subsampled.

    Attributes:
        strangers: numbers of attentions that were chosen and have no picture.
    """

    def __init__(self, segments: Segments, factors: oracle.Pair, chosen: Sequence[bool]) -> None:
        super().__init__()
        self._segments, self._factors, self._chosen = segments, factors, chosen
        self._calls = 0
        self.strangers: list[int] = []

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        given = kwargs or {}
        if func not in FUSED:
            return func(*args, **given)
        names = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal")
        call = {**dict(zip(names, args, strict=False)), **given}
        index, self._calls = self._calls, self._calls + 1
        if index >= len(self._chosen) or not self._chosen[index]:
            return func(*args, **given)
        assert func is F.scaled_dot_product_attention
        found = self._segments(call["query"].shape[-2], call["key"].shape[-2])
        if not found:
            self.strangers.append(index)
            return func(*args, **given)
        return self._attention(call, found)

    def _attention(self, call: dict[str, Any], found: list[Segment]) -> Tensor:
        assert not call.get("is_causal") and not call.get("dropout_p")
        mask = call.get("attn_mask")
        keys = call["key"].shape[-2]
        key, value = (self._pooled(call[name], -2, found) for name in ("key", "value"))
        if mask is not None and mask.shape[-1] == keys:
            mask = self._pooled(mask, -1, found)
        if mask is not None and mask.dtype is torch.bool:
            mask = torch.zeros(mask.shape).masked_fill(~mask, -1e30)
        return oracle.attention(call["query"], key, value, scale=call.get("scale"), bias=mask)

    def _pooled(self, x: Tensor, axis: int, found: list[Segment]) -> Tensor:
        for offset, grid in found:
            kind = x.dtype
            x = oracle.stand_ins(x.float(), x.dim() + axis, grid, self._factors, "nearest", offset)
            x = x.to(kind)
        return x


def distance(got: Tensor, expected: Tensor) -> float:
    """Greatest difference, in units of the greatest expected value."""
    return float((got - expected).abs().max() / expected.abs().max())


Call = Callable[..., Any]


def tensor_of(result: Any) -> Tensor:
    """The first tensor of what a model returns."""
    while not isinstance(result, Tensor):
        result = result[0]
    return result
