"""What compiling would do to every attention site, without weights."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from todo_compile import models, packages
from todo_compile.batches import Batch, largest
from todo_compile.build.alone import import_network
from todo_compile.build.factory import check_module, make_module
from todo_compile.build.model_job import check_batch, check_options, pictured
from todo_compile.bundle.files import check_new_folder
from todo_compile.collection import paused_collection
from todo_compile.errors import ConfigError
from todo_compile.models.components import one_component
from todo_compile.options import check_token_grids
from todo_compile.precision import dtype_of

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    import torch
    from torch.export import ExportedProgram

    from todo_compile.build.request import BuildRequest
    from todo_compile.capture.inputs import ExampleInputs
    from todo_compile.models import Resolution, Source
    from todo_compile.options import PlanOptions
    from todo_compile.passes.report import Report


def plan_request(request: BuildRequest, *, alone: bool = False) -> Report:
    """The passes' report on what a request builds; where its output goes does not matter.

    Args:
        request: whose output is not made.
        alone: the process ends with this plan, so that nothing is imported for later, see
            `libraries.diffusers_alone`.

    Raises:
        TodoError: whatever the user can mend.
    """
    with paused_collection(for_good=alone):
        return _plan(request, alone)


def _plan(request: BuildRequest, alone: bool) -> Report:
    if request.dump is not None:
        check_new_folder(request.dump, "--dump")
    if request.is_module():
        module, args, kwargs = request.module, request.args, request.kwargs
        if isinstance(module, str):
            module, args, kwargs = make_module(module)
        return _plan_module(module, args, kwargs or {}, request)
    size, *more = request.res
    if more:
        raise ConfigError(
            f"{len(request.res)} resolutions were given, and a plan is for one.",
            remedy="Plan once for each.",
        )
    packages.need("models", "Reading a model")
    from todo_compile.capture.inputs import with_pipeline_defaults

    assert request.model is not None
    source = models.resolve_component(request.model, one_component(request.component))
    source = models.with_text_tokens(source, request.text_tokens)
    source = with_pipeline_defaults(models.with_frames(source, request.frames))
    if request.ip_adapter is not None:
        source = pictured(source, request.ip_adapter)
    return plan_source(
        source,
        models.Resolution.parse(size),
        batch=check_batch(source, request.batch),
        precision=request.precision or "fp16",
        options=check_options(source, request.downsampling),
        dump=request.dump,
        alone=alone,
    )


def plan_source(
    source: Source,
    resolution: Resolution,
    *,
    batch: Batch,
    precision: str,
    options: PlanOptions,
    dump: Path | None = None,
    alone: bool = False,
) -> Report:
    """The passes' report on a named model.

    A range of batches or texts is planned by its largest: the plan is the same for all (the tests
    say so).

    Args:
        source: of one component.
        resolution: of the picture.
        batch: that the model is called with.
        precision: decides bytes.
        options: how factors are chosen.
        dump: folder for the graph before and after every pass.
        alone: see `plan_request`.

    Raises:
        ConfigError: options or a size that the model cannot follow.
    """
    from todo_compile.capture.inputs import input_specs
    from todo_compile.passes.pipeline import rewrite_graph

    dtype = dtype_of(precision)
    input_specs(source, resolution, batch=batch, dtype=dtype)  # possible
    if alone:
        import_network(source)
    program, example = _captured(source, resolution, largest(batch), dtype)
    return rewrite_graph(
        program.graph_module,
        options,
        native_kv_tokens=source.native.kv_tokens,
        token_grids=dict(example.token_grids),
        image_axes=example.image_axes,
        dump=dump,
        batch=largest(batch),
    )


def _captured(
    source: Source, resolution: Resolution, batch: int, dtype: torch.dtype
) -> tuple[ExportedProgram, ExampleInputs]:
    """A named model's graph, quickly where that is possible, and what it was captured with."""
    from todo_compile.capture.inputs import example_inputs
    from todo_compile.capture.trace import capture, capture_quickly

    def made() -> tuple[AbstractContextManager[object], ExampleInputs]:
        loaded = models.load(source, dtype=dtype, fake=True)
        assert loaded.fake is not None
        return loaded.fake, example_inputs(loaded, resolution, batch=batch)

    fake, example = made()
    if not any(example.texts):  # all sizes are fixed
        with fake:
            program = capture_quickly(example.wrapper, example.args)
        if program is not None:
            return program, example
        fake, example = made()  # without what the trace may have left in it
    with fake:
        return capture(example.wrapper, example.args, texts=example.texts), example


def _plan_module(
    module: Any, args: Any, kwargs: Mapping[str, Any], request: BuildRequest
) -> Report:
    """The passes' report on a module, for its example inputs."""
    from todo_compile.capture.given import capture_module
    from todo_compile.capture.trace import constants_of
    from todo_compile.passes.pipeline import rewrite_graph

    check_module(module, args, kwargs)
    program = capture_module(module, args, kwargs).program
    return rewrite_graph(
        program.graph_module,
        request.downsampling,
        native_kv_tokens=request.native_kv_tokens,
        token_grids=check_token_grids(request.token_grids),
        constants=constants_of(program),
        dump=request.dump,
    )
