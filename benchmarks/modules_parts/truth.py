"""Attention in an eager run, its image keys and values subsampled: for modules of any spelling.

    einsum('b h i d, b j d -> b h i j', q, k)     one head of keys for all query heads
    einsum('b h i j, b j d -> b h i d', w, v)

Written apart from the passes: which keys are the picture's follows from their number alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from models_parts.truth import FUSED
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from tests import oracle

_SOFTMAXES = (torch.softmax, Tensor.softmax, F.softmax)


class Softmaxes(TorchFunctionMode):
    """Counts softmaxes: fused attentions, and those that are written out."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        self.count += func in FUSED or func in _SOFTMAXES
        return func(*args, **(kwargs or {}))


def softmaxes(module: nn.Module, inputs: Sequence[Tensor]) -> int:
    """How many a run has; linear attention has two where it has any."""
    with torch.no_grad(), Softmaxes() as seen:
        module(*inputs)
    return seen.count


Segment = tuple[int, oracle.Sides]
"""(keys before the picture's, its sides)."""
_SCORES, _VALUES = "bhid,bjd->bhij", "bhij,bjd->bhid"


class PooledProducts(TorchFunctionMode):
    """Products of one key head with all query heads, subsampled.

    Args:
        segments: number of keys → which of them are the picture's.
        factors: (rows, columns).

    Attributes:
        seen: attentions that were subsampled.
    """

    def __init__(self, segments: Mapping[int, Segment], factors: oracle.Pair) -> None:
        super().__init__()
        self._segments, self._factors = segments, factors
        self.seen = 0

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func is torch.einsum and len(args) == 3:
            equation = args[0].replace(" ", "")
            found = self._segments.get(args[2].shape[1]) if args[2].dim() == 3 else None
            if found is not None and equation in (_SCORES, _VALUES):
                self.seen += equation == _SCORES
                offset, grid = found
                pooled: Tensor = oracle.stand_ins(
                    args[2], 1, grid, self._factors, "nearest", offset
                )
                args = (args[0], args[1], pooled)
        return func(*args, **(kwargs or {}))
