"""The inputs of a case's module, drawn from its seed."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from soundness_parts.case import SIDES, Case, another_picture, grid_of, side_lengths
from soundness_parts.masks import MASKS, given_mask
from soundness_parts.sources import SOURCES, WIDTH

DTYPES = {
    "float32": torch.float32,
    "float64": torch.float64,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}


def inputs(case: Case, *, equal: bool = False, batch: int | None = None) -> tuple[Tensor, ...]:
    """Inputs in the order that `Attention.forward` takes them; `equal`: one token everywhere."""
    generator = torch.Generator().manual_seed(case.seed + 1)
    dtype, batch = DTYPES[case.dtype], batch or case.batch
    shape = SOURCES[case.source].shape(*case.size)

    def noise(*sizes: int) -> Tensor:
        return torch.randn(sizes, generator=generator).to(dtype)

    def picture() -> Tensor:
        drawn = noise(batch, *shape)
        if not equal:
            return drawn
        sides = (1,) if len(shape) == 2 else SOURCES[case.source].sides
        return drawn.mean(sides, keepdim=True).expand(drawn.shape).clone()

    found = [picture()]
    side, mask = SIDES[case.side], MASKS[case.mask]
    before, after = side_lengths(case)
    if side.text:
        found.append(noise(batch, before + after, WIDTH))
    if another_picture(case):
        found.append(picture())
    if mask.text and not mask.given:
        there = torch.ones(batch, before + after, dtype=torch.bool)
        there[:, -1] = False
        found.append(there)
    if mask.given:
        found.append(_given(case, mask.given, noise))
    return tuple(found)


def _given(case: Case, kind: str, noise: Callable[..., Tensor]) -> Tensor:
    rows, columns = grid_of(case)
    before, after = side_lengths(case)
    image = rows * columns * SOURCES[case.source].sequence
    keys = image + before + after
    queries = keys if SIDES[case.side].joint else image
    drawn = noise(1, 1, queries, keys).clamp(-2, 2)
    given = given_mask(kind, 1, queries, keys, drawn)
    return given if given.dtype == torch.bool else given.to(DTYPES[case.dtype])
