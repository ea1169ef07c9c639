"""Find attention: softmax(Q·Kᵀ·scale + bias)·V, however it is spelled.

    scaled_dot_product_attention(q, k, v)                             spelled "sdpa"
    softmax(baddbmm(empty, q, kᵀ, alpha=s)) → bmm(·, v)               spelled "product"
    softmax(einsum("bid,bjd->bij", q, k) * s + bias) → einsum(·, v)   spelled "product"

One match type serves all spellings: what later passes need is the key and value nodes, which of
their axes holds the tokens, and the nodes in between whose shape follows the key tokens. A softmax
that looks like attention but is not understood becomes a near miss with its reason, so that no
attention is missing from the report.
"""

from __future__ import annotations

from torch.fx import Node

from todo_compile.passes import ops
from todo_compile.passes.find.attention import AttentionSite, NearMiss, Operand, fused_operands
from todo_compile.passes.find.masks import Mask, take_mask
from todo_compile.passes.find.spelled_out import spelled_out
from todo_compile.passes.graph import GraphContext

_TELLING = ("attention", "attn", "transformer_encoder")
"""What is in the names of fused kernels: ``flex_attention``, ``_native_multi_head_attention``,
``_transformer_encoder_layer_fwd``, ``flash_attn::fwd``, …"""


def find_sites(context: GraphContext) -> tuple[list[AttentionSite], list[NearMiss]]:
    """All attention in the graph in execution order, and what nearly was attention."""
    sites: list[AttentionSite] = []
    misses: list[NearMiss] = []
    for node in context.graph.nodes:
        name = ops.op(node)
        if name == "scaled_dot_product_attention":
            sites.append(_fused(context, node))
        elif name == "softmax":
            found = spelled_out(context, node)
            if isinstance(found, AttentionSite):
                sites.append(found)
            elif found is not None:
                misses.append(found)
        elif called := _opaque(node):
            misses.append(NearMiss(node, f"{called} is a fused kernel that the passes cannot edit"))
    return sites, misses


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
