"""Modules of a user's own for tests, and factories that give them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass
class Result:
    sample: Tensor
    more: dict[str, Any]
    nothing: None = None


class Pair(NamedTuple):
    first: Tensor
    second: Tensor


@dataclass
class Conditions:
    text: Tensor
    scale: float = 1.0


class Small(nn.Module):
    """A convolution, one self-attention of 3 heads over 8×8 tokens, and a condition."""

    def __init__(self, bias: float = 0.0) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.convolution = nn.Conv2d(4, 24, 3, padding=1)
        self.qkv = nn.Linear(24, 72)
        self.out = nn.Linear(24, 4)
        self.bias = bias
        self.dropout = nn.Dropout(0.5)

    def forward(
        self, x: Tensor, conditions: Any, *, double: bool = False, mask: Tensor | None = None
    ) -> Any:
        tokens = self.convolution(x).flatten(2).transpose(1, 2)
        q, k, v = self.qkv(tokens).unflatten(-1, (3, 3, 8)).permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        text = conditions["text"] if isinstance(conditions, dict) else conditions.text
        sample = self.dropout(self.out(attended)) + text + self.bias
        if mask is not None:
            sample = sample * mask
        if double:
            sample = sample * 2
        return Result(sample, {"pair": Pair(q, k), "list": [v, (attended, None)]})


def inputs(batch: int = 2) -> tuple[Tensor, Tensor]:
    """(latents, text)."""
    made = torch.Generator().manual_seed(1)
    return torch.randn(batch, 4, 8, 8, generator=made), torch.randn(batch, 1, 4, generator=made)


def small() -> tuple[nn.Module, tuple[Any, ...]]:
    x, text = inputs()
    return Small(), (x, {"text": text})


def named() -> tuple[nn.Module, tuple[Any, ...], dict[str, Any]]:
    x, text = inputs()
    return Small(), (x,), {"conditions": {"text": text}}


def fails() -> object:
    raise RuntimeError("no such weights")


def leaves() -> object:
    raise SystemExit(3)


def alone() -> object:
    return Small()


def four() -> object:
    return 1, 2, 3, 4


def no_module() -> object:
    return "x", (1,)


def no_tuple() -> object:
    return Small(), inputs()[0]


number = 3
