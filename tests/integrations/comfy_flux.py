"""A denoiser of the shape that ComfyUI's FLUX has: patches cut inside, text and image together.

Written from a description of it: none of its code.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from comfy_shapes import Linear, waves
from torch import nn


class RootMean(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        wide = x.float()
        size = torch.rsqrt(torch.mean(wide**2, dim=-1, keepdim=True) + 1e-6)
        return (wide * size).to(dtype=x.dtype) * self.scale.to(x.dtype)


def angles(position: torch.Tensor, width: int) -> torch.Tensor:
    """(B, N) → (B, N, width / 2, 2, 2): a rotation for each pair of channels."""
    steps = torch.linspace(0, (width - 2) / width, steps=width // 2, dtype=torch.float64)
    turn = torch.einsum("...n,d->...nd", position.float(), 1.0 / (10000**steps).float())
    table = torch.stack([turn.cos(), -turn.sin(), turn.sin(), turn.cos()], dim=-1)
    return table.unflatten(-1, (2, 2))


def rotate(x: torch.Tensor, table: torch.Tensor, added: bool) -> torch.Tensor:
    """(B, heads, N, d) by the table (B, 1, N, d / 2, 2, 2); `added`: with ``addcmul_``."""
    pairs = x.to(table.dtype).reshape(*x.shape[:-1], -1, 1, 2)
    if added:
        out = table[..., 0] * pairs[..., 0]
        out.addcmul_(table[..., 1], pairs[..., 1])
    else:
        out = table[..., 0] * pairs[..., 0] + table[..., 1] * pairs[..., 1]
    return out.reshape(*x.shape).type_as(x)


@torch.library.custom_op("comfy_kitchen::apply_rope", mutates_args=())
def both_rotated(
    xq: torch.Tensor, xk: torch.Tensor, freqs_cis: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """By the name and arguments of the kernel that newer versions call."""
    return rotate(xq, freqs_cis, added=False), rotate(xk, freqs_cis, added=False)


@both_rotated.register_fake
def _(
    xq: torch.Tensor, xk: torch.Tensor, freqs_cis: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    del freqs_cis
    return torch.empty_like(xq), torch.empty_like(xk)


class Flux(nn.Module):
    """Patches of 2×2, a block of two streams (rotated with ``addcmul_``) and one of a single."""

    WIDTH, HEADS, SPLIT = 32, 2, (4, 6, 6)
    kernel = False

    def __init__(self) -> None:
        super().__init__()
        width = self.WIDTH
        self.img_in, self.txt_in = Linear(16, width), Linear(12, width)
        self.time_in = nn.Sequential(Linear(16, width), nn.SiLU(), Linear(width, width))
        self.streams: Any = nn.ModuleDict(
            {
                name: nn.ModuleDict(
                    {
                        "mod": Linear(width, 6 * width),
                        "norm1": nn.LayerNorm(width, elementwise_affine=False, eps=1e-6),
                        "norm2": nn.LayerNorm(width, elementwise_affine=False, eps=1e-6),
                        "qkv": Linear(width, 3 * width),
                        "query_norm": RootMean(width // self.HEADS),
                        "key_norm": RootMean(width // self.HEADS),
                        "proj": Linear(width, width),
                        "mlp": nn.Sequential(
                            Linear(width, 2 * width),
                            nn.GELU(approximate="tanh"),
                            Linear(2 * width, width),
                        ),
                    }
                )
                for name in ("img", "txt")
            }
        )
        self.single_mod = Linear(width, 3 * width)
        self.single_norm = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.query_norm, self.key_norm = (RootMean(width // self.HEADS) for _ in range(2))
        self.linear1, self.linear2 = Linear(width, 5 * width), Linear(3 * width, width)
        self.last_norm = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.last = Linear(width, 16)

    def forward(
        self,
        x: torch.Tensor,
        timestep: torch.Tensor,
        context: torch.Tensor,
        transformer_options: dict[str, Any] | None = None,
    ) -> torch.Tensor:
        options = {} if transformer_options is None else transformer_options
        batch, channels, height, width = x.shape
        rows, columns = height // 2, width // 2
        x = F.pad(x, (0, width % 2, 0, height % 2), mode="circular")
        img = x.reshape(batch, channels, rows, 2, columns, 2)
        img = img.permute(0, 2, 4, 1, 3, 5).reshape(batch, rows * columns, channels * 4)
        ids = torch.zeros((rows, columns, 3), device=x.device, dtype=x.dtype)
        ids[:, :, 1] = ids[:, :, 1] + torch.linspace(0, rows - 1, steps=rows).unsqueeze(1)
        ids[:, :, 2] = ids[:, :, 2] + torch.linspace(0, columns - 1, steps=columns).unsqueeze(0)
        ids = ids.reshape(1, rows * columns, 3).expand(batch, -1, -1)
        text = torch.zeros((batch, context.shape[1], 3), device=x.device, dtype=x.dtype)
        every = torch.cat((text, ids), dim=1)
        table = torch.cat(
            [angles(every[..., axis], part) for axis, part in enumerate(self.SPLIT)], dim=-3
        ).unsqueeze(1)
        img, txt = self.img_in(img), self.txt_in(context)
        vector = self.time_in(waves(timestep, 16).to(x.dtype))
        options["block"] = ("double_block", 0)
        img, txt = self.two_streams(img, txt, vector, table)
        options["block"] = ("single_block", 0)
        both = self.one_stream(torch.cat((txt, img), 1), vector, table)
        out = self.last(self.last_norm(both[:, txt.shape[1] :, ...]))
        out = out.reshape(batch, rows, columns, channels, 2, 2).permute(0, 3, 1, 4, 2, 5)
        return out.reshape(batch, channels, height, width)

    def attend(
        self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, table: torch.Tensor, added: bool
    ) -> torch.Tensor:
        if self.kernel:
            q, k = torch.ops.comfy_kitchen.apply_rope(q, k, table)
        else:
            q, k = rotate(q, table, added), rotate(k, table, added)
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=None, dropout_p=0.0)
        return out.transpose(1, 2).reshape(q.shape[0], -1, q.shape[1] * q.shape[3])

    def split(self, qkv: torch.Tensor) -> tuple[torch.Tensor, ...]:
        batch, tokens = qkv.shape[:2]
        return qkv.view(batch, tokens, 3, self.HEADS, -1).permute(2, 0, 3, 1, 4).unbind(0)

    def two_streams(
        self, img: torch.Tensor, txt: torch.Tensor, vector: torch.Tensor, table: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        heads: list[tuple[torch.Tensor, ...]] = []
        mods: list[tuple[torch.Tensor, ...]] = []
        for x, part in ((txt, self.streams["txt"]), (img, self.streams["img"])):
            mod = part["mod"](F.silu(vector))[:, None, :].chunk(6, dim=-1)
            q, k, v = self.split(part["qkv"]((1 + mod[1]) * part["norm1"](x) + mod[0]))
            heads.append((part["query_norm"](q).to(v), part["key_norm"](k).to(v), v))
            mods.append(mod)
        q, k, v = (torch.cat(pair, dim=2) for pair in zip(*heads, strict=True))
        mixed = self.attend(q, k, v, table, added=True)
        length = txt.shape[1]
        _added(txt, mixed[:, :length], self.streams["txt"], mods[0])
        _added(img, mixed[:, length:], self.streams["img"], mods[1])
        return img, txt

    def one_stream(
        self, x: torch.Tensor, vector: torch.Tensor, table: torch.Tensor
    ) -> torch.Tensor:
        shift, scale, gate = self.single_mod(F.silu(vector))[:, None, :].chunk(3, dim=-1)
        moved = (1 + scale) * self.single_norm(x) + shift
        qkv, mlp = torch.split(self.linear1(moved), [3 * self.WIDTH, 2 * self.WIDTH], dim=-1)
        q, k, v = self.split(qkv)
        mixed = self.attend(self.query_norm(q).to(v), self.key_norm(k).to(v), v, table, added=False)
        x += gate * self.linear2(torch.cat((mixed, F.gelu(mlp, approximate="tanh")), 2))
        return x


def _added(x: torch.Tensor, out: torch.Tensor, part: Any, mod: tuple[torch.Tensor, ...]) -> None:
    """Attention and feed-forward of one stream, added in place."""
    x += mod[2] * part["proj"](out)
    x += mod[5] * part["mlp"]((1 + mod[4]) * part["norm2"](x) + mod[3])
