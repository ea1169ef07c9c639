"""A bias or mask that is added to attention scores, and which of its axes goes over the keys.

    scores (B·heads, N, M)  +  mask (1, N, M)     key axis 2: it must lose columns as the keys do
    scores (B·heads, N, M)  +  mask (N, 1)        no key axis: it stays

Bias and mask are one thing here: both are added to the scores.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch.fx import Node

from todo_compile.passes.find.attention import AttentionSite
from todo_compile.passes.graph import GraphContext
from todo_compile.passes.grid.axes import same


@dataclass(frozen=True, slots=True)
class Mask:
    """A tensor added to the scores, its own key axis (< 0: it has none), the node that adds it."""

    node: Node
    axis: int
    user: Node

    @classmethod
    def on_axis(cls, context: GraphContext, node: Node, axis: int, user: Node) -> Mask:
        """A mask added by `user`, whose key axis is `axis`; shapes broadcast from the end."""
        rank, own_rank = len(context.shape(user) or ()), len(context.shape(node) or ())
        return cls(node, own_rank - (rank - axis), user)


def take_mask(context: GraphContext, site: AttentionSite, mask: Mask) -> None:
    """Record the mask of a site; it has a key axis unless its size there is 1."""
    shape = context.shape(mask.node)
    site.mask, site.mask_user = mask.node, mask.user
    if shape is None or mask.axis < 0:
        site.refusal = "the attention mask's shape is not known"
    elif not same(shape[mask.axis], 1):
        site.mask_axis = mask.axis
