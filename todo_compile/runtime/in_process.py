"""A torch pipeline whose denoiser went through the passes, without any file: for a quick look."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from todo_compile.bundle.tensors import Tensor as Spec
from todo_compile.bundle.tensors import tensors
from todo_compile.errors import EngineError
from todo_compile.runtime.files import Origin
from todo_compile.runtime.loading import adapt
from todo_compile.runtime.session import check_feeds

if TYPE_CHECKING:
    from todo_compile.models import Resolution, Source
    from todo_compile.options import PlanOptions
    from todo_compile.passes.report import Report


class ModuleSession:
    """A torch module with a flat signature as a session.

    Args:
        module: takes the inputs in order, returns one tensor or several.
        inputs, outputs: in order.
        built_for: a clause for messages.
    """

    def __init__(
        self, module: nn.Module, inputs: list[Spec], outputs: list[Spec], built_for: str
    ) -> None:
        self._module = module
        self._inputs = {spec.name: spec for spec in inputs}
        self._outputs = {spec.name: spec for spec in outputs}
        self._built_for = built_for
        self._device = next(module.parameters()).device

    @property
    def device(self) -> torch.device:
        return self._device

    @property
    def inputs(self) -> Mapping[str, Spec]:
        return self._inputs

    @property
    def outputs(self) -> Mapping[str, Spec]:
        return self._outputs

    def run(self, feeds: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """See `Session.run`."""
        check_feeds(feeds, self._inputs, self._device, self._built_for)
        with torch.no_grad():
            found = self._module(*(feeds[name] for name in self._inputs))
        results = (found,) if isinstance(found, Tensor) else tuple(found)
        return dict(zip(self._outputs, results, strict=True))


def torch_device(provider: str | None) -> torch.device:
    """Where torch shall run: ``cpu``, ``cuda`` or ``cuda:N``; None for a GPU where there is one.

    Raises:
        EngineError: torch has no such device.
    """
    if provider is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    kind, _, index = provider.partition(":")
    if kind == "cpu" and not index:
        return torch.device("cpu")
    if kind != "cuda" or not (index.isdigit() or provider == "cuda"):
        raise EngineError(f"Unknown provider {provider!r}.", remedy="Known: cpu, cuda, cuda:N.")
    if int(index or 0) >= torch.cuda.device_count():
        raise EngineError(
            f"torch finds {torch.cuda.device_count()} NVIDIA GPUs in this machine, no {provider}.",
            remedy="Take --provider cpu, or install a CUDA build of torch and the driver.",
        )
    return torch.device(provider)


def rewrite_pipeline(
    pipeline: Any,
    source: Source,
    resolution: Resolution,
    *,
    batch: int,
    options: PlanOptions | None,
) -> Report:
    """Put a pipeline's denoiser through the passes, in place; torch runs it.

    Args:
        pipeline: from `torch_pipeline`.
        source: of its denoising model.
        resolution: of the pictures to come.
        batch: of the denoiser.
        options: how factors are chosen.

    Returns:
        What was done to every attention site.

    Raises:
        TodoError: the model cannot be captured, or does not take the options.
    """
    from todo_compile import models
    from todo_compile.capture.inputs import example_inputs
    from todo_compile.capture.trace import capture, constants_of
    from todo_compile.passes.pipeline import rewrite_graph

    module = getattr(pipeline, source.component).requires_grad_(False)
    loaded = models.LoadedModel(
        module=module,
        source=source,
        dtype=module.dtype,
        weights=None,
        weights_hash=None,
        parameters=sum(p.numel() for p in module.parameters()),
    )
    example = example_inputs(loaded, resolution, batch=batch)
    args = tuple(value.to(module.device) for value in example.args)
    program = capture(example.wrapper, args)
    report = rewrite_graph(
        program.graph_module,
        options,
        native_kv_tokens=source.native.kv_tokens,
        constants=constants_of(program),
    )
    program.validate()
    facts: dict[str, Any] = {
        "component": source.component,
        "class": source.class_name,
        "config": dict(source.config),
        "resolution": str(resolution),
        "batch": batch,
        "precision": str(module.dtype).removeprefix("torch."),
    }
    origin = Origin.of(Path(source.identifier).name, facts)
    output = next(n for n in reversed(program.graph.nodes) if n.op == "output")
    shapes = [value.meta["val"] for value in output.args[0]]
    outputs = [
        Spec(name=name, shape=tuple(v.shape), dtype=str(v.dtype).removeprefix("torch."))
        for name, v in zip(example.output_names, shapes, strict=True)
    ]
    session = ModuleSession(program.module(), tensors(example.specs), outputs, origin.built_for)
    setattr(pipeline, source.component, adapt(session, origin))
    return report
