"""What compiling would do to every attention site, without weights."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from todo_compile.batches import Batch, largest
from todo_compile.precision import dtype_of

if TYPE_CHECKING:
    from todo_compile.models import Resolution, Source
    from todo_compile.options import PlanOptions
    from todo_compile.passes.report import Report


def plan_source(
    source: Source,
    resolution: Resolution,
    *,
    batch: Batch,
    precision: str,
    options: PlanOptions,
    dump: Path | None = None,
) -> Report:
    """The passes' report on a named model.

    A range of batches is planned by its largest: the plan is the same for every batch (the tests
    say so).

    Args:
        source: of one component.
        resolution: of the picture.
        batch: that the model is called with.
        precision: decides bytes.
        options: how factors are chosen.
        dump: folder for the graph before and after every pass.

    Raises:
        ConfigError: options or a size that the model cannot follow.
    """
    from todo_compile import models
    from todo_compile.capture.inputs import example_inputs, input_specs
    from todo_compile.capture.trace import capture
    from todo_compile.passes.pipeline import rewrite_graph

    dtype = dtype_of(precision)
    input_specs(source, resolution, batch=batch, dtype=dtype)  # possible
    loaded = models.load(source, dtype=dtype, fake=True)
    example = example_inputs(loaded, resolution, batch=largest(batch))
    assert loaded.fake is not None
    with loaded.fake:
        program = capture(example.wrapper, example.args)
    return rewrite_graph(
        program.graph_module, options, native_kv_tokens=source.native.kv_tokens, dump=dump
    )
