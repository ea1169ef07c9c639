"""Ways to write into memory: each changes what it is given, whatever its shape, and nothing else.

A write of a number (`add_(3)`) and a write of many (`copy_`) differ to a compiler, as do methods,
functions with ``inplace=True``, ``out=`` and assignment.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# Modules as a model would own them, not made on the way.
_RELU, _SILU = nn.ReLU(inplace=True), nn.SiLU(inplace=True)


def _assign(w: Tensor) -> None:
    w[...] = w * 0.5 - 1


def _assign_first(w: Tensor) -> None:
    w[0] = 1.5


def _iadd(w: Tensor) -> None:
    w += 2.0


def _imul(w: Tensor) -> None:
    w *= -1.5


def _out(w: Tensor) -> None:
    torch.mul(w, 2.0, out=w)


def _out_alias(w: Tensor) -> None:
    torch.add(w.clone(), 1.0, out=w.detach())


def _foreach(w: Tensor) -> None:
    torch._foreach_add_([w], 1.0)  # pyright: ignore[reportPrivateUsage, reportPrivateImportUsage]


def _index_put(w: Tensor) -> None:
    w[torch.tensor([0])] = 2.0


def _index_put_method(w: Tensor) -> None:
    w.index_put_((torch.tensor([0]),), torch.tensor(1.0, dtype=w.dtype), accumulate=True)


def _mask_assign(w: Tensor) -> None:
    w[w > 0] = -1.0


WRITES: Mapping[str, Callable[[Tensor], object]] = {
    "none": lambda w: w,
    "add_": lambda w: w.add_(3.0),
    "mul_": lambda w: w.mul_(-2.0),
    "sub_": lambda w: w.sub_(1.0),
    "div_": lambda w: w.div_(-0.5),
    "copy_": lambda w: w.copy_(w.flip(0) * 0.5 + 1),
    "copy_number": lambda w: w.copy_(torch.tensor(0.5)),
    "zero_": lambda w: w.zero_(),
    "fill_": lambda w: w.fill_(0.7),
    "clamp_": lambda w: w.clamp_(min=-0.1, max=0.3),
    "neg_": lambda w: w.neg_(),
    "tanh_": lambda w: w.tanh_(),
    "abs_": lambda w: w.abs_(),
    "lerp_": lambda w: w.lerp_(torch.ones_like(w), 0.5),
    "addcmul_": lambda w: w.addcmul_(w, w, value=0.2),
    "masked_fill_": lambda w: w.masked_fill_(w > 0, 0.25),
    "index_fill_": lambda w: w.index_fill_(0, torch.tensor([0]), 1.0),
    "index_add_": lambda w: w.index_add_(0, torch.tensor([0]), torch.ones_like(w[:1])),
    "scatter_": lambda w: w.scatter_(-1, torch.zeros_like(w[..., :1], dtype=torch.int64), 2.0),
    "cumsum_": lambda w: w.cumsum_(-1),
    "iadd": _iadd,
    "imul": _imul,
    "assign": _assign,
    "assign_first": _assign_first,
    "mask_assign": _mask_assign,
    "index_put": _index_put,
    "index_put_": _index_put_method,
    "out": _out,
    "out_alias": _out_alias,
    "foreach": _foreach,
    "relu_": lambda w: w.relu_(),
    "torch_relu_": torch.relu_,
    "relu_inplace": lambda w: F.relu(w, inplace=True),
    "relu_positional": lambda w: F.relu(w, True),
    "relu_module": _RELU,
    "silu_module": _SILU,
    "silu_inplace": lambda w: F.silu(w, inplace=True),
    "hardswish_inplace": lambda w: F.hardswish(w, inplace=True),
    "leaky_relu_inplace": lambda w: F.leaky_relu(w, 0.2, inplace=True),
    "elu_": F.elu_,
    "threshold_inplace": lambda w: F.threshold(w, 0.1, -0.5, inplace=True),
    "normalize_out": lambda w: F.normalize(w, dim=-1, out=w),
}


def _order(w: Tensor) -> Tensor:
    """Every second position first, along the last axis but one."""
    length = w.shape[-2]
    return torch.cat([torch.arange(0, length, 2), torch.arange(1, length, 2)])


def _gathered(w: Tensor) -> Tensor:
    return _order(w)[:, None].expand(w.shape)


def _assign_dealt(w: Tensor) -> None:
    w[...] = w.index_select(-2, _order(w))


def _assign_halves(w: Tensor) -> None:
    half = w.shape[-2] // 2
    first = w[..., :half, :].clone()
    w[..., :half, :] = w[..., w.shape[-2] - half :, :]
    w[..., w.shape[-2] - half :, :] = first


def _out_halves(w: Tensor) -> None:
    half = w.shape[-2] // 2
    torch.cat([w[..., half:, :].clone(), w[..., :half, :].clone()], -2, out=w)


def _foreach_copy(w: Tensor) -> None:
    torch._foreach_copy_([w], [w.roll(1, -2)])  # pyright: ignore[reportPrivateUsage, reportPrivateImportUsage]


SHUFFLES: Mapping[str, Callable[[Tensor], object]] = {
    "copy_rolled": lambda w: w.copy_(w.roll(1, -2)),
    "copy_sorted": lambda w: w.copy_(w.sort(-2)[0]),
    "assign_dealt": _assign_dealt,
    "assign_halves": _assign_halves,
    "index_copy_": lambda w: w.index_copy_(-2, _order(w), w.clone()),
    "scatter_positions_": lambda w: w.scatter_(-2, _gathered(w), w.clone()),
    "set_": lambda w: w.set_(w.roll(1, -2)),  # pyright: ignore[reportArgumentType]
    "set_sorted": lambda w: w.set_(w.sort(-2)[0]),  # pyright: ignore[reportArgumentType]
    "foreach_copy": _foreach_copy,
    "out_index_select": lambda w: torch.index_select(w.clone(), -2, _order(w), out=w),
    "out_gather": lambda w: torch.gather(w.clone(), -2, _gathered(w), out=w),
    "out_sort": lambda w: torch.sort(w.clone(), -2, out=(w, torch.zeros(w.shape).long())),
    "out_halves": _out_halves,
    "out_mul": lambda w: torch.mul(w.roll(1, -2), 2.0, out=w),
    "out_matmul": lambda w: torch.matmul(torch.eye(w.shape[-2]).roll(1, 0), w.clone(), out=w),
}
"""They put others in the place of tokens, along the last axis but one."""

PARTS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "whole": lambda w: w,
    "first": lambda w: w[:1],
    "select": lambda w: w[0],
    "strided": lambda w: w[..., ::2],
}
