"""The graph of a case's module in either dialect, and how to run it after it was edited."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from soundness_parts.case import Case
from todo_compile.capture.trace import constants_of
from todo_compile.dynamo.backend import static_inputs

DIALECTS = ("export", "dynamo")
Tensors = tuple[Tensor, ...]


class NotCapturedError(Exception):
    """More graphs than one."""


@dataclass(slots=True)
class Captured:
    """A graph and how to run what it is a part of.

    Args:
        module: to be edited in place.
        run: inputs → outputs of what the graph is now.
        edited: to be called after editing.
        constants: weights and buffers by the node that they are.
    """

    module: GraphModule
    run: Callable[[Sequence[Tensor]], Tensors]
    edited: Callable[[], None]
    constants: Mapping[str, Tensor]


def tensors(result: Any) -> Tensors:
    """One output or several, as a tuple."""
    return (result,) if isinstance(result, Tensor) else tuple(result)


def clones(given: Sequence[Tensor]) -> list[Tensor]:
    """Inputs that may be written to."""
    return [t.clone() for t in given]


def capture(model: nn.Module, case: Case, given: Sequence[Tensor], dialect: str) -> Captured:
    """The graph of `model` in a dialect.

    Raises:
        NotCapturedError: Dynamo made several graphs of it; or whatever torch raises.
    """
    if dialect == "export":
        return _exported(model, case, clones(given))
    return _compiled(model, case, clones(given))


def _sides(picture: Tensor) -> list[int]:
    """Axes of rows and columns of an input; none of text."""
    return [2, 3] if picture.dim() == 4 else []


def _exported(model: nn.Module, case: Case, given: list[Tensor]) -> Captured:
    shapes: Any = None
    if case.dynamic:
        batch = torch.export.Dim("batch", min=2, max=64)
        each = [{0: batch} if t.shape[0] == case.batch else {} for t in given]
        shapes = (each[0], tuple(each[1:])) if each[1:] else (each[0],)
    if case.sides:
        each = [dict.fromkeys(_sides(t), torch.export.Dim.DYNAMIC) for t in given]
        shapes = (each[0], tuple(each[1:])) if each[1:] else (each[0],)
    program = torch.export.export(model, tuple(given), dynamic_shapes=shapes)
    made: list[nn.Module] = []

    def edited() -> None:
        made.clear()
        program.validate()

    def run(real: Sequence[Tensor]) -> Tensors:
        if not made:
            made.append(program.module())
        return tensors(made[0](*clones(real)))

    return Captured(program.graph_module, run, edited, constants_of(program))


def _compiled(model: nn.Module, case: Case, given: list[Tensor]) -> Captured:
    found: list[GraphModule] = []

    constants: dict[str, Tensor] = {}

    def backend(module: GraphModule, real: Sequence[Any]) -> Callable[..., Any]:
        found.append(module)
        constants.update(static_inputs(module, real))

        def call(*real: Any) -> Any:
            return module.forward(*real)  # what it is by then: editing makes it another function

        return call

    torch.compiler.reset()
    for t in given if case.dynamic else ():
        if t.shape[0] == case.batch:
            torch._dynamo.maybe_mark_dynamic(t, 0)  # noqa: TID251  # pyright: ignore[reportPrivateUsage]
    for t in given if case.sides else ():
        torch._dynamo.maybe_mark_dynamic(t, _sides(t))  # noqa: TID251  # pyright: ignore[reportPrivateUsage, reportArgumentType]
    compiled: Any = torch.compile(model, backend=backend, fullgraph=True)
    compiled(*given)
    if len(found) != 1:
        raise NotCapturedError(f"{len(found)} graphs")

    def run(real: Sequence[Tensor]) -> Tensors:
        result = tensors(compiled(*clones(real)))
        if len(found) != 1:
            raise NotCapturedError("it was compiled again, for other sizes")
        return result

    return Captured(found[0], run, lambda: None, constants)
