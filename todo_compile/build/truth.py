"""The dense graph with every token's key and value replaced by what stands for it.

    k ─ subsample ─ spread ─┐
    q ──────────────────────┤ attention, as the dense graph spells it
    v ─ subsample ─ spread ─┘

n equal keys weigh as one key of n tokens: this is what a rewritten site shall compute, and nothing
needs to be known of its scale, masks, layout and weights.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

from torch.fx import GraphModule, Node

from todo_compile.build import stand_ins
from todo_compile.errors import PassError
from todo_compile.passes import ops
from todo_compile.passes.find.attention import AttentionSite, fused_operands
from todo_compile.passes.find.sites import find_sites
from todo_compile.passes.graph import BUG, GraphContext

if TYPE_CHECKING:
    from todo_compile.passes.report import SiteReport

QUERIES = 256
"""Rows of fused attention that are computed, evenly over the queries; all are made alike."""


@dataclass(frozen=True, slots=True)
class TrueSite:
    """One site of the truth's graph.

    Args:
        row: of the report.
        site: where it is in the graph.
        pooled: its subsampled keys and values.
        step: every how many queries its result is computed.
    """

    row: SiteReport
    site: AttentionSite
    pooled: tuple[Node, Node]
    step: int

    def operands_in(self, nodes: Mapping[str, Node]) -> tuple[str, str]:
        """Names of keys and values of the same site in a rewritten graph, whose `nodes` those are
        by name."""
        site = self.site
        if site.score is None or site.result is None:
            _, key, value = fused_operands(nodes[site.name])
            return key.name, value.name
        score, result = (
            replace(product, node=nodes[product.node.name]) for product in (site.score, site.result)
        )
        return score.read(site.key.side).name, result.read(site.value.side).name

    def has_result(self, budget: int) -> bool:
        """Whether its result is that of the rewritten site, with scores of at most `budget` bytes.

        It is not where pooled keys weigh less against the text than the tokens that they stand for.
        """
        row, images = self.row, stand_ins.Image.of(self.row)
        assert row.image is not None
        same = len({image.factor for image in images}) == 1
        alone = same and row.key_tokens == sum(image.tokens for image in images)
        fits = self.site.score is None or 2 * 4 * row.score_elements <= budget
        return fits and (alone or row.image.keeps_mass)


def truth_of(
    dense: GraphModule, rows: Mapping[str, SiteReport]
) -> tuple[GraphModule, list[TrueSite]]:
    """The graph, a copy, and its sites in its order.

    Args:
        dense: the graph before the rewrite.
        rows: rewritten sites by name.

    Raises:
        PassError: the dense graph lacks one of the sites.
    """
    module = GraphModule(dense, copy.deepcopy(dense.graph))
    context = GraphContext(module)
    sites = [site for site in find_sites(context)[0] if site.name in rows]
    missing = rows.keys() - {site.name for site in sites}
    if missing:
        raise PassError(f"{', '.join(missing)}: no site of the dense graph.", remedy=BUG)
    steps = [_step(context, site) for site in sites]
    found = [
        TrueSite(rows[site.name], site, _replace(context, site, rows[site.name], step), step)
        for site, step in zip(sites, steps, strict=True)
    ]
    order = {node: index for index, node in enumerate(module.graph.nodes)}
    return module, sorted(found, key=lambda one: order[one.site.output])


def _replace(
    context: GraphContext, site: AttentionSite, row: SiteReport, step: int
) -> tuple[Node, Node]:
    """Let a site read what stands for its keys and values; returns the subsampled ones."""
    images, graph = stand_ins.Image.of(row), context.graph

    def made(source: Node, axis: int, before: Node) -> tuple[Node, Node]:
        subsample = partial(stand_ins.subsample, axis=axis, images=images)
        spread = partial(stand_ins.spread, axis=axis, images=images)
        with graph.inserting_before(before):
            pooled = graph.create_node("call_function", subsample, (source,), name="pooled")
            every = graph.create_node("call_function", spread, (pooled,), name="stand_in")
        return pooled, every

    score = site.anchor if site.score is None else site.score.node
    key, every_key = made(site.key.node, site.key.tokens, score)
    value, every_value = made(site.value.node, site.value.tokens, site.output)
    query = site.operands_now()[0]
    site.replace_key(every_key)
    site.replace_value(every_value)
    if site.mask is not None and site.mask_axis is not None:
        assert site.mask_user is not None
        _, mask = made(site.mask, site.mask_axis, site.mask_user)
        site.mask_user.replace_input_with(site.mask, mask)
    if step > 1:
        some = partial(stand_ins.every, axis=-2, step=step)
        with graph.inserting_before(site.anchor):
            rows = graph.create_node("call_function", some, (query,), name="some_queries")
        ops.set_arg(site.anchor, 0, "query", rows)
    return key, value


def _step(context: GraphContext, site: AttentionSite) -> int:
    """Every how many queries a site is computed: all where they are not made alike."""
    shape = context.shape(site.query.node)
    if site.score is not None or shape is None or not isinstance(shape[-2], int):
        return 1
    mask = ops.tensor_arg(site.anchor, 3, "attn_mask")
    by_query = mask is not None and (context.shape(mask) or ())[-2:-1] not in ((), (1,))
    causal = ops.arg(site.anchor, 5, "is_causal", default=False)
    return 1 if by_query or causal else max(1, shape[-2] // QUERIES)
