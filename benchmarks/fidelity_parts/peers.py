"""Other methods and controls, as eager attention of a copy of the UNet.

Only self-attention at the largest grid is touched, as the rewrite does with one factor. ``bf16
noise`` leaves attention alone and rounds the weights to bf16: the scale of what nobody minds.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F

from fidelity_parts.model import Denoise, Pair, Wrapped
from fidelity_parts.settings import Setting


class Processor:
    """Self-attention by another rule.

    Args:
        rule: ``all tokens`` attends among every f-th token of rows and columns (queries too) and
            repeats the result; ``tiles`` attends within f × f tiles (HyperTile's idea; its tiles
            change size at random, these do not); ``no attention`` gives nothing.
        factor: f.
        grid: (rows, columns) of the tokens that it acts on.
    """

    def __init__(self, rule: str, factor: int, grid: tuple[int, int]) -> None:
        self.rule, self.factor, self.grid = rule, factor, grid

    def __call__(self, attn: Any, hidden_states: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
        x = hidden_states
        if self.rule == "no attention":
            return torch.zeros_like(x)
        rows, columns = self.grid
        f = self.factor
        image = x.unflatten(1, self.grid)
        if self.rule == "all tokens":
            few = image[:, ::f, ::f]
            out = _attend(attn, few.flatten(1, 2)).unflatten(1, few.shape[1:3])
            out = out.repeat_interleave(f, 1)[:, :rows].repeat_interleave(f, 2)[:, :, :columns]
            return out.flatten(1, 2)
        high, wide = -(-rows // f), -(-columns // f)
        out = torch.empty_like(image)
        for top in range(0, rows, high):
            for left in range(0, columns, wide):
                tile = image[:, top : top + high, left : left + wide]
                done = _attend(attn, tile.flatten(1, 2)).view_as(tile)
                out[:, top : top + high, left : left + wide] = done
        return out.flatten(1, 2)


def _attend(attn: Any, x: torch.Tensor) -> torch.Tensor:
    q, k, v = (
        layer(x).unflatten(-1, (attn.heads, -1)).transpose(1, 2)
        for layer in (attn.to_q, attn.to_k, attn.to_v)
    )
    out = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
    return attn.to_out[0](out)


def top_level(unet: Any, grid: tuple[int, int]) -> list[str]:
    """Names of the self-attentions that see `grid`, found by one run with hooks."""
    found: list[str] = []
    handles: list[Any] = []
    for name, module in unet.named_modules():
        if name.endswith("attn1"):

            def look(_: Any, args: Any, name: str = name) -> None:
                if args[0].shape[1] == grid[0] * grid[1]:
                    found.append(name)

            handles.append(module.register_forward_pre_hook(look))
    config, device = unet.config, unet.device
    with torch.no_grad():
        unet(
            torch.zeros(1, config.in_channels, *grid, device=device),
            torch.zeros(1, device=device),
            torch.zeros(1, 2, config.cross_attention_dim, device=device),
        )
    for handle in handles:
        handle.remove()
    return found


def build(setting: Setting, unet: Any, grid: tuple[int, int]) -> torch.nn.Module:
    """A module of its own for a peer or control.

    Raises:
        ImportError: tomesd is not installed.
    """
    other = copy.deepcopy(unet)
    if setting.sampling == "tomesd":
        import tomesd

        tomesd.apply_patch(other, ratio=float(setting.factors))
    elif setting.sampling == "bf16 noise":
        for parameter in other.parameters():
            parameter.data = parameter.data.bfloat16().float()
    else:
        factor = 1 if setting.factors == "off" else int(setting.factors)
        wanted = {f"{n}.processor" for n in top_level(other, grid)}
        if not wanted:
            raise ValueError("no self-attention sees the largest grid")
        mine = Processor(setting.sampling, factor, grid)
        other.set_attn_processor(
            {n: mine if n in wanted else p for n, p in other.attn_processors.items()}
        )
    return Wrapped(other).eval()


def reseed(module: Denoise, pairs: Sequence[Pair]) -> None:
    """Let tomesd's random choices depend on the pairs of a batch alone; others make none.

    It would fork torch's global state at its first call and go on from there, so that a picture
    depended on all that was drawn before it in the process. The choices are shared by a batch:
    pictures still depend on which pairs are drawn together.
    """
    unet: Any = getattr(module, "unet", None)
    info = getattr(unet, "_tome_info", None)
    if info is None:
        return
    digest = hashlib.sha256("".join(pair.key for pair in pairs).encode()).digest()
    generator = torch.Generator(unet.device)
    info["args"]["generator"] = generator.manual_seed(int.from_bytes(digest[:7]))
