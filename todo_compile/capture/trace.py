"""From a module and example inputs to a graph that the passes can edit."""

from __future__ import annotations

import logging
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.export import ExportedProgram

from todo_compile._torch import fake_mode_of, quick_tracing
from todo_compile.batches import NAME, TEXT_NAME, BatchRange, Range, TextRange
from todo_compile.capture.complex_numbers import write_real
from todo_compile.capture.copies import write_out_blocks
from todo_compile.capture.regions import write_out_regions
from todo_compile.capture.repeated import traced_once
from todo_compile.capture.sequences import write_out_sequences
from todo_compile.collection import paused_collection
from todo_compile.errors import CaptureError

log = logging.getLogger("todo_compile")


def capture(
    module: nn.Module,
    args: Sequence[Any],
    kwargs: Mapping[str, Any] | None = None,
    *,
    batches: Sequence[BatchRange | None] = (),
    texts: Sequence[TextRange | None] = (),
    regions: bool = False,
) -> ExportedProgram:
    """Trace `module` into a pre-dispatch ATen graph; computes nothing.

    All sizes are fixed but the batch and the text's, where `batches` and `texts` give their ranges.

    Args:
        module: in eval mode; real or under a fake mode.
        args, kwargs: example inputs; their shapes become the graph's.
        batches: for each of `args` (there are no `kwargs` then) the range of its first size, of
            which it has the most; None for a fixed one.
        texts: the same of its second size, where that is the tokens of a text.
        regions: keep regions that switch autocast off, for a module that may run under it.

    Raises:
        CaptureError: the module cannot be traced (data-dependent control flow, unsupported calls,
            or it does something else for one batch or length of text than for another), or it
            assigns to a tensor's ``data``, which `torch.export` traces without a word as if it
            were not there.
    """
    try:
        program = _exported(module, args, kwargs, _dynamic_shapes(batches, texts))
    except Exception as error:  # torch.export has no common base of its errors
        lines = str(error).strip().splitlines() or [type(error).__name__]
        if fixed := _fixed_text(str(error)):
            raise CaptureError(
                f"{type(module).__name__} cannot be captured for texts of several lengths: {fixed}",
                remedy="Give --text-tokens one number.",
            ) from error
        raise CaptureError(
            f"{type(module).__name__} cannot be captured: {lines[0]}{_their_line(error)}",
            remedy="torch.export must be able to trace it: no .item(), no branches on tensor "
            'values. torch.compile(module, backend="todo_inductor") tolerates more.',
        ) from error
    if not regions:
        write_out_regions(program)
    return _finished(module, program)


def capture_quickly(module: nn.Module, args: Sequence[Any]) -> ExportedProgram | None:
    """`capture`, with every repeated block traced once, see `repeated`; for fixed sizes.

    For a graph that is only looked at: nodes of blocks that are alike share their fake values.

    Returns:
        The graph that `capture` gives; None where it is not certain to be the same. Then `module`
        may have another state than before, and can be captured as it was made anew.

    Raises:
        CaptureError: as `capture`, of a module that was traced.
    """
    try:
        with traced_once(module) as blocks:
            program = _exported(module, args, None, None)
        write_out_regions(program)
        write_out_blocks(program, blocks)
    except Exception as error:  # noqa: BLE001 - whatever it was, the plain trace will say it
        log.debug("%s is traced as a whole: %s", type(module).__name__, error)
        return None
    return _finished(module, program)


def _exported(
    module: nn.Module,
    args: Sequence[Any],
    kwargs: Mapping[str, Any] | None,
    dynamic_shapes: tuple[Any, ...] | None,
) -> ExportedProgram:
    with torch.no_grad(), quick_tracing(), paused_collection():
        return torch.export.export(
            module,
            tuple(args),
            dict(kwargs or {}),
            strict=False,
            dynamic_shapes=dynamic_shapes,
        )


def _finished(module: nn.Module, program: ExportedProgram) -> ExportedProgram:
    """The program as the passes want it; changed in place.

    Raises:
        CaptureError: the module does what `torch.export` loses.
    """
    assigned = torch.ops.aten._has_compatible_shallow_copy_type.default
    if any(node.target is assigned for node in program.graph.nodes):
        raise CaptureError(  # torch asks this where ``data`` is assigned, and nowhere else
            f"{type(module).__name__} assigns to the data of a tensor, which torch.export loses.",
            remedy='Write x.copy_(new), or x = new, in the place of "x.data = new".',
        )
    write_out_sequences(program)
    write_real(program)
    return program


def outputs_of(program: ExportedProgram) -> list[Any]:
    """Fake values of what a captured program gives, in order."""
    output = next(n for n in reversed(program.graph.nodes) if n.op == "output")
    return [value.meta["val"] for value in output.args[0]]


def constants_of(program: ExportedProgram) -> dict[str, torch.Tensor]:
    """Input node → weight, buffer or constant of a captured program, where it has values."""
    found: dict[str, torch.Tensor] = {}
    for spec in program.graph_signature.input_specs:
        target = spec.target or ""
        held: Any = program.state_dict.get(target, program.constants.get(target))
        if isinstance(held, torch.Tensor) and fake_mode_of(held) is None and not held.is_meta:
            found[str(spec.arg.name)] = held
    return found


def _their_line(error: Exception) -> str:
    """Where in the module's code it stopped, for people; "" if that is unknown."""
    frames = traceback.extract_tb(error.__traceback__)
    inside = [
        f
        for f in frames
        if "/torch/" not in (name := f.filename.replace("\\", "/"))
        and "/todo_compile/" not in name
        and not name.startswith("<")
    ]
    if not inside:
        return ""
    last = inside[-1]
    code = f": {last.line}" if last.line else ""
    return f" ({Path(last.filename).name}, line {last.lineno}{code})"


def _fixed_text(message: str) -> str:
    """What torch.export says of a text whose length a module fixes; "" of other errors."""
    lines = (line.strip(" -") for line in message.splitlines())
    return next((line for line in lines if line.startswith(f"You marked {TEXT_NAME} ")), "")


def _dynamic_shapes(
    batches: Sequence[BatchRange | None], texts: Sequence[TextRange | None]
) -> tuple[Any, ...] | None:
    """The ranges as torch.export takes them; None, as if nothing was given, where there are none.

    All inputs have the same batch and text: one `Dim` each, which the graph then relies on.
    """
    sides = (_dim(NAME, batches), _dim(TEXT_NAME, texts))
    if sides == (None, None):
        return None
    count = max(len(batches), len(texts))
    ranges = zip(batches or [None] * count, texts or [None] * count, strict=True)
    return tuple(
        {axis: sides[axis] for axis, one in enumerate(pair) if one is not None} or None
        for pair in ranges
    )


def _dim(name: str, ranges: Sequence[Range | None]) -> Any:
    found = next((one for one in ranges if one is not None), None)
    return None if found is None else torch.export.Dim(name, min=found.least, max=found.most)
