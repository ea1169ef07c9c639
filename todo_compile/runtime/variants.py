"""A pipeline's component under many plans: captured once, rewritten as often as there are plans.

    captured = CapturedComponent(pipeline, source, resolution, batch=2)
    component, report = captured.variant(options)

Copies of a graph share all tensors, so a variant costs milliseconds and no memory. torch runs it.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.fx import GraphModule

from todo_compile import models
from todo_compile.bundle.tensors import Tensor as Spec
from todo_compile.bundle.tensors import tensors
from todo_compile.capture.trace import capture, constants_of, outputs_of
from todo_compile.drift.replay import lifted_tensors
from todo_compile.passes.pipeline import rewrite_graph
from todo_compile.runtime.files import Origin
from todo_compile.runtime.loading import adapt
from todo_compile.runtime.pipeline import place_of
from todo_compile.runtime.session import NamedSession, check_feeds

if TYPE_CHECKING:
    from todo_compile.models import Resolution, Source
    from todo_compile.options import PlanOptions
    from todo_compile.passes.report import Report
    from todo_compile.runtime.component import Component


class CapturedComponent:
    """The graph of a torch pipeline's denoiser or decoder at one size.

    Args:
        pipeline: from `torch_pipelines.torch_pipeline`; it is not changed.
        source: of the component.
        resolution: of the pictures to come.
        batch: of the component.

    Attributes:
        source: the model.
        args: example inputs, in order.
        program: the graph, as it was captured.
        inputs, outputs, device: of its graphs.
        held: weights and constants, which its graphs take before the inputs.

    Raises:
        TodoError: the model cannot be captured.
    """

    def __init__(
        self, pipeline: Any, source: Source, resolution: Resolution, *, batch: int
    ) -> None:
        from todo_compile.capture.inputs import example_inputs, manifest_call

        self.source = source
        module = getattr(pipeline, place_of(source.component)).requires_grad_(False)
        loaded = models.LoadedModel(
            module=module,
            source=self.source,
            dtype=module.dtype,
            weights=None,
            weights_hash=None,
            parameters=sum(p.numel() for p in module.parameters()),
        )
        example = example_inputs(loaded, resolution, batch=batch)
        self.args = tuple(value.to(module.device) for value in example.args)
        self.input_names = example.input_names
        self._grids, self._axes = dict(example.token_grids), dict(example.image_axes)
        self.device: torch.device = module.device
        self._batch = batch
        self.program = capture(example.wrapper, self.args, texts=example.texts)
        self._constants = constants_of(self.program)
        self.held = list(lifted_tensors(self.program).values())
        self.inputs = tensors(example.specs, texts=example.texts)
        shapes = outputs_of(self.program)
        self.outputs = [
            Spec(name=name, shape=tuple(v.shape), dtype=str(v.dtype).removeprefix("torch."))
            for name, v in zip(example.giving(len(shapes)).output_names, shapes, strict=True)
        ]
        facts: dict[str, Any] = {
            "component": self.source.component,
            "class": self.source.class_name,
            "config": dict(self.source.config),
            "resolution": str(resolution),
            "batch": batch,
            "precision": str(module.dtype).removeprefix("torch."),
        }
        facts |= {} if source.frames is None else {"frames": source.frames}
        call = manifest_call(source, resolution, batch=batch, dtype=module.dtype)
        facts |= {} if call is None else {"call": call}
        self.origin = Origin.of(Path(source.identifier).name, facts)

    def variant(self, options: PlanOptions | None) -> tuple[Component, Report]:
        """The component under a plan, for the pipeline that it came from, and what was done.

        Raises:
            ConfigError: options that this model cannot follow.
        """
        session, report = self.session(options)
        return adapt(session, self.origin), report

    def session(self, options: PlanOptions | None) -> tuple[GraphSession, Report]:
        """As `variant`, of named tensors.

        Raises:
            ConfigError: options that this model cannot follow.
        """
        held = self.program.graph_module
        module = GraphModule(held, copy.deepcopy(held.graph))  # of nodes; tensors are not copied
        report = rewrite_graph(
            module,
            options,
            native_kv_tokens=self.source.native.kv_tokens,
            token_grids=self._grids,
            image_axes=self._axes,
            constants=self._constants,
            batch=self._batch,
        )
        return GraphSession(self, module), report


class GraphSession(NamedSession):
    """One rewritten graph as a session; see `Session`."""

    def __init__(self, captured: CapturedComponent, module: GraphModule) -> None:
        super().__init__(captured.inputs, captured.outputs)
        self._device = captured.device
        self._module = module
        self._held = captured.held
        self._built_for = captured.origin.built_for

    def run(self, feeds: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """See `Session.run`."""
        check_feeds(feeds, self._inputs, self._device, self._built_for)
        with torch.no_grad():
            found = self._module(*self._held, *(feeds[name] for name in self._inputs))
        results = (found,) if isinstance(found, Tensor) else tuple(found)
        return dict(zip(self._outputs, results, strict=True))
