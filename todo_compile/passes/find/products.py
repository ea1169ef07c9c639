"""Products of two tensors as labelled contractions: matmul, bmm, addmm, baddbmm, einsum alike.

    bmm(a, b)                       →  a: (0, 1, 2)  b: (0, 2, 3)  out: (0, 1, 3)
    einsum("bhid,bhjd->bhij", a, b) →  a: bhid       b: bhjd       out: bhij

With labels, "the key is the operand that carries the softmax axis" holds for every spelling and
every order of operands, and needs no list of patterns.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace
from typing import Any

from torch.fx import Node

from todo_compile.passes import ops
from todo_compile.passes.graph import GraphContext

Label = int | str
# Names of a product's operands; where they come second and third, a bias is the first.
_NAMES = (
    (("input", "self"), ("mat2", "other", "tensor2", "weight")),
    (("batch1", "mat1"), ("batch2", "mat2")),
)
WITH_BIAS = ("baddbmm", "baddbmm_", "addmm", "addmm_")


@dataclass(frozen=True, slots=True)
class Product:
    """A product of two tensors.

    Args:
        node: the node that computes it.
        left, right: operands.
        left_labels, right_labels, out_labels: one label an axis; equal labels are the same index,
            labels absent from `out_labels` are summed over.
        bias: tensor added to the product (``baddbmm`` with beta ≠ 0), else None.
        first: position of `left` among the node's arguments.
    """

    node: Node
    left: Node
    right: Node
    left_labels: tuple[Label, ...]
    right_labels: tuple[Label, ...]
    out_labels: tuple[Label, ...]
    bias: Node | None = None
    first: int = 0

    def replace(self, side: int, new: Node) -> None:
        """Let the node read `new` as its left (0) or right (1) operand; the other one stays."""
        if ops.op(self.node) == "einsum":  # tensors follow the equation, in a list or one by one
            equation, *tensors = self.node.args
            if isinstance(equation, Node):  # each with its labels
                args = list(self.node.args)
                args[2 * side] = new
                self.node.args = tuple(args)
                return
            if len(tensors) == 1 and isinstance(tensors[0], (list, tuple)):
                listed = list(tensors[0])
                listed[side] = new
                self.node.args = (equation, listed)
                return
            tensors[side] = new
            self.node.args = (equation, *tensors)
            return
        name = ops.given_name(self.node, _NAMES[self.first][side])
        ops.set_arg(self.node, self.first + side, name, new)

    def read(self, side: int) -> Node:
        """The left (0) or right (1) operand as the node has it now."""
        if ops.op(self.node) == "einsum":
            return ops.operands(self.node)[side]
        found = ops.tensor_arg(self.node, self.first + side, *_NAMES[self.first][side])
        assert found is not None
        return found

    def side_with(self, label: Label) -> tuple[int, int] | None:
        """(side, axis) if exactly one operand carries `label`, else None."""
        in_left, in_right = label in self.left_labels, label in self.right_labels
        if in_left == in_right:
            return None
        return (
            (0, self.left_labels.index(label)) if in_left else (1, self.right_labels.index(label))
        )

    def operand(self, side: int) -> tuple[Node, tuple[Label, ...]]:
        """An operand with its labels."""
        return (self.left, self.left_labels) if side == 0 else (self.right, self.right_labels)


def product(context: GraphContext, node: Node) -> Product | None:
    """`node` as a `Product`, or None if it is no product of two tensors."""
    name = ops.op(node)
    if name in ("matmul", "bmm"):
        left, right = _operands(node, 0)
        return _matmul(context, node, left, right)
    if name in WITH_BIAS and len(node.args) <= 3:  # an older signature has its numbers between
        left, right = _operands(node, 1)
        bias = ops.tensor_arg(node, 0, "input", "self")
        if ops.arg(node, 3, "beta", default=1) == 0:
            bias = None
        return _matmul(context, node, left, right, bias, first=1)
    if name == "einsum" and len(pairs := einsum_pairs(context, node)) == 1:
        return pairs[0]
    return None


def linear_product(context: GraphContext, node: Node) -> Product | None:
    """``linear(x, w)`` as the product of x with wᵀ, for a w that is computed: linear(q, k)."""
    if ops.op(node) != "linear":
        return None
    left, right = _operands(node, 0)
    pair = _matmul(context, node, left, right)
    if pair is None or len(pair.right_labels) != 2:
        return None
    bias = ops.tensor_arg(node, 2, "bias")
    return replace(pair, right_labels=pair.right_labels[::-1], bias=bias)


def _operands(node: Node, first: int) -> tuple[Node | None, Node | None]:
    left, right = (ops.tensor_arg(node, first + i, *_NAMES[first][i]) for i in (0, 1))
    return left, right


def _matmul(
    context: GraphContext,
    node: Node,
    left: Node | None,
    right: Node | None,
    bias: Node | None = None,
    first: int = 0,
) -> Product | None:
    if left is None or right is None:
        return None
    left_shape, right_shape = context.shape(left), context.shape(right)
    if left_shape is None or right_shape is None or len(left_shape) < 2 or len(right_shape) < 2:
        return None
    rank = max(len(left_shape), len(right_shape))
    batch = tuple(range(rank - 2))
    row, inner, column = rank - 2, rank - 1, rank
    return Product(
        node,
        left,
        right,
        (*batch[rank - len(left_shape) :], row, inner),
        (*batch[rank - len(right_shape) :], inner, column),
        (*batch, row, column),
        bias,
        first,
    )


def einsum_pairs(context: GraphContext, node: Node) -> list[Product]:
    """Every two of the tensors that an einsum multiplies, as if they were multiplied alone."""
    terms, tensors = _equation(node)
    if len(tensors) < 2 or len(terms) != len(tensors) + 1:
        return []
    extra: list[int] = []
    for term, tensor in zip(terms, tensors, strict=False):
        shape = context.shape(tensor)
        if shape is None:
            return []
        extra.append(len(shape) - len(term.replace("...", "")))
        if extra[-1] < 0 or (extra[-1] and "..." not in term):
            return []
    most = max(extra)  # an ellipsis that stands for fewer axes broadcasts: they are the last ones
    labels = [_labels(t, most, e) for t, e in zip(terms, (*extra, most), strict=True)]
    if any(len(set(one)) != len(one) for one in labels):
        return []
    return [
        Product(node, tensors[i], tensors[j], labels[i], labels[j], labels[-1])
        for i, j in itertools.combinations(range(len(tensors)), 2)
    ]


def _equation(node: Node) -> tuple[list[str], list[Node]]:
    """The terms of an einsum, that of the result last, and its tensors; empty if not understood."""
    first = ops.arg(node, 0, "equation")
    if isinstance(first, Node):  # einsum(a, [0, 1], b, [1, 2], [0, 2])
        listed: list[Any] = [a for a in node.args if isinstance(a, (list, tuple))]
        if len(listed) < 3 or not all(isinstance(i, int) for one in listed for i in one):
            return [], []
        letters = ["".join(chr(ord("A") + i) for i in one) for one in listed]
        return letters, [a for a in node.args if isinstance(a, Node)]
    if not isinstance(first, str):
        return [], []
    rest = node.args[1:]
    if len(rest) == 1 and isinstance(rest[0], (list, tuple)):
        rest = tuple(rest[0])
    inputs, arrow, output = first.replace(" ", "").partition("->")
    if not arrow:  # the labels that occur once, in order
        letters = inputs.replace(",", "").replace("...", "")
        output = "..." * ("..." in inputs) + "".join(
            sorted(x for x in letters if letters.count(x) == 1)
        )
    return [*inputs.split(","), output], [t for t in rest if isinstance(t, Node)]


def _labels(term: str, most: int, ellipsis: int) -> tuple[Label, ...]:
    """One label an axis; those that ``...`` stands for are numbers, aligned from the last."""
    before, dots, after = term.partition("...")
    return (*before, *(range(most - ellipsis, most) if dots else ()), *after)
