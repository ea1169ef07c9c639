"""What a found attention is, in whatever spelling: its operands and how they are replaced.

    query ──┐
    key ────┤ scores (+ mask) ─ softmax ─┐
    value ──┴────────────────────────────┴─ output

Later passes replace the key and the value; the query stays.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from torch.fx import Node

from todo_compile.passes import ops
from todo_compile.passes.find.products import Product


@dataclass(frozen=True, slots=True)
class Operand:
    """Query, key or value as it enters the site.

    Args:
        node: the tensor.
        tokens, channels: its token and channel axis.
        side: left (0) or right (1) in its product, for spelled-out attention.
    """

    node: Node
    tokens: int
    channels: int
    side: int = 0


@dataclass(eq=False, slots=True)
class AttentionSite:
    """One attention.

    Args:
        anchor: the SDPA node, or the softmax of a spelled-out attention.
        output: node that holds the result.
        query, key, value: operands as they enter.
        mask: additive bias or mask on the scores, or the condition under which they are replaced by
            a number, with its key axis (None: no such axis).
        scores: nodes from the first product to the second whose shape has a key axis, with that
            axis; empty for SDPA.
        placeholder: uninitialised ``baddbmm`` input that must keep the shape of the scores.
        score, result: the query-by-key and attention-by-value products of a spelled-out attention.
        mask_user: the node that adds the mask, or replaces scores by it.
        spelling: "sdpa" or "product".
        refusal: why the site must not be rewritten, known from its structure alone.
    """

    anchor: Node
    output: Node
    query: Operand
    key: Operand
    value: Operand
    spelling: Literal["sdpa", "product"]
    mask: Node | None = None
    mask_axis: int | None = None
    scores: list[tuple[Node, int]] = field(default_factory=list[tuple[Node, int]])
    placeholder: tuple[Node, int] | None = None
    score: Product | None = None
    result: Product | None = None
    mask_user: Node | None = None
    refusal: str | None = None

    @property
    def name(self) -> str:
        """Name of the anchor node, unique in its graph."""
        return self.anchor.name

    def operands_now(self) -> tuple[Node, Node, Node]:
        """Query, key and value as the graph has them now, after any rewriting."""
        if self.score is None or self.result is None:
            return fused_operands(self.anchor)
        return (
            self.score.read(self.query.side),
            self.score.read(self.key.side),
            self.result.read(self.value.side),
        )

    def replace_key(self, node: Node) -> None:
        """Let the site read its keys from `node`; the query stays, even if it was the same node."""
        if self.score is None:
            ops.set_arg(self.anchor, 1, "key", node)
        else:
            self.score.replace(self.key.side, node)

    def replace_value(self, node: Node) -> None:
        """Let the site read its values from `node`."""
        if self.result is None:
            ops.set_arg(self.anchor, 2, "value", node)
        else:
            self.result.replace(self.value.side, node)


@dataclass(frozen=True, slots=True)
class NearMiss:
    """A softmax between products that was not understood as attention."""

    node: Node
    reason: str


def fused_operands(node: Node) -> tuple[Node, Node, Node]:
    """Query, key and value of a fused attention node, given by position or by name."""
    query, key, value = (
        ops.tensor_arg(node, i, n) for i, n in enumerate(("query", "key", "value"))
    )
    assert query is not None and key is not None and value is not None
    return query, key, value
