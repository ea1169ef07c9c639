"""Denoisers of the shape that ComfyUI's have, written from a description of it: none of its code.

What differs from diffusers' models: attention is a function of (B, N, heads·d) tokens that the
process chooses, the options of a call are a dict that the model writes to while it runs, residuals
are added in place, weights are cast where they are used, and FLUX cuts its patches itself.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import nn

Attend = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, int], torch.Tensor]
"""query (B, N, heads·d), key and value (B, M, heads·d), heads → (B, N, heads·d)."""


# Spellings of attention ---------------------------------------------------------------------------
def fused(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, heads: int) -> torch.Tensor:
    batch, _, width = q.shape
    q, k, v = (t.view(batch, -1, heads, width // heads).transpose(1, 2) for t in (q, k, v))
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=None, dropout_p=0.0, is_causal=False)
    return out.transpose(1, 2).reshape(batch, -1, width)


def _merge(t: torch.Tensor, heads: int) -> torch.Tensor:
    """(B, N, heads·d) → (B·heads, N, d), by way of an axis of one."""
    batch, _, width = t.shape
    split = t.unsqueeze(3).reshape(batch, -1, heads, width // heads).permute(0, 2, 1, 3)
    return split.reshape(batch * heads, -1, width // heads).contiguous()


def _unmerge(t: torch.Tensor, heads: int) -> torch.Tensor:
    """(B·heads, N, d) → (B, N, heads·d)."""
    split = t.unsqueeze(0).reshape(t.shape[0] // heads, heads, -1, t.shape[-1])
    return split.permute(0, 2, 1, 3).reshape(split.shape[0], -1, heads * t.shape[-1])


def products(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, heads: int) -> torch.Tensor:
    """Two einsums with the scores in single precision."""
    q, k, v = (_merge(t, heads) for t in (q, k, v))
    scores = torch.einsum("b i d, b j d -> b i j", q.float(), k.float()) * q.shape[-1] ** -0.5
    weights = scores.softmax(dim=-1)
    return _unmerge(torch.einsum("b i j, b j d -> b i d", weights.to(v.dtype), v), heads)


def written(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, heads: int) -> torch.Tensor:
    """The result is made first, and written whole into its place."""
    q, k, v = (_merge(t, heads) for t in (q, k, v))
    out = torch.zeros(q.shape[0], q.shape[1], v.shape[2], dtype=q.dtype, device=q.device)
    _write(out, q, k, v, q.shape[1])
    return _unmerge(out, heads)


def written_in_parts(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, heads: int) -> torch.Tensor:
    """As `written`, half of the queries at a time: two attentions over the same keys."""
    q, k, v = (_merge(t, heads) for t in (q, k, v))
    out = torch.zeros(q.shape[0], q.shape[1], v.shape[2], dtype=q.dtype, device=q.device)
    _write(out, q, k, v, q.shape[1] // 2)
    return _unmerge(out, heads)


def _write(out: torch.Tensor, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, step: int) -> None:
    for start in range(0, q.shape[1], step):
        part = q[:, start : start + step]
        scores = torch.einsum("b i d, b j d -> b i j", part, k) * q.shape[-1] ** -0.5
        weights = scores.softmax(dim=-1).to(v.dtype)
        out[:, start : start + step] = torch.einsum("b i j, b j d -> b i d", weights, v)


def chunked(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, heads: int) -> torch.Tensor:
    """Sub-quadratic: keys transposed beforehand, a chunk of queries at a time, then joined."""
    q, v = _merge(q, heads), _merge(v, heads)
    batch, _, width = k.shape
    k = k.unsqueeze(3).reshape(batch, -1, heads, width // heads).permute(0, 2, 3, 1)
    k = k.reshape(batch * heads, width // heads, -1)
    step = q.shape[1] // 2
    parts: list[torch.Tensor] = []
    for start in range(0, q.shape[1], step):
        part = torch.narrow(q, 1, start, min(step, q.shape[1] - start))
        nothing = torch.empty(1, 1, 1, dtype=q.dtype, device=q.device)
        scores = torch.baddbmm(nothing, part, k, alpha=q.shape[-1] ** -0.5, beta=0)
        parts.append(torch.bmm(scores.softmax(dim=-1).to(v.dtype), v))
    out = torch.cat(parts, dim=1)
    return out.unflatten(0, (-1, heads)).transpose(1, 2).flatten(start_dim=2)


SPELLINGS: dict[str, tuple[Attend, int]] = {
    "fused": (fused, 1),
    "products": (products, 1),
    "written": (written, 1),
    "written_in_parts": (written_in_parts, 2),
    "chunked": (chunked, 2),
}
"""Name → (function, how many attentions over the same keys it is)."""


# A UNet -------------------------------------------------------------------------------------------
class Linear(nn.Linear):
    """Weights are kept in one precision and cast where they are used."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        bias = cast("torch.Tensor | None", self.bias)
        if bias is not None:
            bias = bias.to(device=x.device, dtype=x.dtype)
        return F.linear(x, self.weight.to(device=x.device, dtype=x.dtype), bias)


class Attention(nn.Module):
    def __init__(self, width: int, text: int, heads: int, attend: Attend) -> None:
        super().__init__()
        self.heads, self.attend = heads, attend
        self.to_q = Linear(width, width, bias=False)
        self.to_k = Linear(text, width, bias=False)
        self.to_v = Linear(text, width, bias=False)
        self.to_out = nn.Sequential(Linear(width, width), nn.Dropout(0.0))

    def forward(self, x: torch.Tensor, context: torch.Tensor | None = None) -> torch.Tensor:
        context = x if context is None else context
        q, k, v = self.to_q(x), self.to_k(context), self.to_v(context)
        return self.to_out(self.attend(q, k, v, self.heads))


class Gated(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.inner, self.outer = Linear(width, 2 * width), Linear(width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x, gate = self.inner(x).chunk(2, dim=-1)
        return self.outer(x * F.gelu(gate))


class Block(nn.Module):
    """Self-attention, attention to the text and a gated feed-forward, all added in place."""

    def __init__(self, width: int, text: int, heads: int, attend: Attend) -> None:
        super().__init__()
        self.attn1 = Attention(width, width, heads, attend)
        self.attn2 = Attention(width, text, heads, attend)
        self.ff = Gated(width)
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(width) for _ in range(3))

    def forward(
        self, x: torch.Tensor, context: torch.Tensor, transformer_options: dict[str, Any]
    ) -> torch.Tensor:
        extra = {k: v for k, v in transformer_options.items() if k not in ("patches", "sigmas")}
        patches = transformer_options.get("patches", {})
        extra["n_heads"] = self.attn1.heads
        n = self.norm1(x)
        n = self.attn1(n)
        for patch in patches.get("attn1_output", ()):
            n = patch(n, extra)
        x += n
        x += self.attn2(self.norm2(x), context)
        skip = x
        x = self.ff(self.norm3(x))
        x += skip
        return x


class Spatial(nn.Module):
    """Blocks over the positions of an image, behind a projection of either kind."""

    def __init__(
        self, width: int, text: int, heads: int, attend: Attend, depth: int, linear: bool
    ) -> None:
        super().__init__()
        self.linear = linear
        self.norm = nn.GroupNorm(4, width, eps=1e-6)
        self.proj_in: nn.Module = Linear(width, width) if linear else nn.Conv2d(width, width, 1)
        self.proj_out: nn.Module = Linear(width, width) if linear else nn.Conv2d(width, width, 1)
        self.blocks = nn.ModuleList([Block(width, text, heads, attend) for _ in range(depth)])

    def forward(
        self, x: torch.Tensor, context: Any, transformer_options: dict[str, Any]
    ) -> torch.Tensor:
        if not isinstance(context, list):
            context = [context] * len(self.blocks)
        height, width = x.shape[2:]
        before = x
        x = self.norm(x)
        if self.linear:
            x = x.movedim(1, 3).flatten(1, 2).contiguous()
            x = self.proj_in(x)
        else:
            x = self.proj_in(x).movedim(1, 3).flatten(1, 2).contiguous()
        for index, block in enumerate(self.blocks):
            transformer_options["block_index"] = index
            x = block(x, context[index], transformer_options)
        if self.linear:
            x = self.proj_out(x)
        x = x.reshape(x.shape[0], height, width, x.shape[-1]).movedim(3, 1).contiguous()
        return before + (x if self.linear else self.proj_out(x))


class Level(nn.Module):
    """A picture in, one `Spatial`, a picture out: the least that has evidence of a grid."""

    def __init__(self, attend: Attend = fused, depth: int = 1, linear: bool = True) -> None:
        super().__init__()
        self.start = nn.Conv2d(4, 8, 3, padding=1)
        self.spatial = Spatial(8, 12, 2, attend, depth, linear)
        self.end = nn.Conv2d(8, 4, 3, padding=1)

    def forward(
        self, x: torch.Tensor, context: Any, transformer_options: dict[str, Any] | None = None
    ) -> torch.Tensor:
        options = {} if transformer_options is None else transformer_options
        return self.end(self.spatial(self.start(x), context, options))


class Residual(nn.Module):
    def __init__(self, inner: int, outer: int) -> None:
        super().__init__()
        self.first = nn.Sequential(
            nn.GroupNorm(4, inner), nn.SiLU(), nn.Conv2d(inner, outer, 3, padding=1)
        )
        self.time = nn.Sequential(nn.SiLU(), Linear(16, outer))
        self.last = nn.Sequential(
            nn.GroupNorm(4, outer), nn.SiLU(), nn.Conv2d(outer, outer, 3, padding=1)
        )
        self.skip = nn.Identity() if inner == outer else nn.Conv2d(inner, outer, 1)

    def forward(self, x: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
        h = self.first(x)
        shift = self.time(time).type(h.dtype)
        while shift.dim() < h.dim():
            shift = shift[..., None]
        return self.skip(x) + self.last(h + shift)


def waves(time: torch.Tensor, width: int) -> torch.Tensor:
    """(B,) → (B, width) sines and cosines."""
    speed = torch.exp(-math.log(10000) * torch.arange(width // 2, device=time.device) / width * 2)
    angles = time[:, None].float() * speed[None]
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


class UNet(nn.Module):
    """Two levels, three `Spatial`s; the options of the call are written to."""

    def __init__(self, attend: Attend = fused, depth: int = 1, linear: bool = True) -> None:
        super().__init__()
        self.start = nn.Conv2d(4, 8, 3, padding=1)
        self.time = nn.Sequential(Linear(16, 16), nn.SiLU(), Linear(16, 16))
        self.down = nn.ModuleList([Residual(8, 8), Spatial(8, 12, 2, attend, depth, linear)])
        self.halve = nn.Conv2d(8, 8, 3, stride=2, padding=1)
        self.middle = nn.ModuleList([Residual(8, 16), Spatial(16, 12, 2, attend, depth, linear)])
        self.widen = nn.Conv2d(16, 16, 3, padding=1)
        self.up = nn.ModuleList([Residual(24, 8), Spatial(8, 12, 2, attend, depth, linear)])
        self.end = nn.Sequential(nn.GroupNorm(4, 8), nn.SiLU(), nn.Conv2d(8, 4, 3, padding=1))

    def forward(
        self,
        x: torch.Tensor,
        timesteps: torch.Tensor,
        context: Any = None,
        control: dict[str, list[torch.Tensor]] | None = None,
        transformer_options: dict[str, Any] | None = None,
    ) -> torch.Tensor:
        options = {} if transformer_options is None else transformer_options
        options["original_shape"] = list(x.shape)
        options["transformer_index"] = 0
        time = self.time(waves(timesteps, 16).to(x.dtype))
        options["block"] = ("input", 0)
        h = _through(self.down, self.start(x), time, context, options)
        if control is not None and control.get("input"):
            h += control["input"].pop()
        kept = [h]
        options["block"] = ("middle", 0)
        h = _through(self.middle, self.halve(h), time, context, options)
        options["block"] = ("output", 0)
        side = kept.pop()
        h = self.widen(F.interpolate(h, size=list(side.shape[2:]), mode="nearest"))
        h = _through(self.up, torch.cat([h, side], dim=1), time, context, options)
        return self.end(h.type(x.dtype))


def _through(
    layers: Any, h: torch.Tensor, time: torch.Tensor, context: Any, options: dict[str, Any]
) -> torch.Tensor:
    for layer in layers:
        if isinstance(layer, Residual):
            h = layer(h, time)
        else:
            h = layer(h, context, options)
            options["transformer_index"] += 1
    return h
