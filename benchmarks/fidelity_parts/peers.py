"""Other methods and controls, as eager attention of a copy of the UNet, which shares its weights.

Self-attention is touched at as many levels, from the largest grid, as there are factors. ``bf16
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
from fidelity_parts.reuse import Reuse
from fidelity_parts.settings import Setting


class Processor:
    """Self-attention by another rule.

    Args:
        rule: ``patched keys`` is what the paper's own code does: every f-th key and value of rows
            and columns, all queries (ToDo, arXiv 2402.13573, section 3); ``all tokens`` attends
            among every f-th token of rows and columns (queries too) and repeats the result;
            ``tiles`` attends within f × f tiles (HyperTile's idea; its tiles change size at random,
            these do not); ``no attention`` gives nothing.
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
        if self.rule == "patched keys":
            return _attend(attn, x, image[:, ::f, ::f].flatten(1, 2))
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


def _attend(attn: Any, x: torch.Tensor, source: torch.Tensor | None = None) -> torch.Tensor:
    source = x if source is None else source
    q, k, v = (
        layer(of).unflatten(-1, (attn.heads, -1)).transpose(1, 2)
        for layer, of in ((attn.to_q, x), (attn.to_k, source), (attn.to_v, source))
    )
    out = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
    return attn.to_out[0](out)


def levels(unet: Any, grid: tuple[int, int]) -> dict[tuple[int, int], list[str]]:
    """Grid → names of the self-attentions that see it, the largest first.

    Found by one run with hooks, on no data; levels halve, and odd sides round up.
    """
    counts: dict[str, int] = {}
    handles: list[Any] = []
    model = shared_copy(unet).to("meta")
    for name, module in model.named_modules():
        if name.endswith("attn1"):

            def look(_: Any, args: Any, name: str = name) -> None:
                counts[name] = args[0].shape[1]

            handles.append(module.register_forward_pre_hook(look))
    config = model.config
    empty: dict[str, Any] = {"device": "meta", "dtype": model.dtype}
    with torch.no_grad():
        model(
            torch.zeros(1, config.in_channels, *grid, **empty),
            torch.zeros(1, device="meta"),
            torch.zeros(1, 2, config.cross_attention_dim, **empty),
        )
    found: dict[tuple[int, int], list[str]] = {}
    rows, columns = grid
    for _ in range(len(config.block_out_channels)):
        names = [name for name, tokens in counts.items() if tokens == rows * columns]
        if names:
            found[rows, columns] = names
        rows, columns = -(-rows // 2), -(-columns // 2)
    return found


def shared_copy(module: Any) -> Any:
    """A copy whose parts can be replaced, on the same weights."""
    tensors = [*module.parameters(), *module.buffers()]
    return copy.deepcopy(module, {id(one): one for one in tensors})


def build(setting: Setting, unet: Any, grid: tuple[int, int]) -> torch.nn.Module:
    """A module of its own for a peer or control.

    Raises:
        ImportError: tomesd is not installed.
    """
    other = shared_copy(unet)
    if setting.sampling == "tomesd":
        import tomesd

        tomesd.apply_patch(other, ratio=float(setting.factors))
    elif setting.sampling == "bf16 noise":
        for module in other.modules():
            for name, parameter in module.named_parameters(recurse=False):
                rounded = parameter.detach().bfloat16().float()
                setattr(module, name, torch.nn.Parameter(rounded, requires_grad=False))
    elif setting.sampling == "reuse":
        every, _, factors = setting.factors.partition("; ")
        if factors:
            other = build(Setting("peer", factors, "patched keys"), unet, grid).unet
        return Reuse(other, int(every)).eval()
    else:
        text = "1" if setting.factors == "off" else setting.factors
        found = levels(other, grid)
        if not found.get(grid):
            raise ValueError("no self-attention sees the largest grid")
        processors = dict(other.attn_processors)
        for factor, (seen, names) in zip(text.split(","), found.items(), strict=False):
            mine = Processor(setting.sampling, int(factor), seen)
            processors.update({f"{name}.processor": mine for name in names})
        other.set_attn_processor(processors)
    return Wrapped(other).eval()


def reseed(module: Denoise, pairs: Sequence[Pair]) -> None:
    """Begin a sampling: tomesd's random choices depend on the pairs of a batch alone.

    It would fork torch's global state at its first call and go on from there, so that a picture
    depended on all that was drawn before it in the process. The choices are shared by a batch:
    pictures still depend on which pairs are drawn together.
    """
    if isinstance(module, Reuse):
        module.restart()
    unet: Any = getattr(module, "unet", None)
    info = getattr(unet, "_tome_info", None)
    if info is None:
        return
    digest = hashlib.sha256("".join(pair.key for pair in pairs).encode()).digest()
    generator = torch.Generator(unet.device)
    info["args"]["generator"] = generator.manual_seed(int.from_bytes(digest[:7]))
