"""Drift: how far downsampled keys and values move a model's output, in total and site by site.

    meter = DriftMeter(module, args)            one capture
    step = meter.dense(args)                    one dense pass
    step.total(options)                         relative error of the output, all sites rewritten
    step.single(name, factor)                   the same with that site alone, and its own error

The relative error of y against the dense y₀ is ‖y − y₀‖₂ / ‖y₀‖₂ over all elements.

One dense pass serves all measurements of a step. It keeps every value that crosses from the nodes
before a site to those after it; a measurement computes the site with pooled keys and values and
then only what depends on it. So a single site near the end of the model costs next to nothing, and
the result is exact: it equals running the graph in which that site alone is rewritten, pooled at
the site (hoisting changes rounding only). With ``output=False`` only the attention itself is
computed: the local error, for all sites together about the price of their attentions.
"""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
from torch.export import ExportedProgram
from torch.fx import GraphModule, Node

from todo_compile.capture.trace import capture
from todo_compile.drift.replay import descendants, first_tensor, lifted_tensors, run, wanted_nodes
from todo_compile.options import Factor, PlanOptions, Sampling, TokenGrid
from todo_compile.passes.find.sites import find_sites
from todo_compile.passes.graph import GraphContext
from todo_compile.passes.memory import last_writer
from todo_compile.passes.pipeline import rewrite_graph
from todo_compile.passes.report import Report, SiteReport

if TYPE_CHECKING:
    from torch import nn


def relative_error(got: torch.Tensor, dense: torch.Tensor) -> float:
    """‖got − dense‖₂ / ‖dense‖₂; 0 if both are zero."""
    difference = (got.double() - dense.double()).norm().item()
    norm = dense.double().norm().item()
    return difference / norm if norm else (0.0 if difference == 0 else float("inf"))


@dataclass(frozen=True, slots=True)
class SiteError:
    """What downsampling one site alone does.

    Args:
        local: relative error of that attention's result, on dense inputs.
        output: relative error of the model's output; None if it was not asked for.
    """

    local: float
    output: float | None


@dataclass(slots=True)
class _Variant:
    """A rewritten copy of the graph, and which of its nodes differ from the dense graph's."""

    graph: torch.fx.Graph
    report: Report
    changed: frozenset[Node]


class DriftMeter:
    """A captured model whose drift can be measured again and again.

    Args:
        module: any module with attention, in eval mode, or its graph; it is not changed.
        args: example inputs of a module; all measurements have their shapes.
        native_kv_tokens: the default bound on key/value tokens, for plans that need it.
        token_grids, image_axes: as for `todo_compile.rewrite`.
        plans: most plans whose graphs are kept.

    Raises:
        CaptureError: `torch.export` cannot trace the module.
    """

    def __init__(
        self,
        module: nn.Module | ExportedProgram,
        args: Sequence[Any] = (),
        *,
        native_kv_tokens: int | None = None,
        token_grids: Mapping[int, TokenGrid] | None = None,
        image_axes: Mapping[str, tuple[int, int]] | None = None,
        plans: int = 64,
    ) -> None:
        program = module if isinstance(module, ExportedProgram) else capture(module, args)
        if last_writer(program.graph_module, lambda node: node.meta.get("val")) is not None:
            # Values that are kept must not be written into: the functional form of the graph.
            program = program.run_decompositions({})
        self._module = program.graph_module
        self._constants = lifted_tensors(program)
        self._bound, self._grids, self._axes = native_kv_tokens, token_grids, image_axes
        self._text = {n.name: _text(n) for n in self._module.graph.nodes}
        context = GraphContext(self._module, token_grids=token_grids, image_axes=image_axes)
        found, _ = find_sites(context)
        self._results = {site.name: site.output.name for site in found}
        # A plan's sites one by one and what finds the frontier fit twice; of a search over ever new
        # plans the oldest go.
        self._most = plans + 2 * len(found)
        self._variants: OrderedDict[PlanOptions, _Variant] = OrderedDict()
        self.sites: tuple[SiteReport, ...] = tuple(
            s for s in self.plan(PlanOptions(factors=())).sites if _downsamplable(s)
        )
        """The sites that a factor can be given to, in graph order."""
        self._kept = self._frontier()

    def plan(self, options: PlanOptions) -> Report:
        """What `options` do to every site.

        Raises:
            ConfigError: options that this model cannot follow.
        """
        return self._variant(options).report

    def result_of(self, site: str) -> str:
        """Name of the node that holds a site's result."""
        return next(self._results[s.name] for s in self.sites if site in (s.name, s.module))

    def dense(self, args: Sequence[Any]) -> DenseStep:
        """One dense pass, with what all measurements of this step share."""
        values = {**self._constants, **self._inputs(args)}
        kept: dict[str, Any] = dict(values)

        def keep(node: Node, value: Any) -> None:
            if node.name in self._kept:
                kept[node.name] = value

        output = run(self._module, self._module.graph, values, keep)
        return DenseStep(self, kept, first_tensor(output))

    def _inputs(self, args: Sequence[Any]) -> dict[str, Any]:
        names = [
            n.name
            for n in self._module.graph.nodes
            if n.op == "placeholder" and n.name not in self._constants
        ]
        return dict(zip(names, args, strict=True))

    def _variant(self, options: PlanOptions) -> _Variant:
        options = replace(options, hoist=False)  # pooled at the site, only what follows differs
        found = self._variants.get(options)
        if found is None:
            graph = copy.deepcopy(self._module.graph)  # of nodes; tensors are not copied
            module = GraphModule(self._module, graph)
            report = rewrite_graph(
                module,
                options,
                native_kv_tokens=self._bound,
                token_grids=self._grids,
                image_axes=self._axes,
                constants=self._constants,
            )
            changed = descendants(module.graph, lambda n: self._text.get(n.name) != _text(n))
            found = _Variant(module.graph, report, changed)
            self._variants[options] = found
            while len(self._variants) > self._most:
                self._variants.popitem(last=False)
        self._variants.move_to_end(options)
        return found

    def _frontier(self) -> frozenset[str]:
        """Values that some site, or what follows it, reads from before the site."""
        names = {s.name for s in self.sites}
        keep = {self._results[name] for name in names}
        for name in names:
            alone = PlanOptions(factors=(), sites=((name, _smallest(self, name)),))
            variant = self._variant(alone)
            for node in variant.changed:
                keep |= {n.name for n in node.all_input_nodes if n not in variant.changed}
        return frozenset(keep)


@dataclass(slots=True)
class DenseStep:
    """The dense pass of one step, and measurements against it."""

    meter: DriftMeter
    kept: dict[str, Any] = field(repr=False)
    output: torch.Tensor = field(repr=False)
    """The model's dense output."""

    def total(self, options: PlanOptions) -> float:
        """Relative error of the model's output under a plan.

        Raises:
            ConfigError: options that this model cannot follow.
        """
        if not self.meter.plan(options).rewritten:
            return 0.0
        return relative_error(self.run(options), self.output)

    def run(self, options: PlanOptions) -> torch.Tensor:
        """The model's output under a plan, from this step's inputs."""
        variant = self.meter._variant(options)  # pyright: ignore[reportPrivateUsage]
        return first_tensor(self._finish(variant))

    def single(
        self,
        site: str,
        factor: Factor,
        sampling: Sampling = "nearest",
        *,
        output: bool = True,
        plan: PlanOptions | None = None,
    ) -> SiteError:
        """Errors when `site` alone is downsampled.

        Args:
            site: name of one of ``meter.sites``.
            factor: (row, column).
            sampling: its phase, if staggered, is the one that it has in a whole plan.
            output: also run what follows the site.
            plan: whole plan that says how instead, where several images have factors of their own.

        Raises:
            ConfigError: no such site, or the factor exceeds its grid.
        """
        if plan is not None:
            others = tuple((s.name, (1, 1)) for s in self.meter.sites if s.name != site)
            options = replace(plan, sites=(*plan.sites, *others))
        elif factor == (1, 1):
            return SiteError(0.0, 0.0 if output else None)
        else:
            options = PlanOptions(factors=(), sites=((site, factor),), sampling=sampling)
        variant = self.meter._variant(options)  # pyright: ignore[reportPrivateUsage]
        name = self.meter.result_of(site)
        local: list[float] = []

        def look(node: Node, value: Any) -> None:
            if node.name == name:
                local.append(relative_error(value, self.kept[name]))

        result = self._finish(variant, look, None if output else name)
        error = relative_error(first_tensor(result), self.output) if output else None
        return SiteError(local[0], error)

    def _finish(
        self,
        variant: _Variant,
        look: Callable[[Node, Any], None] | None = None,
        last: str | None = None,
    ) -> Any:
        graph = variant.graph
        wanted = wanted_nodes(graph, variant.changed, self.kept, last)
        return run(self.meter._module, graph, self.kept, look, wanted, last)  # pyright: ignore[reportPrivateUsage]


def _downsamplable(site: SiteReport) -> bool:
    if site.action != "dense" or site.kind not in ("self", "joint") or site.grid is None:
        return False
    return site.grid[0] * site.grid[1] > 1 and site.reason == "factors are off"


def _smallest(meter: DriftMeter, name: str) -> Factor:
    """A factor other than 1 that the site's grid allows."""
    grid = next(s.grid for s in meter.sites if s.name == name)
    assert grid is not None
    return (2, 1) if grid[0] > 1 else (1, 2)


def _text(node: Node) -> str:
    """Equal for a node and its copy in a graph where nothing about it was rewritten."""
    return f"{node.op} {node.target} {node.args} {node.kwargs}"
