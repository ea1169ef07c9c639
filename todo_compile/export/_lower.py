"""Spare torch's ONNX exporter the second tracing of a graph that needs none.

The exporter runs ``run_decompositions`` on every program, which traces it anew: 9 of the 15
seconds that SD1.5 takes. A diffusion model's pre-dispatch graph holds, but for a few composite
spellings, only operators that have an ONNX translation of their own. We write those spellings out
and hand over a program that says it is decomposed already. Where an operator turns out to have no
translation the exporter says so, and the caller takes the slow road.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any, cast

import torch
from torch.export import ExportedProgram

from todo_compile.export._dynamic import fix_reshapes

if TYPE_CHECKING:
    from torch.fx import Graph, Node


class _Decomposed(ExportedProgram):
    """A program in which nothing is left to decompose."""

    def run_decompositions(self, *args: Any, **kwargs: Any) -> ExportedProgram:
        del args, kwargs
        return self


def lowered(program: ExportedProgram) -> ExportedProgram | None:
    """A copy of `program` (weights shared) that the exporter need not decompose.

    Returns:
        None if the graph writes to a tensor in place or holds a sub-graph: then only a real
        decomposition makes it functional.
    """
    if any(_needs_decomposition(node) for node in program.graph.nodes):
        return None
    # The exporter edits the graph in place; the caller's must not change.
    graph = copy.deepcopy(program.graph)
    for node in list(graph.nodes):
        _write_out(graph, node)
    fix_reshapes(graph)
    graph.lint()
    return _Decomposed(
        root=program.graph_module,
        graph=graph,
        graph_signature=program.graph_signature,
        state_dict=program.state_dict,
        range_constraints=program.range_constraints,
        module_call_graph=program.module_call_graph,
        example_inputs=program.example_inputs,
        constants=program.constants,
        verifiers=program.verifiers,
    )


def _needs_decomposition(node: Node) -> bool:
    if node.op == "get_attr":
        return True
    schema = getattr(node.target, "_schema", None)
    return schema is not None and bool(schema.is_mutable)


def _write_out(graph: Graph, node: Node) -> None:
    """Replace a composite spelling by operators that the exporter and its readers know."""
    match node.target:
        case torch.ops.aten.to.dtype:
            _cast(graph, node)
        case torch.ops.aten.squeeze.dim:
            _drop_idle(graph, node)  # ONNX's Squeeze refuses sizes but 1 (PixArt has one of 48)
        case torch.ops.aten.scaled_dot_product_attention.default:
            _widen_mask(graph, node)
        case torch.ops.aten.masked_fill.Scalar | torch.ops.aten.where.self:
            _in_logic(graph, node)
        case _:
            pass


def _drop_idle(graph: Graph, node: Node) -> bool:
    """Leave out a node that changes neither type nor number of axes; whether that was so."""
    source = cast("Node", node.args[0])
    before, after = source.meta["val"], node.meta["val"]
    # The program's signature knows its outputs by name, so those nodes stay.
    is_output = any(user.op == "output" for user in node.users)
    if before.dtype != after.dtype or before.dim() != after.dim() or is_output:
        return False
    node.replace_all_uses_with(source)
    graph.erase_node(node)
    return True


def _cast(graph: Graph, node: Node) -> None:
    """``to.dtype`` → ``_to_copy`` where it changes the type, nothing where it doesn't."""
    if _drop_idle(graph, node):
        return
    node.target = torch.ops.aten._to_copy.default
    node.args, node.kwargs = (node.args[0],), {"dtype": node.meta["val"].dtype}


def _widen_mask(graph: Graph, node: Node) -> None:
    """Give a mask that is the same for all queries a row for each.

    ONNX's ``Attention`` broadcasts masks by its text; onnxruntime (1.32) takes them only with the
    queries' number of rows.
    """
    mask = node.args[3] if len(node.args) > 3 else node.kwargs.get("attn_mask")
    if mask is None:
        return
    mask, query = cast("Node", mask), node.all_input_nodes[0]
    shape, rows = mask.meta["val"].shape, query.meta["val"].shape[-2]
    if len(shape) < 2 or shape[-2] != 1 or rows == 1:
        return
    sizes = [-1] * len(shape)  # as they are, a dynamic batch too
    sizes[-2] = rows
    with graph.inserting_before(node):
        wide = graph.call_function(torch.ops.aten.expand.default, (mask, sizes))
    wide.meta = {**mask.meta, "val": mask.meta["val"].expand(sizes)}
    node.replace_input_with(mask, wide)


def _in_logic(graph: Graph, node: Node) -> None:
    """A choice between truths by "and", "or" and "not": onnxruntime's ``Where`` is of numbers."""
    if node.meta["val"].dtype is not torch.bool or any(user.op == "output" for user in node.users):
        return
    aten = torch.ops.aten

    def call(target: Any, *args: Node) -> Node:
        made = graph.call_function(target, args)
        made.meta = {**node.meta, "val": target(*(arg.meta["val"] for arg in args))}
        return made

    with graph.inserting_before(node):
        if node.target is aten.where.self:
            where, chosen, other = cast("tuple[Node, Node, Node]", node.args)
            elsewhere = call(aten.logical_not.default, where)
            result = call(
                aten.logical_or.default,
                call(aten.logical_and.default, where, chosen),
                call(aten.logical_and.default, elsewhere, other),
            )
        else:
            source, where = cast("tuple[Node, Node]", node.args[:2])
            if node.args[2]:
                result = call(aten.logical_or.default, source, where)
            else:
                elsewhere = call(aten.logical_not.default, where)
                result = call(aten.logical_and.default, source, elsewhere)
    node.replace_all_uses_with(result)
    graph.erase_node(node)
