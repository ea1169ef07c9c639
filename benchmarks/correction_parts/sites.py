"""The demo model's self-attention with fewer keys, and what is learned from it on the way.

Plain diffusers with a processor at every site, so that a correction can be tried before any pass
knows of it. `nearest` only: every f-th row and column, as the passes keep them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from todo_compile.choices import parse_choice

Plan = Sequence[tuple[float, Mapping[str, str]]]
"""(share of the schedule before it, site → ``nearest:4``) for every phase."""


@dataclass
class Gram:
    """Sums over tokens: of features F (n, k) and targets T (n, c).

    Args:
        ff: FᵀF.
        ft: FᵀT.
        tt: trace of TᵀT.
        count: n.
    """

    ff: Tensor
    ft: Tensor
    tt: float = 0.0
    count: int = 0

    def __add__(self, other: Gram) -> Gram:
        return Gram(
            self.ff + other.ff, self.ft + other.ft, self.tt + other.tt, self.count + other.count
        )

    def __sub__(self, other: Gram) -> Gram:
        return Gram(
            self.ff - other.ff, self.ft - other.ft, self.tt - other.tt, self.count - other.count
        )


@dataclass
class Site:
    """One attention site, as a processor of diffusers.

    Args:
        name: path of its module in the denoiser.
        rows, columns: its grid.
        factors: for each phase (rows, columns) of every key that is kept.
        maps: for each phase the correction's weight (k, c): of the pooled result, the input, 1.
        learn: sums by (phase, fold), filled where `fold` is set.
        fold: which sums the calls go into; None does not learn.
        phase: that runs now.
    """

    name: str
    rows: int
    columns: int
    factors: list[tuple[int, int]] = field(default_factory=list[tuple[int, int]])
    maps: dict[int, Tensor] = field(default_factory=dict[int, Tensor])
    learn: dict[tuple[int, int], Gram] = field(default_factory=dict[tuple[int, int], Gram])
    fold: int | None = None
    phase: int = 0

    def __call__(self, attn: Any, hidden_states: Tensor, **_: Any) -> Tensor:
        x = hidden_states
        down, across = self.factors[self.phase]
        query = _heads(attn.to_q(x), attn.heads)
        kept = x.unflatten(1, (self.rows, self.columns))[:, ::down, ::across].flatten(1, 2)
        pooled = _attend(attn, query, kept)
        result = attn.to_out[0](pooled)
        if (down, across) == (1, 1):
            return result
        if self.fold is not None:
            missing = attn.to_out[0](_attend(attn, query, x)) - result
            self._add(features(pooled, x), missing)
        if (weight := self.maps.get(self.phase)) is not None:
            result = result + features(pooled, x) @ weight.to(x.dtype)
        return result

    def _add(self, known: Tensor, missing: Tensor) -> None:
        assert self.fold is not None
        f, t = known.flatten(0, 1).double(), missing.flatten(0, 1).double()
        one = Gram(f.mT @ f, f.mT @ t, t.square().sum().item(), len(f))
        key = self.phase, self.fold
        self.learn[key] = self.learn[key] + one if key in self.learn else one


def features(pooled: Tensor, x: Tensor) -> Tensor:
    """What a correction is linear in: (batch, tokens, 2·C + 1)."""
    return torch.cat([pooled, x, torch.ones_like(x[..., :1])], -1)


def _heads(x: Tensor, heads: int) -> Tensor:
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


def _attend(attn: Any, query: Tensor, keys: Tensor) -> Tensor:
    key, value = (_heads(project(keys), attn.heads) for project in (attn.to_k, attn.to_v))
    return scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)


class Model:
    """A pipeline whose self-attention follows a plan with corrections."""

    def __init__(self, pipeline: Any, sites: Sequence[Any]) -> None:
        self.pipeline = pipeline
        self.sites = {s.name: Site(s.name, s.rows, s.columns) for s in sites}
        unet = pipeline.unet
        kept = dict(unet.attn_processors)
        for name, site in self.sites.items():
            kept[f"{name}.processor"] = site
        unet.set_attn_processor(kept)
        self._starts: list[float] = [0.0]
        self.widths = {name: unet.get_submodule(name).to_q.in_features for name in self.sites}
        unet.register_forward_pre_hook(self._switch)
        self.follow([(0.0, {})])

    def follow(self, plan: Plan) -> None:
        """Run this plan from now on, without corrections and with nothing learned."""
        self._starts = [start for start, _ in plan]
        for name, site in self.sites.items():
            chosen = [parse_choice(sites.get(name, "dense")) for _, sites in plan]
            assert all(len(one) == 2 or one[2] == "nearest" for one in chosen)
            site.factors = [(one[0], one[1]) for one in chosen]
            site.maps, site.learn, site.fold = {}, {}, None

    def _switch(self, _module: Any, args: tuple[Any, ...]) -> None:
        steps = self.pipeline.scheduler.timesteps
        done = (steps > args[1]).sum().item() / len(steps)
        phase = max(i for i, start in enumerate(self._starts) if start <= done + 1e-9)
        for site in self.sites.values():
            site.phase = phase
