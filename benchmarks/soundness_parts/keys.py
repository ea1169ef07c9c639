"""Projections, head splits, and what happens to keys on their way into attention.

A key map takes (B, N, C) of keys to keys. Token-wise ones commute with choosing tokens; those that
are linear and alike on all channels commute with means too; others commute with nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Layers(nn.Module):
    """All weights of an attention.

    Args:
        width: channels of tokens.
        key_width: channels of keys and values.
        rows: length of the tables by token.
    """

    def __init__(self, width: int, key_width: int, rows: int) -> None:
        super().__init__()
        self.to_q = nn.Linear(width, width)
        self.to_k = nn.Linear(width, key_width)
        self.to_v = nn.Linear(width, key_width)
        self.qkv = nn.Linear(width, 3 * width)
        self.down = nn.Linear(width, 2, bias=False)
        self.up = nn.Linear(2, key_width, bias=False)
        self.gate = nn.Linear(width, key_width)
        self.norm = nn.LayerNorm(key_width)
        self.table = nn.Parameter(torch.randn(rows, key_width))
        self.channel = nn.Parameter(1 + 0.5 * torch.randn(key_width))
        self.kernel = nn.Parameter(0.3 * torch.randn(key_width, 1, 3, 3))
        for layer in (self.to_q, self.to_k, self.qkv):  # so that attention is far from uniform
            layer.weight.data *= 2.5


# Projections --------------------------------------------------------------------------------------
Project = Callable[[nn.Linear, Tensor], Tensor]
"""(layer, tokens (B, N, C)) → (B, N, C')."""


def _addmm(layer: nn.Linear, x: Tensor) -> Tensor:
    out = torch.addmm(layer.bias, x.reshape(-1, x.shape[2]), layer.weight.t())
    return out.view(x.shape[0], x.shape[1], -1)


def _baddbmm(layer: nn.Linear, x: Tensor) -> Tensor:
    weight = layer.weight.t().expand(x.shape[0], -1, -1)
    return torch.baddbmm(layer.bias, x, weight)


def _conv2d(layer: nn.Linear, x: Tensor) -> Tensor:
    """A 1×1 convolution of tokens on one row."""
    return F.conv2d(x.mT.unsqueeze(2), layer.weight[:, :, None, None], layer.bias).squeeze(2).mT


PROJECTIONS: Mapping[str, Project] = {
    "linear": lambda layer, x: layer(x),
    "no_bias": lambda layer, x: F.linear(x, layer.weight),
    "matmul": lambda layer, x: x @ layer.weight.t(),
    "matmul_bias": lambda layer, x: torch.matmul(x, layer.weight.mT) + layer.bias,
    "einsum": lambda layer, x: torch.einsum("bnc,dc->bnd", x, layer.weight),
    "addmm": _addmm,
    "baddbmm": _baddbmm,
    "conv1d": lambda layer, x: F.conv1d(x.mT, layer.weight[..., None], layer.bias).mT,
    "conv2d": _conv2d,
    "tensordot": lambda layer, x: torch.tensordot(x, layer.weight.t(), 1),
}

FUSED: Mapping[str, Callable[[Tensor], tuple[Tensor, Tensor, Tensor]]] = {
    "qkv_chunk": lambda x: _three(x.chunk(3, dim=-1)),
    "qkv_split": lambda x: _three(x.split(x.shape[2] // 3, 2)),
    "qkv_tensor_split": lambda x: _three(x.tensor_split(3, 2)),
    "qkv_unbind": lambda x: _three(x.unflatten(2, (3, -1)).unbind(2)),
    "qkv_permuted": lambda x: _three(x.unflatten(2, (3, -1)).permute(2, 0, 1, 3).unbind(0)),
    "qkv_index": lambda x: (
        x.unflatten(2, (3, -1))[:, :, 0],
        x.unflatten(2, (3, -1))[:, :, 1],
        x.unflatten(2, (3, -1)).select(2, 2),
    ),
    "qkv_slices": lambda x: (
        x[..., : x.shape[2] // 3],
        x[..., x.shape[2] // 3 : -(x.shape[2] // 3)],
        x.narrow(2, 2 * (x.shape[2] // 3), x.shape[2] // 3),
    ),
}  # fmt: skip


def _three(parts: tuple[Tensor, ...] | list[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    q, k, v = parts
    return q, k, v


# Heads --------------------------------------------------------------------------------------------
SPLITS: Mapping[str, Callable[[Tensor, int], Tensor]] = {
    "view": lambda x, h: x.view(x.shape[0], -1, h, x.shape[2] // h).transpose(1, 2),
    "reshape": lambda x, h: x.reshape(x.shape[0], x.shape[1], h, -1).permute(0, 2, 1, 3),
    "unflatten": lambda x, h: x.unflatten(-1, (h, -1)).movedim(2, 1),
    "channels_first": lambda x, h: x.mT.unflatten(1, (h, -1)).mT,
    "interleaved": lambda x, h: x.unflatten(2, (-1, h)).permute(0, 3, 1, 2),
    "stacked": lambda x, h: torch.stack(x.chunk(h, 2), 1),
    "contiguous": lambda x, h: x.unflatten(2, (h, -1)).transpose(1, 2).contiguous(),
    "in_batch": lambda x, h: (
        x.unflatten(2, (h, -1)).transpose(1, 2).flatten(0, 1).unflatten(0, (-1, h))
    ),
}  # fmt: skip


# Key maps -----------------------------------------------------------------------------------------
@dataclass(frozen=True, slots=True)
class KeyMap:
    """What happens to projected keys (B, N, C).

    Args:
        apply: (layers, keys, tokens they were projected from) → keys.
        token_wise: a token's key is a function of that token (and of its place).
    """

    apply: Callable[[Layers, Tensor, Tensor], Tensor]
    token_wise: bool = True


def _rotated(layers: Layers, k: Tensor, _: Tensor) -> Tensor:
    """Rotary embedding in pairs of channels, with a table by token."""
    angle = layers.table[: k.shape[1]].repeat_interleave(2, 1)[:, : k.shape[2]]
    a, b = k.unflatten(2, (-1, 2)).unbind(-1)
    turned = torch.stack([-b, a], -1).flatten(2)
    return k * angle.cos() + turned * angle.sin()


def _rotated_halves(layers: Layers, k: Tensor, _: Tensor) -> Tensor:
    half = k.shape[2] // 2
    angle = layers.table[: k.shape[1], :half]
    a, b = k[..., :half], k[..., half:]
    cos, sin = angle.cos()[None], angle.sin()[None]
    return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)


def _rotated_made(_: Layers, k: Tensor, __: Tensor) -> Tensor:
    """The table is made in the graph from positions."""
    half = k.shape[2] // 2
    place = torch.arange(k.shape[1], dtype=k.dtype)
    angle = torch.outer(place, 10.0 ** -torch.arange(half, dtype=k.dtype))
    a, b = k.chunk(2, -1)
    return torch.cat([a * angle.cos() - b * angle.sin(), b * angle.cos() + a * angle.sin()], -1)


def _rotated_complex(layers: Layers, k: Tensor, _: Tensor) -> Tensor:
    half = k.shape[2] // 2
    angle = layers.table[: k.shape[1], :half].float()
    turn = torch.polar(torch.ones_like(angle), angle)
    pairs = torch.view_as_complex(k.float().unflatten(2, (half, 2)).contiguous())
    return torch.view_as_real(pairs * turn).flatten(2).to(k.dtype)


KEY_MAPS: Mapping[str, KeyMap] = {
    "none": KeyMap(lambda _, k, __: k),
    "scaled": KeyMap(lambda _, k, __: k * 0.5),
    "by_channel": KeyMap(lambda layers, k, _: k * layers.channel + 1),
    "low_rank": KeyMap(lambda layers, k, x: k + layers.up(layers.down(x)) * 0.5),
    "low_rank_inplace": KeyMap(lambda layers, k, x: k.add_(layers.up(layers.down(x)))),
    "gated": KeyMap(lambda layers, k, x: k * torch.sigmoid(layers.gate(x))),
    "layer_norm": KeyMap(lambda layers, k, _: layers.norm(k) * 2),
    "rms": KeyMap(lambda _, k, __: 2 * k * torch.rsqrt(k.pow(2).mean(-1, keepdim=True) + 1e-6)),
    "rms_norm": KeyMap(lambda layers, k, _: F.rms_norm(k, k.shape[-1:], layers.channel)),
    "normalize": KeyMap(lambda _, k, __: F.normalize(k, dim=-1) * 4),
    "gelu": KeyMap(lambda _, k, __: F.gelu(k)),
    "softplus": KeyMap(lambda _, k, __: F.softplus(k)),
    "clamp": KeyMap(lambda _, k, __: k.clamp(-1, 1)),
    "table": KeyMap(lambda layers, k, _: k + layers.table[: k.shape[1]]),
    "table_weights": KeyMap(lambda layers, k, _: k * layers.table[None, : k.shape[1], :1]),
    "rotated": KeyMap(_rotated),
    "rotated_halves": KeyMap(_rotated_halves),
    "rotated_made": KeyMap(_rotated_made),
    "rotated_complex": KeyMap(_rotated_complex),
    "rounded": KeyMap(lambda _, k, __: k.div(0.25, rounding_mode="floor") * 0.25),
    "remainder": KeyMap(lambda _, k, __: torch.remainder(k, 0.9)),
    "half": KeyMap(lambda _, k, __: k.half().to(k.dtype)),
    "half_as_bfloat": KeyMap(
        lambda _, k, __: k.half().view(torch.bfloat16).to(k.dtype).clamp(-4, 4)
    ),
    "half_as_bfloat_keyword": KeyMap(
        lambda _, k, __: k.half().view(dtype=torch.bfloat16).to(k.dtype).clamp(-4, 4)
    ),
    "as_integers": KeyMap(lambda _, k, __: k.float().view(torch.int32).to(k.dtype) * 1e-9),
    "softmax_channels": KeyMap(lambda _, k, __: k.softmax(-1) * 4),
    "maximum": KeyMap(lambda layers, k, x: torch.maximum(k, layers.gate(x))),
    "where": KeyMap(lambda _, k, __: torch.where(k > 0, k, -0.3 * k)),
    "cumsum_channels": KeyMap(lambda _, k, __: k.cumsum(-1)),
    "flipped_channels": KeyMap(lambda _, k, __: k.flip(-1)),
    # Tokens see each other.
    "less_mean": KeyMap(lambda _, k, __: k - k.mean(1, keepdim=True), token_wise=False),
    "cumsum": KeyMap(lambda _, k, __: k.cumsum(1) / math.sqrt(k.shape[1]), token_wise=False),
    "softmax_tokens": KeyMap(lambda _, k, __: k.softmax(1) * 9, token_wise=False),
    "norm_tokens": KeyMap(lambda _, k, __: F.normalize(k, dim=1) * 6, token_wise=False),
    "instance_norm": KeyMap(lambda _, k, __: F.instance_norm(k.mT).mT * 2, token_wise=False),
    "group_norm": KeyMap(lambda _, k, __: F.group_norm(k.mT, 2).mT * 2, token_wise=False),
    "layer_norm_tokens": KeyMap(
        lambda _, k, __: F.layer_norm(k.mT, k.shape[1:2]).mT * 2, token_wise=False
    ),
    "less_first": KeyMap(lambda _, k, __: k - k[:, :1], token_wise=False),
    "less_maximum": KeyMap(lambda _, k, __: k - k.amax(1, keepdim=True), token_wise=False),
    "mixed": KeyMap(lambda _, k, __: k + 0.3 * k.roll(1, 1), token_wise=False),
    "conv_along": KeyMap(
        lambda layers, k, _: F.conv1d(
            k.mT, layers.kernel[:, :, 0], padding=1, groups=k.shape[2]
        ).mT,
        token_wise=False,
    ),
}  # fmt: skip


# Fewer key heads ----------------------------------------------------------------------------------
REPEATS: Mapping[str, Callable[[Tensor, int], Tensor]] = {
    "none": lambda k, _: k,
    "interleave": lambda k, n: k.repeat_interleave(n, dim=1),
    "interleave_torch": lambda k, n: torch.repeat_interleave(k, n, 1),
    "expand": lambda k, n: k[:, :, None].expand(-1, -1, n, -1, -1).flatten(1, 2),
    "expand_reshape": lambda k, n: (
        k.unsqueeze(2).expand(k.shape[0], k.shape[1], n, *k.shape[2:])
        .reshape(k.shape[0], -1, *k.shape[2:])
    ),
    "tile": lambda k, n: k.repeat(1, n, 1, 1),
    "stack": lambda k, n: torch.stack([k] * n, 2).flatten(1, 2),
    "cat": lambda k, n: torch.cat([k] * n, 1),
}  # fmt: skip
