"""A module's graph as the command captures it, with its first result alone."""

from __future__ import annotations

import torch
from models_parts.truth import tensor_of
from torch import Tensor, nn

from tests.graphs import Captured
from todo_compile.capture import trace
from todo_compile.capture.trace import constants_of


def exported(module: nn.Module, inputs: tuple[Tensor, ...]) -> Captured:
    """The graph, and how it is run again after editing."""
    program = trace.capture(module, inputs)

    def run() -> tuple[Tensor, ...]:
        program.validate()
        with torch.no_grad():
            return (tensor_of(program.module()(*inputs)),)

    return Captured(
        program.graph_module,
        run,
        "export",
        lambda: exported(module, inputs),
        constants_of(program),
    )
