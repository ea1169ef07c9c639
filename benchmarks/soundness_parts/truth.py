"""What is right: eager attention whose own keys and values are subsampled as the report says.

Nothing here knows how the passes find, prove or move anything. What they say that they did (grid,
factors, sampling) is compared with the case; then it is done again by other means.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from soundness_parts.attend import SPELLINGS
from soundness_parts.case import SIDES, Case, beside_another, grid_of, side_lengths
from soundness_parts.keys import KEY_MAPS
from soundness_parts.masks import MASKS
from soundness_parts.sources import ORDERS, SCRAMBLED, SOURCES, Grid
from tests import oracle
from todo_compile.passes.report import SiteReport


def forbidden(case: Case, call: int = 0) -> str:
    """Why no site of an attention of this case may be rewritten; empty if they may."""
    if case.sides:
        return "its sides are dynamic"
    if call and case.blocks == "crossed":
        return "its keys are another picture's"
    if not SOURCES[case.source].proved:
        return "nothing shows that its tokens are a picture"
    if not ORDERS[case.order].picture:
        return "its tokens are in another order"
    if case.source == "patch_view" and case.picture in SCRAMBLED:
        return "its patches are cut of no picture"
    if not SIDES[case.side].allowed and not beside_another(case):
        return "its keys are not the queries' picture"
    if not MASKS[case.mask].safe and case.masks == "prove":
        return "its mask can hide keys"
    if not SPELLINGS[case.spelling].softmax:
        return "it is no softmax attention, or its scores are used elsewhere"
    return ""


def kept_whole(case: Case) -> Grid:
    """Keys before and after the image's."""
    if beside_another(case):
        return 0, case.size[0] * case.size[1]
    return side_lengths(case)


def by_call(case: Case, sites: Sequence[SiteReport]) -> list[list[SiteReport]]:
    """The reports of each attention of the module, in order: all have as many."""
    calls = 1 if case.blocks == "one" else 2
    each, left = divmod(len(sites), calls)
    if left:
        raise ValueError(f"{len(sites)} rows for {calls} attentions that are spelled alike")
    return [list(sites[i * each : (i + 1) * each]) for i in range(calls)]


def disagreement(case: Case, site: SiteReport, call: int) -> str:
    """What the report says of a rewritten site that the case knows better."""
    if why := forbidden(case, call):
        return f"rewritten, but {why}"
    if site.grid != grid_of(case):
        return f"grid {site.grid} instead of {grid_of(case)}"
    if site.frames != SOURCES[case.source].sequence:
        return f"{site.frames} frames instead of {SOURCES[case.source].sequence}"
    if site.factor != case.factors:
        return f"factor {site.factor} instead of {case.factors}"
    return ""


@dataclass(slots=True)
class Truth:
    """Attention with pooled keys, as the reports say.

    Args:
        case: what it is.
        sites: the reports of its attentions in order; none: nothing is pooled.
        seen: keys, values and bias of each call, before pooling.
    """

    case: Case
    sites: Sequence[SiteReport]
    seen: list[tuple[Tensor, Tensor, Tensor | None]]
    start: Grid = (0, 0)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> Tensor:
        call = len(self.seen)
        self.seen.append((k, v, bias))
        spelling = SPELLINGS[self.case.spelling]
        groups = by_call(self.case, self.sites) if self.sites else [[]] * (call + 1)
        done = [any(site.action == "rewritten" for site in group) for group in groups]
        if not done[call]:
            return spelling.attend(q, k, v, bias)
        before, after = kept_whole(self.case)
        grid, factors = grid_of(self.case), self.case.factors
        if ORDERS[self.case.order].column_major:
            grid, factors = (grid[1], grid[0]), (factors[1], factors[0])
        # Every attention of a level starts elsewhere in the cell.
        index = sum(done[:call])
        self.start = oracle.stagger_phases(self.case.factors, index + 1)[index]
        if ORDERS[self.case.order].column_major:
            self.start = self.start[1], self.start[0]
        keys = (SOURCES[self.case.source].sequence, *grid)
        k, v = (self._pooled(t, 2, keys, factors, before) for t in (k, v))
        bias = self._bias(bias, keys, factors, before, after, q.dtype)
        if spelling.oddity:
            return spelling.attend(q, k, v, bias.to(q.dtype))
        if k.shape[1] != q.shape[1]:
            k, v = (t.repeat_interleave(q.shape[1] // t.shape[1], 1) for t in (k, v))
        v_dtype = v.dtype
        wide = torch.float64 if q.dtype == torch.float64 else torch.float32
        q, k, v, bias = (t.to(wide) for t in (q, k, v, bias))
        return oracle.attention(q, k, v, scale=spelling.scale, bias=bias).to(v_dtype)

    def _pooled(
        self, x: Tensor, dim: int, grid: oracle.Sides, factors: Grid, before: int
    ) -> Tensor:
        return oracle.subsample(x, dim, grid, factors, self.case.sampling, before, start=self.start)

    def _bias(
        self,
        bias: Tensor | None,
        grid: oracle.Sides,
        factors: Grid,
        before: int,
        after: int,
        dtype: torch.dtype,
    ) -> Tensor:
        """The bias of fewer keys, and the logarithm of how many tokens each stands for."""
        weight = oracle.mass(grid, factors, before, after, torch.float64)
        if not self.case.keep_mass:  # whole cells weigh as one text token does
            image = slice(before, len(weight) - after)
            weight[image] -= math.log(factors[0] * factors[1])
        if bias is None:
            return weight.to(dtype)
        if bias.dtype == torch.bool:
            bias = torch.zeros(bias.shape, dtype=dtype).masked_fill(~bias, float("-inf"))
        if bias.shape[-1] != 1:
            bias = self._pooled(bias, bias.dim() - 1, grid, factors, before)
        return bias + weight.to(dtype)


def equal_image(case: Case, seen: Sequence[tuple[Tensor, Tensor, Tensor | None]]) -> bool:
    """Whether all image keys of a call are one key, all values one value, under one bias."""
    before, after = kept_whole(case)
    if not case.keep_mass:
        return False  # fewer keys then weigh less beside the text
    return all(
        _constant(t, dim, before, after)
        for k, v, bias in seen
        for t, dim in ((k, 2), (v, 2), (bias, -1))
        if t is not None and t.shape[dim] != 1
    )


def _constant(x: Tensor, dim: int, before: int, after: int) -> bool:
    image = x.narrow(dim, before, x.shape[dim] - before - after).movedim(dim, 0)
    if image.dtype == torch.bool:
        return bool((image == image[:1]).all())
    return torch.allclose(image, image[:1].expand(image.shape), rtol=1e-6, atol=1e-6)


def ragged(case: Case) -> bool:
    """Whether a factor does not divide its side, so that cells differ."""
    return any(s % f for s, f in zip(grid_of(case), case.factors, strict=True))


def _never(case: Case) -> str:
    if not SOURCES[case.source].proved:
        return "never: no picture"
    if not ORDERS[case.order].picture:
        return "never: another order"
    if case.source == "patch_view" and case.picture in SCRAMBLED:
        return "never: no picture"
    if case.sides:
        return "never: dynamic sides"
    if not SIDES[case.side].allowed:
        return "never: other keys"
    return "never: masks" if not MASKS[case.mask].safe else "never: other attention"


def classify(case: Case) -> str:
    """The class that a case is counted in: the first that it is of."""
    changed = case.changed()
    if forbidden(case):
        return _never(case)
    if case.nesting != "none":
        return "nested"
    if case.write != "none":
        return "written in place"
    if case.mask != "none":
        if not MASKS[case.mask].safe:
            return "masks at own risk"
        return "masked text" if MASKS[case.mask].text else "small bias"
    if case.blocks != "one":
        return "two attentions"
    if case.dynamic or case.dtype != "float32":
        return "dynamic batch or another dtype"
    if kept_whole(case) != (0, 0):
        return "joint"
    if case.source in ("packed", "packed_raw", "convolved", "tabled", "axes_named", "axes_last"):
        return "packed or named"
    if not all(KEY_MAPS[name].token_wise for name in (case.key_map, case.value_map)):
        return "tokens see each other"
    if case.order != "row":
        return "another order or windows"
    if {"projection", "key_map", "value_map"} & changed.keys():
        return "other projections"
    if {"split", "repeat", "heads", "detour"} & changed.keys():
        return "views and heads"
    if case.spelling != "sdpa":
        return "spelled out"
    return "plain"
