"""Prove a rewritten graph: every site against subsampling at the site itself, on real weights.

    rewritten:  x ─ pool ─ to_k ─ view ─ k'          dense:  x ─ to_k ─ view ─ k ─ pool ─ k'

The rewritten graph runs once, on seeded inputs. What a site reads from before the place to which
its pooling moved (x, above) also goes through the nodes of the dense graph, on all tokens, and is
subsampled where it enters the attention (`truth`). Compared are keys, values and the result.

Outside of what was compared both graphs must have the same nodes (`difference`): then the rewritten
graph is the dense one with subsampled keys, whatever the passes did to it.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch.fx import GraphModule, Node

from todo_compile.build.difference import check_rest, subsampled
from todo_compile.build.truth import TrueSite, truth_of
from todo_compile.drift.replay import lifted_tensors, run
from todo_compile.errors import PassError
from todo_compile.passes.graph import BUG

if TYPE_CHECKING:
    import torch
    from torch.export import ExportedProgram

    from todo_compile.passes.report import Report


@dataclass(frozen=True, slots=True)
class SiteProof:
    """One rewritten site.

    Args:
        name, module: as in the report.
        error: greatest difference from the truth, of keys, values or result, relative to the
            largest element of the same tensor; None if it cannot be said.
        compared: ``attention``, or ``keys and values`` where the result has no truth
            (`PlanOptions.keep_mass` off) or its dense scores do not fit into memory, or ``nothing``
            with the reason.
    """

    name: str
    module: str
    error: float | None
    compared: str


def dense_copy(program: ExportedProgram) -> GraphModule:
    """The graph of a program as it is now, to compare with when it was rewritten.

    Nodes are copied, tensors are not.
    """
    return GraphModule(program.graph_module, copy.deepcopy(program.graph))


def prove_sites(
    program: ExportedProgram,
    dense: GraphModule,
    report: Report,
    args: Sequence[torch.Tensor],
    *,
    tolerance: float,
    budget: int,
) -> tuple[SiteProof, ...]:
    """Compare every rewritten site of a program with subsampling at the site.

    Args:
        program: rewritten, with real weights.
        dense: its `dense_copy` from before.
        report: of the rewrite.
        args: inputs of the program.
        tolerance: greatest error of a site.
        budget: bytes that one site's dense scores may take where attention is spelled out.

    Raises:
        PassError: a site differs by more, or the graphs differ beside the sites.
    """
    rows = {row.name: row for row in report.sites if row.action == "rewritten"}
    if not rows:
        return ()
    truth, sites = truth_of(dense, rows)
    outputs = frozenset(one.site.output.name for one in sites)
    own = subsampled(dense, program.graph_module, outputs)
    check_rest(dense, program.graph_module, own, outputs)
    constants = lifted_tensors(program)
    inputs = (n.name for n in program.graph.nodes if n.op == "placeholder")
    names = [name for name in inputs if name not in constants]
    values = {**constants, **dict(zip(names, args, strict=True))}
    nodes = {n.name: n for n in program.graph.nodes}
    shared = nodes.keys() - own
    tasks = [_Task.of(one, shared, one.operands_in(nodes), budget) for one in sites]
    found = _compare_all(program.graph_module, truth, tasks, values)
    for one in found:
        if one.error is not None and not one.error <= tolerance:  # also for NaN
            raise PassError(
                f"The rewrite of {one.module or one.name} is wrong: compared by "
                f"{one.compared}, it differs from subsampling at the site by {one.error:.1e} of "
                f"the largest element (allowed {tolerance:g}).",
                remedy=f"Nothing was written. {BUG}",
            )
    return found


@dataclass(frozen=True, slots=True)
class _Task:
    """What it takes to compare a site.

    Args:
        true: the site in the truth's graph.
        wanted: its nodes there that are computed, to the `last` of them.
        reads: names of the values that these read, which both graphs share.
        operands: names of the rewritten keys and values.
        last: the result's name; None if keys and values alone are compared.
    """

    true: TrueSite
    wanted: frozenset[Node]
    reads: frozenset[str]
    operands: tuple[str, str]
    last: str | None

    @staticmethod
    def of(true: TrueSite, shared: set[str], operands: tuple[str, str], budget: int) -> _Task:
        output = true.site.output
        whole = true.has_result(budget)
        wanted: set[Node] = set()
        reads: set[str] = set()
        pending = [output] if whole else list(true.pooled)
        while pending:
            node = pending.pop()
            if node.name in shared and node is not output:
                reads.add(node.name)
            elif node not in wanted:
                wanted.add(node)
                pending += node.all_input_nodes
        last = output.name if whole else None
        return _Task(true, frozenset(wanted), frozenset(reads), operands, last)


def _compare_all(
    module: GraphModule, truth: GraphModule, tasks: Sequence[_Task], values: Mapping[str, Any]
) -> tuple[SiteProof, ...]:
    """Run the rewritten graph up to its last site; every site is compared when it is reached."""
    by_output = {task.true.site.output.name: task for task in tasks}
    last_use: dict[str, str] = {}  # value → the site that reads it last
    for output, task in by_output.items():
        last_use |= dict.fromkeys((*task.reads, *task.operands), output)
    kept: dict[str, tuple[Any, int]] = {}
    found: list[SiteProof] = []

    def look(node: Node, value: Any) -> None:
        if node.name in last_use:
            kept[node.name] = value, _version(value)
        if node.name in by_output:
            found.append(_compare(truth, by_output[node.name], kept, value))
            for name in [n for n in kept if last_use[n] == node.name]:
                del kept[name]

    run(module, module.graph, values, look, last=list(by_output)[-1])
    return tuple(found)


def _compare(
    truth: GraphModule, task: _Task, kept: Mapping[str, tuple[Any, int]], output: torch.Tensor
) -> SiteProof:
    row, step = task.true.row, task.true.step
    if any(_version(kept[name][0]) != kept[name][1] for name in task.reads):
        reason = "nothing: what it reads is written in place"
        return SiteProof(row.name, row.module, None, reason)
    pooled: dict[Node, torch.Tensor] = {}

    def look(node: Node, value: Any) -> None:
        if node in task.true.pooled:
            pooled[node] = value

    known = {name: kept[name][0] for name in task.reads}
    expected = run(truth, truth.graph, known, look, task.wanted, task.last)
    errors = [
        relative(kept[name][0], pooled[node])
        for name, node in zip(task.operands, task.true.pooled, strict=True)
    ]
    if task.last is not None:
        errors.append(relative(output[..., ::step, :] if step > 1 else output, expected))
    # NaN is worse than any number, and `max` would lose it.
    worst = max(errors, key=lambda error: (math.isnan(error), error))
    compared = "attention" if task.last is not None else "keys and values"
    return SiteProof(row.name, row.module, worst, compared)


def relative(got: torch.Tensor, expected: torch.Tensor) -> float:
    """Greatest difference, relative to the largest element expected; ∞ for other shapes."""
    if got.shape != expected.shape:
        return math.inf
    difference = float((got.double() - expected.double()).abs().max())
    scale = float(expected.double().abs().max())
    return difference / scale if scale else difference


def _version(value: Any) -> int:
    """How often the memory of a tensor was written."""
    return int(getattr(value, "_version", 0))
