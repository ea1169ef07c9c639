"""Find attention: softmax(Q·Kᵀ·scale + bias)·V, however it is spelled.

    scaled_dot_product_attention(q, k, v)                             spelled "sdpa"
    softmax(baddbmm(empty, q, kᵀ, alpha=s)) → bmm(·, v)               spelled "product"
    softmax(einsum("bid,bjd->bij", q, k) * s + bias) → einsum(·, v)   spelled "product"

One match type serves all spellings: what later passes need is the key and value nodes, which of
their axes holds the tokens, and the nodes in between whose shape follows the key tokens. What
multiplies queries, keys and values but is not understood becomes a near miss with its reason, so
that no attention is missing from the report.
"""

from __future__ import annotations

import logging

from torch.fx import Node

from todo_compile.passes import ops
from todo_compile.passes.find.attention import AttentionSite, NearMiss, Operand, fused_operands
from todo_compile.passes.find.masks import Mask, take_mask
from todo_compile.passes.find.search import Search
from todo_compile.passes.find.spelled_out import Unlike, spelled_out
from todo_compile.passes.find.unclaimed import unclaimed
from todo_compile.passes.graph import GraphContext

_log = logging.getLogger("todo_compile")

_TELLING = ("attention", "attn", "transformer_encoder")
"""What is in the names of fused kernels: ``flex_attention``, ``_native_multi_head_attention``,
``_transformer_encoder_layer_fwd``, ``flash_attn::fwd``, …"""


def find_sites(context: GraphContext) -> tuple[list[AttentionSite], list[NearMiss]]:
    """All attention in the graph in execution order, and what nearly was attention."""
    search = Search(context)
    sites: list[AttentionSite] = []
    misses: list[NearMiss] = []
    unlike: dict[Node, Unlike] = {}
    failed: list[Node] = []
    for node in context.graph.nodes:
        try:
            found = _look(search, node)
        except Exception as error:  # noqa: BLE001 - one attention must not cost the others their rewrite
            found = Unlike(_failed(node, error), ())
            failed.append(node)
        if isinstance(found, AttentionSite):
            sites.append(found)
        elif isinstance(found, NearMiss):
            misses.append(found)
        elif found is not None:
            unlike[node] = found
    misses += _rest(search, sites, unlike, failed)
    order = {node: number for number, node in enumerate(context.graph.nodes)}
    return sites, sorted(misses, key=lambda miss: order[miss.node])


def _look(search: Search, node: Node) -> AttentionSite | NearMiss | Unlike | None:
    name = ops.op(node)
    if name == "scaled_dot_product_attention":
        return _fused(search.context, node)
    if name == "softmax":
        return spelled_out(search, node)
    if called := _opaque(node):
        return NearMiss(node, f"{called} is a fused kernel that the passes cannot edit")
    return None


def _rest(
    search: Search, sites: list[AttentionSite], unlike: dict[Node, Unlike], failed: list[Node]
) -> list[NearMiss]:
    """Attention that is no site: one row for each."""
    results = {site.result.node for site in sites if site.result is not None}
    claimed = results | {site.score.node for site in sites if site.score is not None}
    reasons = {node: found.reason for node, found in unlike.items()}
    try:
        misses, known = unclaimed(search, claimed, results, reasons)
    except Exception as error:  # noqa: BLE001 - told in the report
        return [
            NearMiss(node, _failed(node, error)) for node, found in unlike.items() if found.products
        ]
    known |= claimed
    # A softmax beside a product that leads nowhere: scores by other means, or values unlike them.
    for node, found in unlike.items():
        lone = {p.node for p in found.products if search.joins_activations(p)}
        if node in known or lone & known or not (node in failed or (lone and found.reason)):
            continue
        misses.append(NearMiss(node, found.reason))
        known |= lone
    return misses


def _failed(node: Node, error: Exception) -> str:
    _log.debug("The search for attention failed at %s.", node.name, exc_info=error)
    return (
        f"the search failed here (internal error {type(error).__name__}: {error}): "
        "please report it, with the output of -v"
    )


def _opaque(node: Node) -> str:
    """Name of a kernel that holds attention, if `node` calls one."""
    if node.op != "call_function":
        return ""
    # Custom operators are `flash_attn::fwd` or such; functions that Dynamo was told to leave alone
    # are unknown to `ops`.
    called = ops.op(node) or ops.raw_name(node)
    return called if any(part in called.lower() for part in _TELLING) else ""


def _fused(context: GraphContext, node: Node) -> AttentionSite:
    query, key, value = (_last_two(context, operand) for operand in fused_operands(node))
    site = AttentionSite(
        anchor=node, output=node, query=query, key=key, value=value, spelling="sdpa"
    )
    mask = ops.arg(node, 3, "attn_mask")
    if isinstance(mask, Node):
        take_mask(context, site, Mask(mask, len(context.shape(mask) or ()) - 1, node))
    if ops.arg(node, 5, "is_causal", default=False):
        site.refusal = "causal attention: keys are ordered in time, not in space"
    return site


def _last_two(context: GraphContext, node: Node) -> Operand:
    """An operand (…, tokens, channels)."""
    rank = len(context.shape(node) or ())
    return Operand(node, tokens=rank - 2, channels=rank - 1)
