"""From a module and example inputs to a graph that the passes can edit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.export import ExportedProgram

from todo_compile.errors import CaptureError


def capture(
    module: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any] | None = None
) -> ExportedProgram:
    """Trace `module` into a pre-dispatch ATen graph of fixed shapes; computes nothing.

    Args:
        module: in eval mode; real or under a fake mode.
        args, kwargs: example inputs; their shapes become the graph's.

    Raises:
        CaptureError: the module cannot be traced (data-dependent control flow, unsupported calls).
    """
    try:
        with torch.no_grad():
            return torch.export.export(module, tuple(args), dict(kwargs or {}), strict=False)
    except Exception as error:  # torch.export has no common base of its errors
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise CaptureError(
            f"{type(module).__name__} cannot be captured: {lines[0]}",
            remedy="torch.export must be able to trace it: no .item(), no branches on tensor "
            'values. torch.compile(module, backend="todo_inductor") tolerates more.',
        ) from error
