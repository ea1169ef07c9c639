"""Which axes are image axes: tags set where rows and columns are apart, carried by dataflow.

    conv2d (B, C, H, W)   permute        reshape            linear, view, transpose
    [b][c][H][W]      →   [b][H][W][c] → [b][H·W][c]     →  [b][heads][H·W][d]

A tag appears at a convolution, pooling or resize with two spatial axes, and follows every operation
whose effect on positions is known. Where it is not known the tag is dropped; a site without tags is
refused later. Nothing here compares a token count with a square root or a channel count.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch.fx import Node

from todo_compile.passes import ops
from todo_compile.passes.axes import (
    Atom,
    Axes,
    Dim,
    Size,
    Unifier,
    concatenated,
    dim_size,
    fresh,
    fresh_dim,
    plain_size,
    reshape,
    same,
)
from todo_compile.passes.graph import GraphContext
from todo_compile.passes.products import product

_SPATIAL = frozenset(
    [
        "conv2d",
        "convolution",
        "conv_transpose2d",
        "avg_pool2d",
        "max_pool2d",
        "adaptive_avg_pool2d",
        "interpolate",
        "upsample",
        "upsample_nearest2d",
        "upsample_bilinear2d",
        "upsample_bicubic2d",
        "_upsample_nearest_exact2d",
        "_upsample_bilinear2d_aa",
        "pixel_shuffle",
        "pixel_unshuffle",
        "grid_sample",
        "adaptive_max_pool2d",
        "_adaptive_avg_pool2d",
        "upsample_nearest",
        "max_pool2d_with_indices",
    ]
)
_POINTWISE = ops.IDENTITY | ops.UNARY | ops.BINARY | ops.NORMS | {"softmax", "cumsum"}


class GridMap:
    """Axes of every tensor in the graph, by node, and which ranges are the same."""

    def __init__(self, context: GraphContext) -> None:
        self.context = context
        self.unifier = Unifier()
        self.axes: dict[Node, Axes] = {}
        self._lists: dict[Node, list[Axes]] = {}
        self._parts: dict[Hashable, Atom] = {}
        for node in context.graph.nodes:
            self._visit(node)

    def dim(self, node: Node, axis: int) -> Dim | None:
        """Atoms of one axis of a node's output, or None if nothing is known."""
        axes = self.axes.get(node)
        return None if axes is None else axes[axis]

    # One node ---------------------------------------------------------------------------------
    def _visit(self, node: Node) -> None:
        shape = self.context.shape(node)
        if shape is None:
            if node.op in ("call_function", "call_method"):
                self._visit_list(node)
            return
        axes = self._transfer(node, shape) if node.op.startswith("call_") else None
        if axes is None or len(axes) != len(shape):
            axes = tuple(fresh_dim(size) for size in shape)
            if node.op == "placeholder" and len(shape) == 3:
                axes = (axes[0], self._packed(shape[1], axes[1]), axes[2])
        self.axes[node] = axes

    def _packed(self, size: Size, unknown: Dim) -> Dim:
        """Tokens that arrive as (B, N, C): on a grid only if the caller named one for N."""
        grid = self.context.token_grids.get(size) if isinstance(size, int) else None
        return unknown if grid is None else (fresh(grid[0], "H"), fresh(grid[1], "W"))

    def _transfer(self, node: Node, shape: tuple[Size, ...]) -> Axes | None:
        name = ops.op(node)
        if name == "getitem":
            return self._getitem(node, shape)
        if name in _SPATIAL:
            return self._spatial(node, shape, name)
        if name in _POINTWISE:
            return self._broadcast(node, shape)
        first = ops.tensor_arg(node, 0, "input", "self", "query", "tensor")
        axes = self.axes.get(first) if first is not None else None
        if name == "scaled_dot_product_attention" and axes is not None:
            return (*axes[:-1], fresh_dim(shape[-1]))
        if name == "linear" and axes is not None:
            return (*axes[:-1], fresh_dim(shape[-1]))
        if name == "addmm":
            left = ops.tensor_arg(node, 1, "mat1")
            known = self.axes.get(left) if left is not None else None
            return None if known is None else (known[0], fresh_dim(shape[-1]))
        if (pair := product(self.context, node)) is not None:
            return self._product(
                pair.left, pair.right, pair.left_labels, pair.right_labels, pair.out_labels, shape
            )
        if name == "cat":
            return self._cat(node, shape)
        if axes is None or first is None:
            return None
        if (order := ops.permutation(node, len(axes))) is not None:
            return tuple(axes[d] for d in order)
        if name == "view":
            return reshape(axes, shape)
        if name in ("unsqueeze", "squeeze"):
            return self._refit(axes, shape)
        if name in ("expand", "expand_as", "broadcast_to"):
            return self._expand(axes, shape)
        if name in ("slice", "narrow"):
            return self._slice(node, axes, shape)
        if name in ("select", "mean", "sum", "amax", "amin", "any", "all"):
            return self._reduced(node, axes, shape, name)
        if name in ("repeat", "repeat_interleave"):
            return self._where_unchanged(first, axes, shape)
        if name == "conv1d":
            return (
                axes[0],
                fresh_dim(shape[1]),
                axes[2] if same(shape[2], self._size(first, 2)) else fresh_dim(shape[2]),
            )
        if name == "pool_tokens":
            return self._pooled(node, axes, shape)
        return None

    def _size(self, node: Node, axis: int) -> Size:
        shape = self.context.shape(node)
        assert shape is not None
        return shape[axis]

    # Families of operations ---------------------------------------------------------------------
    def _spatial(self, node: Node, shape: tuple[Size, ...], name: str) -> Axes | None:
        source = ops.tensor_arg(node, 0, "input", "self")
        if len(shape) != 4 or source is None:
            return None
        before, before_shape = self.axes.get(source), self.context.shape(source)
        if before is None or before_shape is None or len(before) != 4:
            return (*map(fresh_dim, shape[:2]), (fresh(shape[2], "H"),), (fresh(shape[3], "W"),))
        # That it is convolved is what tells the rows and columns of the source.
        before = (
            _named(before[0], "B", before_shape[0]) if before[0] else (),
            before[1],
            _named(before[2], "H", before_shape[2]),
            _named(before[3], "W", before_shape[3]),
        )
        self.axes[source] = before
        result: list[Dim] = [before[0], fresh_dim(shape[1])]
        for axis, role in ((2, "H"), (3, "W")):
            # A convolution that keeps the side keeps the rows: same positions, new channels.
            kept = name in ("conv2d", "convolution") and same(before_shape[axis], shape[axis])
            known = before[axis]
            own = [a.role for a in known] == [role]
            result.append(known if kept and own else (fresh(shape[axis], role),))
        return tuple(result)

    def _broadcast(self, node: Node, shape: tuple[Size, ...]) -> Axes:
        result: list[Dim | None] = [None] * len(shape)
        norm = ops.op(node) in ops.NORMS
        for operand in ops.operands(node)[: 1 if norm else None]:
            axes, known = self.axes.get(operand), self.context.shape(operand)
            if axes is None or known is None:
                continue
            for back in range(1, min(len(axes), len(shape)) + 1):
                if not same(known[-back], shape[-back]) or not axes[-back]:
                    continue
                current = result[-back]
                result[-back] = (
                    axes[-back] if current is None else self.unifier.unify(current, axes[-back])
                )
        return tuple(
            found if found is not None else fresh_dim(size)
            for found, size in zip(result, shape, strict=True)
        )

    def _product(
        self,
        left: Node,
        right: Node,
        left_labels: Sequence[int | str],
        right_labels: Sequence[int | str],
        out_labels: Sequence[int | str],
        shape: tuple[Size, ...],
    ) -> Axes:
        known: dict[int | str, Dim] = {}
        for operand, labels in ((left, left_labels), (right, right_labels)):
            axes = self.axes.get(operand)
            for label, dim in zip(labels, axes or (), strict=False):
                if dim:
                    known[label] = self.unifier.unify(known[label], dim) if label in known else dim
        return tuple(
            known.get(label) or fresh_dim(size)
            for label, size in zip(out_labels, shape, strict=True)
        )

    def _cat(self, node: Node, shape: tuple[Size, ...]) -> Axes | None:
        parts = [self.axes.get(p) for p in ops.operands(node)]
        axis = ops.normal_dim(ops.arg(node, 1, "dim", "axis", default=0), len(shape))
        known = [p for p in parts if p is not None and len(p) == len(shape)]
        if len(known) != len(parts) or not known:
            return None
        result: list[Dim] = []
        for position in range(len(shape)):
            dims = [p[position] for p in known]
            if position == axis:
                # A part of size 1 has no atoms; as a segment it needs one to be counted.
                result.append(concatenated([d or (fresh(1),) for d in dims]))
                continue
            merged = dims[0]
            for other in dims[1:]:
                merged = self.unifier.unify(merged, other)
            result.append(merged)
        return tuple(result)

    def _refit(self, axes: Axes, shape: tuple[Size, ...]) -> Axes | None:
        """Axes after dimensions of size 1 came or went."""
        kept = [dim for dim in axes if dim]
        result: list[Dim] = []
        for size in shape:
            if same(size, 1):
                result.append(())
            elif kept:
                result.append(kept.pop(0))
            else:
                return None
        return None if kept else tuple(result)

    def _expand(self, axes: Axes, shape: tuple[Size, ...]) -> Axes:
        padded = ((),) * (len(shape) - len(axes)) + axes
        return tuple(
            dim if dim or same(size, 1) else fresh_dim(size)
            for dim, size in zip(padded, shape, strict=True)
        )

    def _where_unchanged(self, source: Node, axes: Axes, shape: tuple[Size, ...]) -> Axes | None:
        before = self.context.shape(source)
        if before is None or len(before) != len(shape):
            return None
        return tuple(
            dim if same(old, new) else fresh_dim(new)
            for dim, old, new in zip(axes, before, shape, strict=True)
        )

    def _slice(self, node: Node, axes: Axes, shape: tuple[Size, ...]) -> Axes | None:
        axis = ops.normal_dim(ops.arg(node, 1, "dim", default=0), len(shape))
        start = ops.arg(node, 2, "start", default=0) or 0
        step = ops.arg(node, 4, "step", default=1) if ops.op(node) == "slice" else 1
        part = self._sliced(axes[axis], start, step, shape[axis])
        taken = (start, shape[axis], step)
        result = list(axes if part == axes[axis] else self._of_items(axes, {axis: taken}))
        result[axis] = part
        return tuple(result)

    def _sliced(self, dim: Dim, start: object, step: object, size: Size) -> Dim:
        """Part of a dimension: whole, a segment of a concatenation, or every step-th position."""
        if len(dim) == 1 and same(dim[0].size, size) and step == 1:
            return dim
        whole: Size = 1
        for atom in dim:
            whole = whole * atom.size
        if step == 1 and same(whole, size):
            return dim
        if len(dim) != 1:
            return fresh_dim(size)
        atom = dim[0]
        if atom.segments and step == 1 and isinstance(start, int):
            return _segment(atom, start, size)
        if not atom.segments and step != 1 and atom.role and not same(size, 1):
            return (fresh(size, atom.role, atom.origin or atom.ident),)
        return fresh_dim(size)

    def _reduced(self, node: Node, axes: Axes, shape: tuple[Size, ...], name: str) -> Axes | None:
        found = ops.arg(node, 1, "dim", "axis")
        if found is None:
            return None
        dims = found if isinstance(found, (list, tuple)) else [found]
        gone = {ops.normal_dim(d, len(axes)) for d in dims if isinstance(d, int)}
        if name == "select":
            index = ops.arg(node, 2, "index")
            axes = self._of_items(axes, dict.fromkeys(gone, index))
        if name != "select" and len(shape) == len(axes):
            return tuple(() if i in gone else dim for i, dim in enumerate(axes))
        kept = tuple(dim for i, dim in enumerate(axes) if i not in gone)
        return kept if len(kept) == len(shape) else None

    def _pooled(self, node: Node, axes: Axes, shape: tuple[Size, ...]) -> Axes:
        axis = int(ops.arg(node, 1, "dim"))
        return tuple(
            fresh_dim(s) if i == axis else d
            for i, (d, s) in enumerate(zip(axes, shape, strict=True))
        )

    def _of_items(self, axes: Axes, cuts: Mapping[int, Hashable]) -> Axes:
        """Axes after part of the batch was taken: rows and columns of those items, not of all.

        So the tokens of one half of a batch are not mistaken for those of the other. Equal parts of
        equally batched tensors are the same items: queries and keys that are sliced alike still
        meet (diffusers' sliced attention).

        Args:
            cuts: axis → what is taken of it; None where that is not known.
        """
        batch = sorted(i for i in cuts if i < len(axes) and _is_batch(axes[i]))
        if not batch:
            return axes
        which: Hashable = None
        if all(cuts[i] is not None for i in batch):
            which = tuple(
                (
                    cuts[i],
                    tuple(
                        (
                            self.unifier.find(a.ident) if a.role == "B" else 0,
                            a.size,
                            bool(a.segments),
                        )
                        for a in axes[i]
                    ),
                )
                for i in batch
            )

        def part(atom: Atom) -> Atom:
            if which is None:
                return fresh(atom.size, atom.role)
            key = (self.unifier.find(atom.ident), which)
            return self._parts.setdefault(key, fresh(atom.size, atom.role))

        return tuple(tuple(part(a) if a.role in ("H", "W") else a for a in dim) for dim in axes)

    # Several outputs ----------------------------------------------------------------------------
    def _visit_list(self, node: Node) -> None:
        """chunk, split, unbind: axes of each part, kept for the getitem that follows."""
        name = ops.op(node)
        source = ops.tensor_arg(node, 0, "input", "self", "tensor")
        axes = self.axes.get(source) if source is not None else None
        value = self.context.value(node)
        if axes is None or not isinstance(value, (list, tuple)):
            return
        if name == "layer_norm" or name in ops.NORMS or name == "dropout":
            self._lists[node] = [axes]
            return
        if name == "unbind":
            axis = ops.normal_dim(ops.arg(node, 1, "dim", default=0), len(axes))
            self._lists[node] = [
                rest[:axis] + rest[axis + 1 :]
                for rest in (self._of_items(axes, {axis: i}) for i in range(len(value)))
            ]
        elif name in ("chunk", "split", "tensor_split"):
            axis = ops.normal_dim(ops.arg(node, 2, "dim", default=0), len(axes))
            parts: list[Axes] = []
            start: Size = 0
            for piece in value:
                size: Size = plain_size(piece.shape[axis])
                parts.append(
                    tuple(
                        self._sliced(d, start, 1, size) if i == axis else d
                        for i, d in enumerate(self._of_items(axes, {axis: (start, size, 1)}))
                    )
                )
                start = start + size
            self._lists[node] = parts

    def _getitem(self, node: Node, shape: tuple[Size, ...]) -> Axes | None:
        source, index = node.args[0], node.args[1]
        if not isinstance(source, Node):
            return None
        if (parts := self._lists.get(source)) is not None:
            return (
                parts[index]
                if isinstance(index, int) and -len(parts) <= index < len(parts)
                else None
            )
        axes = self.axes.get(source)
        if axes is None:
            return None
        indices: list[Any] = list(index) if isinstance(index, tuple) else [index]
        if Ellipsis in indices:
            at = indices.index(Ellipsis)
            missing = len(axes) - sum(i is not None and i is not Ellipsis for i in indices)
            indices[at : at + 1] = [slice(None)] * missing
        result: list[Dim] = []
        kept = [item for item in indices if item is not None]
        cuts = {i: _taken(item, axes[i]) for i, item in enumerate(kept) if not _whole(item)}
        left = list(self._of_items(axes, cuts))
        for item in indices:
            if item is None:
                result.append(())
            elif isinstance(item, slice) and left:
                dim = left.pop(0)
                size = shape[len(result)] if len(result) < len(shape) else None
                if size is None:
                    return None
                result.append(
                    dim
                    if _whole(item)
                    else self._sliced(dim, item.start or 0, item.step or 1, size)
                )
            elif isinstance(item, int) and left:
                left.pop(0)
            else:
                return None
        return (*result, *left)


def _named(dim: Dim, role: str, size: Size) -> Dim:
    """A dimension of unknown meaning becomes rows or columns, still the same range."""
    if not dim:
        return (fresh(size, role),)
    if len(dim) == 1 and not dim[0].role and not dim[0].segments:
        return (replace(dim[0], role=role),)
    return dim


def _whole(item: object) -> bool:
    """Whether an index takes all of an axis in order."""
    return isinstance(item, slice) and (item.start, item.stop, item.step) in (
        (None, None, None),
        (0, None, None),
        (None, None, 1),
        (0, None, 1),
    )


def _taken(item: object, dim: Dim) -> Hashable:
    """What an index takes of a dimension: (start, size, step), or the index itself."""
    if not isinstance(item, slice):
        return item if isinstance(item, (int, Node)) else None
    size = dim_size(dim)
    if isinstance(size, int) and all(isinstance(i, int | None) for i in (item.start, item.stop)):
        start, stop, step = item.indices(size)
        return start, max(stop - start, 0), step
    return None


def _is_batch(dim: Dim) -> bool:
    return any(a.role == "B" or any(_is_batch(s) for s in a.segments) for a in dim)


def _segment(atom: Atom, start: int, size: Size) -> Dim:
    """The segments of a concatenated range that cover [start, start + size), if they do."""
    position: Size = 0
    taken: list[Dim] = []
    covered: Size = 0
    for segment in atom.segments:
        length: Size = 1
        for part in segment:
            length = length * part.size
        if taken or same(position, start):
            taken.append(segment)
            covered = covered + length
            if same(covered, size):
                return taken[0] if len(taken) == 1 else concatenated(taken)
        position = position + length
    return fresh_dim(size)


def grid_of(dim: Dim) -> tuple[Atom, Atom] | None:
    """(slow, fast) image axes if the dimension is exactly one grid of tokens, else None."""
    if len(dim) == 2 and {dim[0].role, dim[1].role} == {"H", "W"}:
        return dim[0], dim[1]
    return None


def image_segment(dim: Dim) -> tuple[Size, Dim] | None:
    """(offset, segment) of the only image segment in a concatenated dimension, else None."""
    if len(dim) != 1 or not dim[0].segments:
        return None
    found: tuple[Size, Dim] | None = None
    position: Size = 0
    for segment in dim[0].segments:
        length: Size = 1
        for part in segment:
            length = length * part.size
        if grid_of(segment) is not None:
            if found is not None:
                return None
            found = (position, segment)
        position = position + length
    return found
