"""What is compared in one heat: the model as it is, plans, the bound, and other methods."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import nn
from torch.fx import Graph, GraphModule

from race_parts import quantised
from race_parts.alone import attentions_beyond
from race_parts.workloads import Workload
from todo_compile.capture.trace import capture, constants_of
from todo_compile.options import PlanOptions
from todo_compile.passes.pipeline import rewrite_graph
from todo_compile.passes.report import Report

DENSE, DEFAULT, BOUND = "dense", "default", "bound"


@dataclass(frozen=True)
class Variant:
    """One of them.

    Attributes:
        name: ``dense``, ``default``, ``bound``, factors a level as ``--factors`` takes them, or
            another method's name.
        plan: what the compiler is told, as `PlanOptions.create` takes it; None leaves the model as
            it is. ``bound`` cuts the keys and values of every self-attention to one token, so that
            no plan can be faster.
        change: of another method: the workload's module under it.
        calls: how many calls are a period of it; a sample is their mean.
    """

    name: str
    plan: Mapping[str, Any] | None = None
    change: Callable[[Workload], nn.Module] | None = None
    calls: int = 1

    @property
    def options(self) -> PlanOptions:
        """The plan, for graphs and files."""
        return PlanOptions(factors=()) if self.plan is None else PlanOptions.create(**self.plan)

    def module(self, work: Workload) -> nn.Module:
        """What runs before the compiler looks at it."""
        return work.module if self.change is None else self.change(work)


def variant(name: str, work: Workload) -> Variant:
    """A variant of ours by its name; ``torchao int8; 4,2`` is both of them."""
    method, _, plan = name.partition("; ")
    if method == quantised.NAME:
        return replace(variant(plan or DENSE, work), name=name, change=quantised.quantised)
    if name == DENSE:
        return Variant(name)
    if name == DEFAULT:
        return Variant(name, {"kv_tokens": work.kv_tokens})
    return Variant(name, {"kv_tokens": 1} if name == BOUND else {"factors": name})


@dataclass(frozen=True)
class Planned:
    """What plans do to a workload's graph.

    Attributes:
        reports: plan → what it does.
        idle: plans that leave everything dense, or do what an earlier one does: measuring them
            would show noise.
        attentions: plan → arguments of the attentions that the bound cuts, see `alone`; none
            without the bound.
    """

    reports: dict[str, Report]
    idle: list[str]
    attentions: dict[str, list[dict[str, Any]]]


def planned(work: Workload, variants: Sequence[Variant]) -> Planned:
    """Capture the graph once, and let each plan rewrite a copy."""
    program = capture(work.module, work.inputs)
    reports: dict[str, Report] = {}
    graphs: dict[str, Graph] = {}
    idle: list[str] = []
    seen: list[Any] = []
    for one in variants:
        if one.plan is None:
            continue
        held = program.graph_module
        copied = GraphModule(held, copy.deepcopy(held.graph))
        report = rewrite_graph(
            copied,
            one.options,
            token_grids=dict(work.token_grids),
            constants=constants_of(program),
        )
        done = [(s.name, s.factor) for s in report.sites if s.action == "rewritten"]
        if not done or (one.change is None and done in seen):
            idle.append(one.name)
            continue
        seen.append(done)
        reports[one.name] = report
        graphs[one.name] = copied.graph
    bound = graphs.pop(BOUND, None)
    found = {} if bound is None else {n: attentions_beyond(g, bound) for n, g in graphs.items()}
    return Planned(reports, idle, found)
