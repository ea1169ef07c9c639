"""The table: canonical operator → its effect on axes, in both dialects.

A new operator is one entry here: grids are followed through it and poolings move above it. What is
not here drops all it is told of axes and stops every pooling, which is always correct. Operations
that mind which positions are neighbours (`grid.spatial`) are no business of this table.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch.fx import Node

from todo_compile.passes import ops
from todo_compile.passes.families import BINARY, IDENTITY, LINEAR, NORMS, ROTATED, UNARY
from todo_compile.passes.find.products import product
from todo_compile.passes.graph import GraphContext
from todo_compile.passes.grid.axes import same
from todo_compile.passes.operators.effect import Effect, Shape, Source, always, never
from todo_compile.passes.operators.parts import indexed, pieces, selected, sliced
from todo_compile.passes.operators.written import copied_into, scattered

_VECTOR_NORMS = ("linalg_vector_norm", "norm")
"""Reductions whose second argument is the order."""

Rule = Callable[[GraphContext, Node, Shape], Effect | None]
"""(graph, node, shape of its result) → its effect; None where nothing can be said of it."""


def effect_of(context: GraphContext, node: Node) -> Effect | None:
    """What `node` does to axes, or None if that is not known."""
    rule, shape = TABLE.get(ops.op_not_in_place(node)), context.shape(node)
    return None if rule is None or shape is None else rule(context, node, shape)


def effects_of_outputs(context: GraphContext, node: Node) -> list[Effect] | None:
    """The effect of each output of a node with several, or None if that is not known."""
    source, name = source_of(node), ops.op(node)
    if name in ROTATED:
        return _rotated(context, node)
    before = context.shape(source) if source is not None else None
    values = context.value(node)
    if source is None or before is None or not isinstance(values, (list, tuple)):
        return None
    if name in NORMS or name == "dropout":  # ATen's also return statistics, or the mask
        return [Effect((_whole(source, before),))]
    return pieces(node, source, before, values)


def _rotated(context: GraphContext, node: Node) -> list[Effect] | None:
    """Query and key by a table of angles: only channels move. No pooling goes above it: the table
    would have to be pooled too."""
    operands = ops.tensor_arg(node, 0, "xq", "q"), ops.tensor_arg(node, 1, "xk", "k")
    found: list[Effect] = []
    for operand in operands:
        shape = context.shape(operand) if operand is not None else None
        if operand is None or not shape:
            return None
        found.append(Effect((Source(operand, (*range(len(shape) - 1), None)),)))
    return found


def source_of(node: Node) -> Node | None:
    """The tensor that `node` works on, its first argument."""
    return ops.tensor_arg(node, 0, "input", "self", "query", "tensor")


def _whole(source: Node, shape: Sequence[object]) -> Source:
    return Source(source, tuple(range(len(shape))))


def _of_source(
    make: Callable[[GraphContext, Node, Node, Shape, Shape], Effect | None],
) -> Rule:
    """A rule that is given the first operand and its shape too."""

    def rule(context: GraphContext, node: Node, shape: Shape) -> Effect | None:
        source = source_of(node)
        before = context.shape(source) if source is not None else None
        if source is None or before is None:
            return None
        return make(context, node, source, before, shape)

    return rule


# Axes in another order or of another size ---------------------------------------------------------
def _permuted(
    context: GraphContext, node: Node, source: Node, before: Shape, shape: Shape
) -> Effect | None:
    """permute, transpose, …: the axes in another order."""
    del context, shape
    order = ops.permutation(node, len(before))
    return None if order is None else Effect((Source(source, tuple(order)),), rule="permute")


def _reshaped(
    context: GraphContext, node: Node, source: Node, before: Shape, shape: Shape
) -> Effect:
    """view, reshape, flatten: elements stay in their row-major order."""
    del before, shape
    bits = context.dtype(source) is not context.dtype(node)
    stuck = f"{node.name} reads the bytes as another dtype" if bits else ""
    return Effect((Source(source, ()),), "reshapes", "view", stuck=stuck)


def _squeezed(
    context: GraphContext, node: Node, source: Node, before: Shape, shape: Shape
) -> Effect | None:
    """squeeze, unsqueeze: dimensions of size 1 come or go."""
    del context
    kept = [i for i, size in enumerate(before) if not same(size, 1)]
    if len(kept) != sum(not same(size, 1) for size in shape):
        return None
    left = iter(kept)
    axes = tuple(None if same(size, 1) else next(left) for size in shape)
    every = ops.op(node) == "squeeze" and ops.arg(node, 1, "dim") is None
    stuck = f"{node.name} drops every axis of size 1, which pooling may make one more of"
    return Effect((Source(source, axes),), rule="squeeze", stuck=stuck if every else "")


def _expanded(
    context: GraphContext, node: Node, source: Node, before: Shape, shape: Shape
) -> Effect:
    """expand, broadcast_to: axes of size 1 become new ranges, the others stay."""
    del context, node
    return Effect((_aligned(source, before, shape),), rule="expand")


def _repeated(
    context: GraphContext, node: Node, source: Node, before: Shape, shape: Shape
) -> Effect | None:
    """repeat, repeat_interleave: what has its size still is what it was."""
    del context
    if len(before) != len(shape) or isinstance(ops.arg(node, 1, "repeats"), Node):
        return None  # as often as data says: the same size can hold other positions
    return Effect((_aligned(source, before, shape),))


def _padded(
    context: GraphContext, node: Node, source: Node, before: Shape, shape: Shape
) -> Effect | None:
    """pad: sides that get nothing stay, the others are new ranges."""
    del context
    amounts = ops.arg(node, 1, "pad")
    if not isinstance(amounts, (list, tuple)) or len(before) != len(shape):
        return None
    last, gets = len(shape) - 1, [any(amounts[i : i + 2]) for i in range(0, len(amounts), 2)]
    stays = (i < len(shape) - len(gets) or not gets[last - i] for i in range(len(shape)))
    return Effect((Source(source, tuple(i if kept else None for i, kept in enumerate(stays))),))


def _mirrored(
    context: GraphContext, node: Node, source: Node, before: Shape, shape: Shape
) -> Effect:
    """flip: some axes backwards."""
    del context, before
    turned = frozenset(ops.normal_dim(d, len(shape)) for d in ops.int_list(node, 1, "dims"))
    return Effect((_whole(source, shape),), "mirrors", mirrored=turned)


def _reduced(
    context: GraphContext, node: Node, source: Node, before: Shape, shape: Shape
) -> Effect | None:
    """mean, sum, any, …: the reduced axes are gone, or of size 1 (``keepdim``).

    Over channels every token is reduced by itself.
    """
    del context
    name = ops.op(node)
    found = ops.arg(node, 2 if name in _VECTOR_NORMS else 1, "dim", "axis")
    if found is None:
        return None
    dims = found if isinstance(found, (list, tuple)) else [found]
    gone = {ops.normal_dim(d, len(before)) for d in dims if isinstance(d, int)}
    axes = tuple(None if i in gone else i for i in range(len(before)))
    if len(shape) != len(before):
        axes = tuple(i for i in axes if i is not None)
    if len(axes) != len(shape):
        return None
    return Effect(
        (Source(source, axes),),
        rule="token-wise",
        linear=always if name in ("mean", "sum") else never,
    )


def _paired(context: GraphContext, node: Node, source: Node, before: Shape, shape: Shape) -> Effect:
    """view_as_complex, view_as_real: pairs of the last axis become one number, or the reverse."""
    del context, node
    kept = min(len(before), len(shape))
    axes = tuple(i if i < kept else None for i in range(len(shape)))
    return Effect((Source(source, axes),), rule="token-wise")


def _pooled(context: GraphContext, node: Node, source: Node, before: Shape, shape: Shape) -> Effect:
    """pool_tokens: the pooled axis holds other tokens than before."""
    del context, before
    axis = int(ops.arg(node, 1, "dim"))
    return Effect((Source(source, tuple(None if i == axis else i for i in range(len(shape)))),))


# Element by element -------------------------------------------------------------------------------
def _aligned(node: Node, own: Shape, shape: Shape) -> Source:
    """An operand that broadcasts: its axes are the last ones, those of another size are none."""
    ahead = len(shape) - len(own)
    return Source(
        node,
        tuple(
            i - ahead if i >= ahead and same(own[i - ahead], size) else None
            for i, size in enumerate(shape)
        ),
    )


def _copied(context: GraphContext, node: Node, source: Node, before: Shape, shape: Shape) -> Effect:
    """Casts, copies, inactive dropout: values stay."""
    del context
    stuck = f"{node.name} drops values at random" if ops.is_dropout_active(node) else ""
    if any(isinstance(a, Node) for a in [*node.args[1:], *node.kwargs.values()]):
        stuck = stuck or f"{node.name} takes its dtype from another tensor"
    return Effect((_aligned(source, before, shape),), rule="identity", stuck=stuck)


def _pointwise(context: GraphContext, node: Node, shape: Shape) -> Effect:
    """add, gelu, …: operands that broadcast are aligned from the last axis."""
    shapes = {operand: context.shape(operand) for operand in dict.fromkeys(ops.operands(node))}
    sources = tuple(_aligned(n, own, shape) for n, own in shapes.items() if own is not None)
    return Effect(sources, rule="token-wise", linear=lambda tokens: _is_linear(node, tokens))


def _is_linear(node: Node, tokens: Sequence[Node]) -> bool:
    """A sum is linear in all operands, a product in one, if it occurs once."""
    name = ops.op(node)
    if name in ("add", "sub", "rsub", "neg"):
        return True
    alone = len(tokens) == 1 and ops.operands(node).count(tokens[0]) == 1
    if name == "div":
        rounds = ops.arg(node, 2, "rounding_mode") is not None
        return alone and tokens[0] is ops.arg(node, 0, "input", "self") and not rounds
    return name == "mul" and alone


def _normed(context: GraphContext, node: Node, source: Node, before: Shape, shape: Shape) -> Effect:
    """layer_norm, rms_norm, normalize over channels: every token alone."""
    del context, before
    if ops.op(node) == "normalize":
        mixed = ops.normal_dim(ops.arg(node, 2, "dim", default=1), len(shape))
        closed = {mixed: f"{node.name} divides by the length over tokens"}
        return Effect((_whole(source, shape),), rule="token-wise", linear=never, closed=closed)
    over = ops.arg(node, 1, "normalized_shape")
    why = f"{node.name} normalises over tokens"
    if ops.op(node) not in ("layer_norm", "rms_norm") or not isinstance(over, (list, tuple)):
        return Effect((_whole(source, shape),), rule="token-wise", stuck=why)
    closed = dict.fromkeys(range(len(shape) - len(over), len(shape)), why)
    return Effect((_whole(source, shape),), rule="token-wise", linear=never, closed=closed)


def _along(context: GraphContext, node: Node, source: Node, before: Shape, shape: Shape) -> Effect:
    """softmax, cumsum: positions stay, each result depends on others of its axis."""
    del context, node
    return Effect((_aligned(source, before, shape),))


# Products -----------------------------------------------------------------------------------------
def _projected(
    context: GraphContext, node: Node, source: Node, before: Shape, shape: Shape
) -> Effect:
    """linear: new channels, everything else stays. P(Wx + b) = W(Px) + b."""
    del context, before
    axes = (*range(len(shape) - 1), None)
    rule = "linear" if ops.op(node) in LINEAR else ""  # of attention: the query's axes
    return Effect((Source(source, axes),), rule=rule)


def _addmm(context: GraphContext, node: Node, shape: Shape) -> Effect | None:
    """addmm: a linear whose bias comes first."""
    del context, shape
    left = ops.tensor_arg(node, 1, "mat1")
    return None if left is None else Effect((Source(left, (0, None)),))


def _conv1d(
    context: GraphContext, node: Node, source: Node, before: Shape, shape: Shape
) -> Effect | None:
    """conv1d: on (B, C, N) with as many positions after it, tokens stay where they are."""
    if len(shape) != 3:  # it also takes (C, N)
        return None
    weight = ops.tensor_arg(node, 1, "weight")
    kernel = context.shape(weight) if weight is not None else None
    stays = same(shape[2], before[2])
    closed: dict[int, str] = {}
    if kernel is None or not same(kernel[-1], 1) or not stays:
        closed[2] = f"{node.name} mixes, strides or pads the tokens"
    axes = (0, None, 2 if stays else None)
    return Effect((Source(source, axes),), rule="linear", closed=closed)


def _product(context: GraphContext, node: Node, shape: Shape) -> Effect | None:
    """matmul, bmm, einsum: an axis comes from the operands that carry its label."""
    del shape
    pair = product(context, node)
    if pair is None:
        return None
    sources = tuple(
        Source(
            operand,
            tuple(labels.index(label) if label in labels else None for label in pair.out_labels),
        )
        for operand, labels in ((pair.left, pair.left_labels), (pair.right, pair.right_labels))
    )
    weight = ops.op(node) == "matmul" and len(pair.right_labels) == 2
    stuck = "" if weight else f"{node.name} is no product with a weight"
    closed = {len(pair.out_labels) - 1: f"{node.name} mixes the pooled axis"}
    return Effect(sources, rule="linear", stuck=stuck, closed=closed)


# Several tensors as one ---------------------------------------------------------------------------
def _joined(context: GraphContext, node: Node, shape: Shape) -> Effect | None:
    """cat: segments along the joined axis, one range along every other."""
    parts = ops.operands(node)
    axis = ops.normal_dim(ops.arg(node, 1, "dim", "axis", default=0), len(shape))
    if not parts or any(len(context.shape(part) or ()) != len(shape) for part in parts):
        return None
    stuck = "" if len(set(parts)) == len(parts) else f"{node.name} joins a tensor with itself"
    sources = tuple(_whole(part, shape) for part in parts)
    return Effect(sources, "joins", "concatenation", stuck=stuck, joined=axis)


def _stacked(context: GraphContext, node: Node, shape: Shape) -> Effect | None:
    """stack: a new axis, one range along every other. (Folded in later, it is no grid's part.)"""
    parts = ops.operands(node)
    axis = ops.normal_dim(ops.arg(node, 1, "dim", default=0), len(shape))
    if not parts or any(len(context.shape(part) or ()) != len(shape) - 1 for part in parts):
        return None
    axes = tuple(None if i == axis else i - (i > axis) for i in range(len(shape)))
    return Effect(tuple(Source(part, axes) for part in parts))


TABLE: dict[str, Rule] = {
    name: rule
    for names, rule in (
        # The names that `ops.permutation` knows.
        (
            ("permute", "transpose", "t", "T", "mT", "adjoint", "movedim", "moveaxis"),
            _of_source(_permuted),
        ),
        (("view",), _of_source(_reshaped)),
        (("squeeze", "unsqueeze"), _of_source(_squeezed)),
        (("expand", "expand_as", "broadcast_to"), _of_source(_expanded)),
        (("repeat", "repeat_interleave"), _of_source(_repeated)),
        (("pad", "constant_pad_nd"), _of_source(_padded)),
        (("flip",), _of_source(_mirrored)),
        (("mean", "sum", "amax", "amin", "any", "all", *_VECTOR_NORMS), _of_source(_reduced)),
        (("view_as_complex", "view_as_real"), _of_source(_paired)),
        (("pool_tokens",), _of_source(_pooled)),
        (IDENTITY, _of_source(_copied)),
        (UNARY | BINARY, _pointwise),
        (("copy",), copied_into),
        (("slice_scatter", "select_scatter"), scattered),
        (NORMS, _of_source(_normed)),
        (("softmax", "cumsum"), _of_source(_along)),
        (LINEAR | {"scaled_dot_product_attention"}, _of_source(_projected)),
        (("addmm",), _addmm),
        (("conv1d",), _of_source(_conv1d)),
        # The names that `products.product` knows.
        (("matmul", "bmm", "baddbmm", "einsum"), _product),
        (("cat",), _joined),
        (("stack",), _stacked),
        (("slice", "narrow"), _of_source(sliced)),
        (("select",), _of_source(selected)),
        (("getitem",), _of_source(indexed)),
    )
    for name in names
}
"""Canonical operator → rule; no operator has two."""
