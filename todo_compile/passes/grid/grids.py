"""Which axes are image axes: tags set where rows and columns are apart, carried by dataflow.

    conv2d (B, C, H, W)   permute        reshape            linear, view, transpose
    [b][c][H][W]      →   [b][H][W][c] → [b][H·W][c]     →  [b][heads][H·W][d]

A tag appears where an operation minds which positions are neighbours (`spatial`), and follows every
operation whose effect on positions is known. Where it is not known the tag is dropped; a site
without tags is refused later. Nothing here compares a token count with a square root or a channel
count. What is proved of an input's axes late in the graph holds from its beginning: then the graph
is walked once more.

What an operation does to axes is in `passes.operators`; what it proves of them in `spatial`.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch.fx import GraphModule, Node

from todo_compile._torch import is_same_view
from todo_compile.options import Grid, grids_of
from todo_compile.passes import ops
from todo_compile.passes.graph import GraphContext
from todo_compile.passes.grid import effects, spatial
from todo_compile.passes.grid.axes import (
    Axes,
    Dim,
    Unifier,
    concatenated,
    fresh,
    fresh_dim,
    has_roles,
)
from todo_compile.passes.grid.bodies import bodies, inputs_of, returned, returns_its_bodys
from todo_compile.passes.grid.named import named_inputs
from todo_compile.passes.grid.packed import Packed, Walked, packed_inputs
from todo_compile.passes.grid.state import GridState, Shape
from todo_compile.passes.grid.writes import after_write

log = logging.getLogger("todo_compile")


@dataclass(frozen=True, slots=True)
class Call:
    """A graph that a node calls, with the axes of what goes in.

    Args:
        node: that calls it.
        body: the graph.
        seeds: its inputs → their axes, from outside; None where it is not known what goes in.
        grids: its axes.
    """

    node: Node
    body: GraphModule
    seeds: dict[Node, Axes] | None
    grids: GridMap


class GridMap:
    """Axes of every tensor in the graph, by node, and which ranges are the same.

    Args:
        context: the graph.
        seeds: axes of inputs, where they are known from outside (`bodies`).
        unifier: the caller's, where `seeds` are ranges that it knows.
    """

    def __init__(
        self,
        context: GraphContext,
        *,
        seeds: Mapping[Node, Axes] | None = None,
        unifier: Unifier | None = None,
    ) -> None:
        self._seeds = {**named_inputs(context), **(seeds or {})}
        # Where it is known what goes in, no input is taken for packed tokens by its length.
        self._packed = _packed(context) if seeds is None else Packed()
        self._state = GridState(context, unifier or Unifier())
        self.calls: list[Call] = []
        self._walk()
        if late := self._proved_late():
            self._seeds.update(late)
            self._state = GridState(context, self._state.unifier)
            self.calls = []
            self._walk()

    @property
    def context(self) -> GraphContext:
        """The graph."""
        return self._state.context

    @property
    def unifier(self) -> Unifier:
        """Which ranges are the same."""
        return self._state.unifier

    @property
    def axes(self) -> Mapping[Node, Axes]:
        """Axes of every tensor in the graph."""
        return self._state.axes

    def evidence(self, dim: Dim) -> str:
        """What says that `dim` is a grid where neither the graph alone nor the caller does."""
        find, packed = self.unifier.find, self._packed
        known = {
            find(atom.ident)
            for node in (packed.grids if packed.evidence else ())
            for atom in self.axes[node][1]
        }
        return packed.evidence if any(find(a.ident) in known for a in dim) else ""

    def dim(self, node: Node, axis: int) -> Dim | None:
        """Atoms of one axis of a node's output, or None if nothing is known."""
        axes = self.axes.get(node)
        return None if axes is None else axes[axis]

    def _walk(self) -> None:
        for node in self.context.graph.nodes:
            self._visit(node)

    def _proved_late(self) -> dict[Node, Axes]:
        """Inputs whose axes something proves that other operations did not know of yet."""
        state = self._state
        state.settle()
        inputs = [n for n in self.context.graph.nodes if n.op == "placeholder" and n in state.axes]
        named = {n: state.proved(state.axes[n]) for n in inputs}
        found = {n: a for n, a in named.items() if any(atom.role for dim in a for atom in dim)}
        proved = {
            self.unifier.find(a.ident): a.role
            for axes in found.values()
            for dim in axes
            for a in dim
            if a.role
        }
        tensors = state.axes.values() if found else ()
        return found if any(self._lacks(axes, proved) for axes in tensors) else {}

    def _lacks(self, axes: Axes, proved: Mapping[int, str]) -> bool:
        """Whether a tensor was not known to lie on ranges that are `proved`, where it matters.

        That an axis is the batch matters beside rows and columns only, see `batches`.
        """
        find = self.unifier.find
        roles = {proved.get(find(a.ident), "") for dim in axes for a in dim if not a.role}
        return bool(roles & {"H", "W"}) or ("B" in roles and any(has_roles(dim) for dim in axes))

    def _visit(self, node: Node) -> None:
        shape = self.context.shape(node)
        self._state.visit(node)
        inside = self._enter(node)
        self._forget_overwritten(node)
        if shape is not None:
            known = inside[0] if inside and len(inside[0]) == len(shape) else None
            self._state.axes[node] = known or self._tensor(node, shape)
        elif node.op in ("call_function", "call_method"):
            outputs = inside or self._outputs(node)
            if outputs is not None:
                self._state.outputs[node] = outputs

    def _handed_on(self, node: Node) -> Axes | None:
        """Axes of the operand that `node` returns as it is, as ``positive`` does."""
        value = self.context.value(node)
        for operand in node.all_input_nodes:
            if is_same_view(value, self.context.value(operand)):
                return self.axes.get(operand)
        return None

    def _forget_overwritten(self, node: Node) -> None:
        """A write that does not keep every element at its place takes the evidence away.

        ``add_`` keeps them, as does ``add(t, …, out=t)``; another ``out=t`` puts others there.
        """
        memory = self.context.memory
        keeps = ops.elementwise(node) and node.kwargs.get("out") in (None, *node.args)
        if not memory.writes(node) or keeps:
            return
        self._state.axes.update(after_write(self._state, node, memory.written_by(node)))

    def _enter(self, node: Node) -> list[Axes] | None:
        """Follow axes through the graphs that a node calls; axes of its outputs if known."""
        outputs: list[Axes] | None = None
        for body in bodies(self.context.module, node):
            inputs = inputs_of(self.context, node, body)
            seeds = None
            if inputs is not None:
                seeds = {i: a for i, o in inputs.items() if (a := self.axes.get(o)) is not None}
            context = GraphContext(body, token_grids=self.context.token_grids)
            inner = GridMap(context, seeds=seeds, unifier=self.unifier)
            self.calls.append(Call(node, body, seeds, inner))
            if seeds is not None and returns_its_bodys(node):
                outputs = returned(body, inner.axes)
        return outputs

    def _tensor(self, node: Node, shape: Shape) -> Axes:
        """Axes by the rule of the operation, or new ranges where it says nothing."""
        if (seed := self._seeds.get(node)) is not None:
            return seed
        axes = self._by_rule(node, shape)
        if axes is not None and len(axes) == len(shape):
            return axes
        axes = tuple(fresh_dim(size) for size in shape)
        grid = self._packed.grids.get(node)
        if grid is not None and isinstance(shape[1], int):
            parts = [_named_tokens(one) for one in grids_of(grid)]
            return axes[0], parts[0] if len(parts) == 1 else concatenated(parts), axes[2]
        return axes

    def _by_rule(self, node: Node, shape: Shape) -> Axes | None:
        rule = spatial.RULES.get(ops.op_not_in_place(node), effects.through)
        try:
            return rule(self._state, node, shape) or self._handed_on(node)
        except Exception:
            # A spelling that a rule was not written for must not end the compilation.
            log.debug("no grid is followed through %s", node.format_node(), exc_info=True)
            return None

    def _outputs(self, node: Node) -> list[Axes] | None:
        try:
            return effects.outputs(self._state, node)
        except Exception:  # as above
            log.debug("no grid is followed through %s", node.format_node(), exc_info=True)
            return None


def _named_tokens(grid: Grid) -> Dim:
    """Rows and columns of the tokens of one picture, or of a video's frames."""
    *frames, rows, columns = grid
    return (*(fresh(number) for number in frames), fresh(rows, "H"), fresh(columns, "W"))


def _packed(context: GraphContext) -> Packed:
    def walk() -> Walked:
        grids = GridMap(context, seeds={})
        return Walked(grids.axes, grids.unifier)

    return packed_inputs(context, walk)


def dynamic_packed(context: GraphContext) -> list[Any]:
    """Symbolic numbers of tokens that are those of a grid in the call at hand."""
    return _packed(context).symbolic(context)
