"""Products of two tensors as labelled contractions: matmul, bmm, baddbmm and einsum alike.

    bmm(a, b)                       →  a: (0, 1, 2)  b: (0, 2, 3)  out: (0, 1, 3)
    einsum("bhid,bhjd->bhij", a, b) →  a: bhid       b: bhjd       out: bhij

With labels, "the key is the operand that carries the softmax axis" holds for every spelling and
every order of operands, and needs no list of patterns.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch.fx import Node

from todo_compile.passes import ops
from todo_compile.passes.graph import GraphContext

Label = int | str
# Names of a product's operands by position; ``baddbmm`` has its bias first.
_NAMES = (("input", "self"), ("mat2", "other", "tensor2", "batch1"), ("batch2",))


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
            if len(tensors) == 1 and isinstance(tensors[0], (list, tuple)):
                listed = list(tensors[0])
                listed[side] = new
                self.node.args = (equation, listed)
                return
            tensors[side] = new
            self.node.args = (equation, *tensors)
            return
        name = ops.given_name(self.node, _NAMES[self.first + side])
        ops.set_arg(self.node, self.first + side, name, new)

    def read(self, side: int) -> Node:
        """The left (0) or right (1) operand as the node has it now."""
        if ops.op(self.node) == "einsum":
            return ops.operands(self.node)[side]
        found = ops.tensor_arg(self.node, self.first + side, *_NAMES[self.first + side])
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
        left, right = (
            ops.tensor_arg(node, 0, "input", "self"),
            ops.tensor_arg(node, 1, "mat2", "other", "tensor2"),
        )
        return _matmul(context, node, left, right)
    if name == "baddbmm":
        left, right = ops.tensor_arg(node, 1, "batch1"), ops.tensor_arg(node, 2, "batch2")
        bias = ops.tensor_arg(node, 0, "input", "self")
        if ops.arg(node, 3, "beta", default=1) == 0:
            bias = None
        return _matmul(context, node, left, right, bias, first=1)
    if name == "einsum":
        return _einsum(context, node)
    return None


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


def _einsum(context: GraphContext, node: Node) -> Product | None:
    equation = ops.arg(node, 0, "equation")
    found = (
        node.args[1]
        if len(node.args) == 2 and isinstance(node.args[1], (list, tuple))
        else node.args[1:]
    )
    tensors = [t for t in found if isinstance(t, Node)]
    if not isinstance(equation, str) or len(tensors) != 2:
        return None
    inputs, _, output = equation.replace(" ", "").partition("->")
    terms = inputs.split(",")
    shapes = [context.shape(t) for t in tensors]
    if len(terms) != 2 or not output or None in shapes:
        return None
    extra = [len(s or ()) - len(t.replace("...", "")) for t, s in zip(terms, shapes, strict=True)]
    ellipsis = [e for e, t in zip(extra, terms, strict=True) if "..." in t]
    if len(set(ellipsis)) > 1:  # one operand broadcasts against the other
        return None
    count = ellipsis[0] if ellipsis else 0
    labels = [_labels(t, count) for t in (*terms, output)]
    if any(len(set(one)) != len(one) for one in labels):
        return None
    if any(len(one) != len(s or ()) for one, s in zip(labels, shapes, strict=False)):
        return None
    return Product(node, tensors[0], tensors[1], labels[0], labels[1], labels[2])


def _labels(term: str, ellipsis: int) -> tuple[Label, ...]:
    """One label an axis; those that ``...`` stands for are numbers."""
    before, dots, after = term.partition("...")
    return (*before, *(range(ellipsis) if dots else ()), *after)
