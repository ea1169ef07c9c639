"""Stable Diffusion 1.5's UNet in plain torch, for machines without diffusers.

The same operations with the same shapes (a test compares the number of parameters): residual
blocks, and transformer blocks with self-attention, cross-attention and a gated feed-forward, on
four levels. Weights are seeded random numbers, so that its speed is real and its images are not.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Pool = Callable[[Tensor, tuple[int, int]], Tensor]
"""(tokens (B, N, C), their grid) → fewer tokens: where the truth subsamples keys and values."""


class Residual(nn.Module):
    """Two convolutions with the time embedding between them, (B, C, H, W) → (B, C', H, W)."""

    def __init__(self, inner: int, outer: int, time: int, groups: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.GroupNorm(groups, inner), nn.GroupNorm(groups, outer)
        self.conv1 = nn.Conv2d(inner, outer, 3, padding=1)
        self.conv2 = nn.Conv2d(outer, outer, 3, padding=1)
        self.time = nn.Linear(time, outer)
        self.skip = nn.Conv2d(inner, outer, 1) if inner != outer else nn.Identity()

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        hidden = self.conv1(F.silu(self.norm1(x))) + self.time(F.silu(time))[:, :, None, None]
        return self.skip(x) + self.conv2(F.silu(self.norm2(hidden)))


class Attention(nn.Module):
    """Attention of (B, N, C) to itself or to the text (B, M, T)."""

    def __init__(self, width: int, text: int | None, heads: int) -> None:
        super().__init__()
        self.heads, self.is_self = heads, text is None
        self.to_q = nn.Linear(width, width, bias=False)
        self.to_k, self.to_v = (nn.Linear(text or width, width, bias=False) for _ in range(2))
        self.to_out = nn.Linear(width, width)
        self.pool: Pool | None = None

    def forward(self, x: Tensor, text: Tensor, grid: tuple[int, int]) -> Tensor:
        source = x if self.is_self else text
        if self.is_self and self.pool is not None:
            source = self.pool(source, grid)
        q, k, v = (
            t.view(t.shape[0], -1, self.heads, t.shape[2] // self.heads).transpose(1, 2)
            for t in (self.to_q(x), self.to_k(source), self.to_v(source))
        )
        out = F.scaled_dot_product_attention(q, k, v)
        return self.to_out(out.transpose(1, 2).reshape(x.shape))


class Transformer(nn.Module):
    """Self-attention, cross-attention and feed-forward over the positions of (B, C, H, W)."""

    def __init__(self, width: int, text: int, heads: int, groups: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(groups, width, eps=1e-6)
        self.proj_in, self.proj_out = nn.Conv2d(width, width, 1), nn.Conv2d(width, width, 1)
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(3))
        self.attn1, self.attn2 = Attention(width, None, heads), Attention(width, text, heads)
        self.gate, self.down = nn.Linear(width, 8 * width), nn.Linear(4 * width, width)

    def forward(self, image: Tensor, text: Tensor) -> Tensor:
        batch, width, rows, columns = image.shape
        x = self.proj_in(self.norm(image)).permute(0, 2, 3, 1).reshape(batch, -1, width)
        x = x + self.attn1(self.norms[0](x), text, (rows, columns))
        x = x + self.attn2(self.norms[1](x), text, (rows, columns))
        value, gate = self.gate(self.norms[2](x)).chunk(2, dim=-1)
        x = x + self.down(value * F.gelu(gate))
        return image + self.proj_out(x.reshape(batch, rows, columns, width).permute(0, 3, 1, 2))


class PlainUNet(nn.Module):
    """The UNet: (B, 4, H, W), timesteps (B,), text (B, M, T) → (B, 4, H, W).

    Args:
        widths: channels of each level; all but the last have attention.
        text: width of the text embedding.
        heads: attention heads on every level.
        groups: of the group norms.
        layers: residual blocks a level on the way down; one more on the way up.
    """

    def __init__(
        self,
        widths: Sequence[int] = (320, 640, 1280, 1280),
        *,
        text: int = 768,
        heads: int = 8,
        groups: int = 32,
        layers: int = 2,
        seed: int = 0,
    ) -> None:
        super().__init__()
        torch.manual_seed(seed)
        time = 4 * widths[0]
        last = len(widths) - 1
        self.width = widths[0]
        self.time = nn.Sequential(nn.Linear(widths[0], time), nn.SiLU(), nn.Linear(time, time))
        self.conv_in = nn.Conv2d(4, widths[0], 3, padding=1)

        def attended(level: int) -> nn.Module | None:
            width = widths[level]
            return Transformer(width, text, heads, groups) if level < last else None

        self.down, self.shrink = nn.ModuleList(), nn.ModuleList()
        skips, current = [widths[0]], widths[0]
        for level, width in enumerate(widths):
            for _ in range(layers):
                self.down.append(_Step(Residual(current, width, time, groups), attended(level)))
                current = width
                skips.append(width)
            if level < last:
                self.shrink.append(nn.Conv2d(width, width, 3, stride=2, padding=1))
                skips.append(width)
        self.mid = _Step(
            Residual(current, current, time, groups), Transformer(current, text, heads, groups)
        )
        self.mid_last = Residual(current, current, time, groups)
        self.up, self.grow = nn.ModuleList(), nn.ModuleList()
        for level in reversed(range(len(widths))):
            width = widths[level]
            for _ in range(layers + 1):
                inner = current + skips.pop()
                self.up.append(_Step(Residual(inner, width, time, groups), attended(level)))
                current = width
            if level > 0:
                self.grow.append(nn.Conv2d(width, width, 3, padding=1))
        self.norm_out = nn.GroupNorm(groups, current)
        self.conv_out = nn.Conv2d(current, 4, 3, padding=1)
        self.levels, self.layers = len(widths), layers
        self.eval().requires_grad_(False)

    def forward(self, sample: Tensor, timestep: Tensor, text: Tensor) -> Tensor:
        time = self.time(_sinusoids(timestep, self.width).to(sample.dtype))
        x = self.conv_in(sample)
        skips = [x]
        for index, step in enumerate(self.down):
            x = step(x, time, text)
            skips.append(x)
            level = index // self.layers
            if index % self.layers == self.layers - 1 and level < self.levels - 1:
                x = self.shrink[level](x)
                skips.append(x)
        x = self.mid_last(self.mid(x, time, text), time)
        for index, step in enumerate(self.up):
            x = step(torch.cat([x, skips.pop()], dim=1), time, text)
            stage = index // (self.layers + 1)
            if index % (self.layers + 1) == self.layers and stage < self.levels - 1:
                size = skips[-1].shape[2:]  # odd sides do not double
                x = self.grow[stage](F.interpolate(x, size=size, mode="nearest"))
        return self.conv_out(F.silu(self.norm_out(x)))


class _Step(nn.Module):
    """A residual block and, on levels that have it, attention."""

    def __init__(self, residual: Residual, attention: nn.Module | None) -> None:
        super().__init__()
        self.residual, self.attention = residual, attention

    def forward(self, x: Tensor, time: Tensor, text: Tensor) -> Tensor:
        x = self.residual(x, time)
        return x if self.attention is None else self.attention(x, text)


def _sinusoids(timestep: Tensor, width: int) -> Tensor:
    """Sines and cosines of (B,) timesteps in fp32: (B, width)."""
    half = width // 2
    exponents = torch.arange(half, dtype=torch.float32, device=timestep.device) / half
    angles = timestep.float()[:, None] * torch.exp(-math.log(10000.0) * exponents)
    return torch.cat([angles.cos(), angles.sin()], dim=-1)
