"""Whether pooling the keys of a masked site could lose a key that a query may see.

    mask [text: any | image: 1 1 1 1]      every image key is visible: pooled as the keys are
    mask [0 −∞ −∞ 0 …]                     the key that stands for a cell may be the hidden one

A pooled key stands for its cell, and so does its entry of the mask. That is right where a row of
the mask treats all image keys alike, and nearly so for a bias that is small beside the scores (a
table of relative positions). A mask that hides some image keys, as a number or as True and False,
could hide the only key of a cell that is kept, or the only ones that a query sees.
"""

from __future__ import annotations

from typing import Literal

import torch

from todo_compile.passes.find.attention import AttentionSite
from todo_compile.passes.graph import GraphContext
from todo_compile.passes.grid.axes import same
from todo_compile.passes.values.interval import Range
from todo_compile.passes.values.values import values_of

SMALL = 16.0
"""Greatest difference between a row's entries that is a bias: e⁻¹⁶ is 10⁻⁷, a key hidden."""

MaskProof = Literal["uniform", "small", "asked"]
"""A mask may be pooled: it treats all image keys alike, it is a small bias, or the user says so."""


def prove_mask(
    context: GraphContext, site: AttentionSite, offset: int, tokens: int
) -> MaskProof | None:
    """Why the mask of a site may be pooled with its keys; None if it could hide some of them.

    Args:
        site: has a mask with a key axis.
        offset, tokens: which keys are the image's.
    """
    assert site.mask is not None and site.mask_axis is not None
    found = values_of(context, site.mask, Range(site.mask_axis, offset, offset + tokens))
    if found.uniform:
        return "uniform"
    hides = context.dtype(site.mask) is torch.bool or found.high - found.low > SMALL
    return None if hides else "small"


HIDES = (
    "its mask could hide image keys, so the key that stands for a cell may be one that the query "
    "must not see"
)


def mask_obstacle(context: GraphContext, site: AttentionSite) -> str | None:
    """Why the mask of a site has no place in pooled attention at all; None if it has."""
    assert site.mask is not None and site.mask_axis is not None
    mask, key = context.shape(site.mask), context.shape(site.key.node)
    if mask is None or key is None or not same(mask[site.mask_axis], key[site.key.tokens]):
        return "the attention mask's key axis does not match the keys"
    return None
