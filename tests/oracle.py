"""The truth: attention on subsampled keys and values, in eager PyTorch, from the specification.

Imports nothing from the passes and is written with other means than theirs: index lists,
`F.interpolate` and `F.avg_pool2d` instead of slices and reshapes, an explicit softmax instead of
whatever the model spells.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F

Pair = tuple[int, int]
"""(rows, columns)."""
Sides = tuple[int, ...]
"""(rows, columns) of a picture, (frames, rows, columns) of a video."""


def cells(side: int, factor: int) -> int:
    """⌈side / factor⌉."""
    return math.ceil(side / factor)


def kept(side: int, factor: int, sampling: str) -> list[int]:
    """Rows (or columns) that stand for their cells, for samplings that pick tokens."""
    count = cells(side, factor)
    last_cell = side - (count - 1) * factor
    start = last_cell // 2 if sampling == "nearest-exact" else 0
    return [start + index * factor for index in range(count)]


def stagger_phases(factors: Pair, count: int) -> list[Pair]:
    """Phases of the first `count` sites of a level: each as far from those before as can be.

    Distances wrap round the cell; of equally far ones the first in reading order; when all are
    used up, from the start again.
    """
    cell = [(r, c) for r in range(factors[0]) for c in range(factors[1])]
    used: list[Pair] = [(0, 0)]
    while len(used) < len(cell):
        gaps = {
            one: min(
                math.hypot(one[0] - u[0] + i * factors[0], one[1] - u[1] + j * factors[1])
                for u in used
                for i in (-1, 0, 1)
                for j in (-1, 0, 1)
            )
            for one in cell
        }
        widest = max(gaps.values())
        used.append(next(one for one in cell if math.isclose(gaps[one], widest)))
    return (used * count)[:count]


def subsample_image(
    image: torch.Tensor, factors: Pair, sampling: str, start: Pair = (0, 0)
) -> torch.Tensor:
    """(B, C, H, W) → (B, C, ⌈H/fr⌉, ⌈W/fc⌉); `start` is the phase of ``staggered``."""
    rows, columns = image.shape[-2:]
    if sampling.startswith("blend:"):
        weight = float(sampling.split(":")[1])
        middle = subsample_image(image, factors, "nearest-exact")
        return middle.lerp(subsample_image(image, factors, "average"), 1 - weight)
    if sampling == "staggered":
        for dim in (0, 1):
            side = image.shape[2 + dim]
            index = start[dim] + factors[dim] * torch.arange(cells(side, factors[dim]))
            image = image.index_select(2 + dim, index.clamp(max=side - 1))
        return image
    if sampling == "average":
        return F.avg_pool2d(image, factors, factors, ceil_mode=True, count_include_pad=False)
    if rows % factors[0] == 0 and columns % factors[1] == 0:
        size = (rows // factors[0], columns // factors[1])
        return F.interpolate(image, size=size, mode=sampling)
    picked = image.index_select(2, torch.tensor(kept(rows, factors[0], sampling)))
    return picked.index_select(3, torch.tensor(kept(columns, factors[1], sampling)))


def subsample(
    x: torch.Tensor,
    dim: int,
    grid: Sides,
    factors: Pair,
    sampling: str = "nearest",
    offset: int = 0,
    start: Pair = (0, 0),
) -> torch.Tensor:
    """Subsample the image tokens on axis `dim`, each frame by itself; the others stay."""
    moved = x.movedim(dim, -1)
    tokens = math.prod(grid)
    before, image, after = moved.split([offset, tokens, moved.shape[-1] - offset - tokens], dim=-1)
    planes = image.reshape(1, -1, *grid[-2:])
    dtype = planes.dtype
    if dtype in (torch.bfloat16, torch.float16) and sampling.startswith(("average", "blend")):
        planes = planes.float()  # rounds once, at the end
    pooled = subsample_image(planes, factors, sampling, start).to(dtype)
    pooled = pooled.reshape(*image.shape[:-1], -1)
    return torch.cat([before, pooled, after], dim=-1).movedim(-1, dim)


def stand_ins(
    x: torch.Tensor,
    dim: int,
    grid: Sides,
    factors: Pair,
    sampling: str = "nearest",
    offset: int = 0,
    start: Pair = (0, 0),
) -> torch.Tensor:
    """Every image token replaced by the one that stands for its cell; the length stays.

    Dense attention over keys and values made so is what downsampled attention must give, with a
    key weighing as many tokens as it stands for: here it occurs so often.
    """
    pooled = subsample(x, dim, grid, factors, sampling, offset, start).movedim(dim, -1)
    every = (*(1 for _ in grid[2:]), *factors)
    count = [cells(side, factor) for side, factor in zip(grid, every, strict=True)]
    own = math.prod(count)
    before, image, rest = pooled.split([offset, own, pooled.shape[-1] - offset - own], dim=-1)
    image = image.unflatten(-1, count)
    for axis, side, factor in ((-2, grid[-2], factors[0]), (-1, grid[-1], factors[1])):
        image = image.repeat_interleave(factor, axis).narrow(axis, 0, side)
    image = image.flatten(-len(count))
    return torch.cat([before, image, rest], dim=-1).movedim(-1, dim)


def mass(
    grid: Sides, factors: Pair, before: int, after: int, dtype: torch.dtype = torch.float32
) -> torch.Tensor:
    """Bias on the scores of joint attention: log of how many tokens each key stands for."""
    counts = F.avg_pool2d(
        torch.ones(1, *grid[-2:]), factors, factors, ceil_mode=True, divisor_override=1
    )
    frames = [counts.flatten()] * math.prod(grid[:-2])
    whole = torch.cat([torch.ones(before), *frames, torch.ones(after)])
    return whole.to(dtype).log()


def attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    *,
    scale: float | None = None,
    bias: torch.Tensor | None = None,
) -> torch.Tensor:
    """softmax(QKᵀ·scale + bias)V over the last two axes, by definition."""
    scale = 1 / math.sqrt(query.shape[-1]) if scale is None else scale
    scores = torch.einsum("...id,...jd->...ij", query, key) * scale
    if bias is not None:
        scores = scores + bias
    weights = (scores - scores.amax(-1, keepdim=True)).exp()
    weights = weights / weights.sum(-1, keepdim=True)
    return torch.einsum("...ij,...jd->...id", weights, value)


class OracleProcessor:
    """A diffusers attention processor that projects keys and values from fewer tokens.

    Args:
        grids: number of image tokens → their grid.
        factors: number of image tokens → (row, column) factor; absent means dense.
        sampling: which token stands for a cell.
    """

    def __init__(
        self, grids: Mapping[int, Pair], factors: Mapping[int, Pair], sampling: str
    ) -> None:
        self.grids, self.factors, self.sampling = grids, factors, sampling
        self.calls = 0
        self.sites: dict[Pair, int] = {}

    def pooled(self, x: torch.Tensor) -> torch.Tensor:
        """Tokens (B, N, C) as keys and values see them."""
        factors = self.factors.get(x.shape[1], (1, 1))
        if factors == (1, 1):
            return x
        self.calls += 1
        grid = self.grids[x.shape[1]]
        index = self.sites[grid] = self.sites.get(grid, -1) + 1
        start = stagger_phases(factors, index + 1)[index]
        return stand_ins(x, 1, grid, factors, self.sampling, start=start)

    def __call__(
        self,
        attn: Any,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor | None = None,
        **_: Any,
    ) -> torch.Tensor:
        residual = hidden_states
        image = hidden_states.shape if hidden_states.dim() == 4 else None
        x = hidden_states.flatten(2).mT if image is not None else hidden_states
        if attn.group_norm is not None:
            x = attn.group_norm(x.mT).mT
        text = encoder_hidden_states
        bias: torch.Tensor | None = None
        if text is not None and attn.norm_cross is not None:
            text = attn.norm_encoder_hidden_states(text)
        if attn.added_kv_proj_dim is not None:
            assert text is not None
            own = self.pooled(x)
            key = torch.cat([attn.add_k_proj(text), attn.to_k(own)], dim=1)
            value = torch.cat([attn.add_v_proj(text), attn.to_v(own)], dim=1)
            if attn.only_cross_attention:
                key, value = attn.add_k_proj(text), attn.add_v_proj(text)
        else:
            own = self.pooled(x) if text is None else text
            key, value = attn.to_k(own), attn.to_v(own)
        query = attn.to_q(x)
        query, key, value = (
            t.unflatten(-1, (attn.heads, -1)).transpose(1, 2) for t in (query, key, value)
        )
        if attn.norm_q is not None:
            query = attn.norm_q(query)
        if attn.norm_k is not None:
            key = attn.norm_k(key)
        out = attention(query, key, value, scale=attn.scale, bias=bias).transpose(1, 2).flatten(2)
        out = attn.to_out[0](out)
        if image is not None:
            out = out.mT.reshape(image)
        if attn.residual_connection or attn.added_kv_proj_dim is not None:
            out = out + residual
        return out / attn.rescale_output_factor


Segment = tuple[int, Sides, Pair]
"""(tokens before the image's, its grid, its factors)."""


@contextmanager
def pooled_fused_attention(
    segments: Mapping[int, Segment | list[Segment]], sampling: str, *, keep_mass: bool = True
) -> Generator[list[int]]:
    """Every fused attention in eager mode, with keys and values subsampled where they enter it.

    Args:
        segments: number of keys → (tokens before the image's, grid, factors), those of each image
            where several follow each other; others stay dense.
        sampling: which token stands for a cell.
        keep_mass: pooled keys beside text weigh as the tokens that they stand for.

    Yields:
        The key counts that were subsampled, one for each attention.
    """
    seen: list[int] = []

    def fused(
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attn_mask: torch.Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> torch.Tensor:
        assert not is_causal
        assert not enable_gqa
        assert dropout_p == 0.0
        keys = key.shape[-2]
        if attn_mask is not None and attn_mask.dtype is torch.bool:
            attn_mask = torch.zeros(attn_mask.shape).masked_fill(~attn_mask, -math.inf)
        if keys in segments and query.shape[-2] != 1:
            found = segments[keys]
            images = found if isinstance(found, list) else [found]
            joint = keys != math.prod(images[0][1])
            pooled = stand_ins if keep_mass or not joint else subsample
            masked = attn_mask is not None and attn_mask.shape[-1] == keys
            for offset, grid, factors in reversed(images):  # what comes before keeps its place
                key, value = (
                    pooled(t, t.dim() - 2, grid, factors, sampling, offset) for t in (key, value)
                )
                if attn_mask is not None and masked:
                    axis = attn_mask.dim() - 1
                    attn_mask = pooled(attn_mask, axis, grid, factors, "nearest", offset)
            seen.append(keys)
        return attention(query, key, value, scale=scale, bias=attn_mask)

    original = F.scaled_dot_product_attention
    F.scaled_dot_product_attention = fused  # type: ignore[assignment]
    try:
        yield seen
    finally:
        F.scaled_dot_product_attention = original
