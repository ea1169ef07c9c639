"""From a module and example inputs to a graph that the passes can edit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.export import ExportedProgram

from todo_compile._torch import fake_mode_of, quick_tracing
from todo_compile.batches import NAME, BatchRange
from todo_compile.capture.complex_numbers import write_real
from todo_compile.capture.regions import write_out_regions
from todo_compile.collection import paused_collection
from todo_compile.errors import CaptureError


def capture(
    module: nn.Module,
    args: Sequence[Any],
    kwargs: Mapping[str, Any] | None = None,
    *,
    batches: Sequence[BatchRange | None] = (),
    regions: bool = False,
) -> ExportedProgram:
    """Trace `module` into a pre-dispatch ATen graph; computes nothing.

    All sizes are fixed but the batch, where `batches` gives a range of it.

    Args:
        module: in eval mode; real or under a fake mode.
        args, kwargs: example inputs; their shapes become the graph's.
        batches: for each of `args` (there are no `kwargs` then) the range of its first size, of
            which it has the most; None for a fixed one.
        regions: keep regions that switch autocast off, for a module that may run under it.

    Raises:
        CaptureError: the module cannot be traced (data-dependent control flow, unsupported calls,
            or it does something else for one batch than for another), or it assigns to a tensor's
            ``data``, which `torch.export` traces without a word as if it were not there.
    """
    try:
        with torch.no_grad(), quick_tracing(), paused_collection():
            program = torch.export.export(
                module,
                tuple(args),
                dict(kwargs or {}),
                strict=False,
                dynamic_shapes=_dynamic_shapes(batches),
            )
    except Exception as error:  # torch.export has no common base of its errors
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise CaptureError(
            f"{type(module).__name__} cannot be captured: {lines[0]}",
            remedy="torch.export must be able to trace it: no .item(), no branches on tensor "
            'values. torch.compile(module, backend="todo_inductor") tolerates more.',
        ) from error
    assigned = torch.ops.aten._has_compatible_shallow_copy_type.default
    if any(node.target is assigned for node in program.graph.nodes):
        raise CaptureError(  # torch asks this where ``data`` is assigned, and nowhere else
            f"{type(module).__name__} assigns to the data of a tensor, which torch.export loses.",
            remedy='Write x.copy_(new), or x = new, in the place of "x.data = new".',
        )
    if not regions:
        write_out_regions(program)
    write_real(program)
    return program


def constants_of(program: ExportedProgram) -> dict[str, torch.Tensor]:
    """Input node → weight, buffer or constant of a captured program, where it has values."""
    found: dict[str, torch.Tensor] = {}
    for spec in program.graph_signature.input_specs:
        target = spec.target or ""
        held: Any = program.state_dict.get(target, program.constants.get(target))
        if isinstance(held, torch.Tensor) and fake_mode_of(held) is None and not held.is_meta:
            found[str(spec.arg.name)] = held
    return found


def _dynamic_shapes(batches: Sequence[BatchRange | None]) -> tuple[Any, ...] | None:
    """The ranges as torch.export takes them; None, as if nothing was given, where there are none.

    All inputs have the same batch: one `Dim`, which the graph then relies on.
    """
    found = next((batch for batch in batches if batch is not None), None)
    if found is None:
        return None
    size = torch.export.Dim(NAME, min=found.least, max=found.most)
    return tuple(None if batch is None else {0: size} for batch in batches)
