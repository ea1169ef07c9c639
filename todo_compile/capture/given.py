"""Any module as a graph: flat tensors in and out, with a description of its signature."""

from __future__ import annotations

import inspect
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.export import ExportedProgram

from todo_compile._torch import is_symbolic
from todo_compile.batches import BatchRange
from todo_compile.capture.inputs import ExampleInputs
from todo_compile.capture.trace import capture
from todo_compile.capture.trees import (
    KINDS,
    Names,
    Tree,
    TreeError,
    describe,
    joined,
    parts_of,
    rebuilt,
)
from todo_compile.capture.written import InputSpec
from todo_compile.errors import CaptureError, ConfigError, first_line


@dataclass(frozen=True)
class GivenModule:
    """A captured module.

    Attributes:
        program: its graph, in eval mode.
        example: the inputs that it was captured with, by name.
        parameters: of its signature; for each ``name``, ``kind``, the ``tree`` that it was captured
            with, and ``default``, a tree too, where it has one.
        result: tree of what it returns.
    """

    program: ExportedProgram = field(repr=False)
    example: ExampleInputs = field(repr=False)
    parameters: list[dict[str, Any]]
    result: Tree


def capture_module(
    module: nn.Module,
    args: Sequence[Any],
    kwargs: Mapping[str, Any] | None = None,
    *,
    batches: BatchRange | None = None,
) -> GivenModule:
    """Capture a module as it is called: ``module(*args, **kwargs)``.

    Args:
        module: any; it is captured in eval mode and left as it was.
        args, kwargs: example inputs: tensors, constants, and containers of them.
        batches: the range of the first size of all tensors that have the batch there: the first
            size of the first tensor with more than one axis, at least 2.

    Raises:
        ConfigError: it cannot be called so, or something that goes in or out is no tensor.
        CaptureError: `torch.export` cannot trace it.
    """
    bound = _bound(module, args, kwargs or {})
    names = Names(set(), "input")
    parameters = _described(bound, names)
    if not names.found:
        raise ConfigError(
            f"{type(module).__name__} is called without a tensor.",
            remedy="Give example inputs: args, a tuple of what it is called with.",
        )
    tensors = {name: _own(value) for name, value in names.found.items()}
    ranges = _ranges(tensors, batches)
    if batches is not None:
        tensors = {n: _rows(t, batches.most) if n in ranges else t for n, t in tensors.items()}
    call = _Call(bound, tuple(tensors))
    flat = _flat(module, call)
    dynamic = tuple(ranges.get(name) for name in tensors)
    with _evaluated(module):
        program = _captured(flat, call, tuple(tensors.values()), dynamic)
    _check_outputs(program, call.outputs, batches)
    example = ExampleInputs(
        wrapper=flat,
        specs=tuple(InputSpec(n, tuple(t.shape), t.dtype) for n, t in tensors.items()),
        args=tuple(tensors.values()),
        output_names=call.outputs,
        batches=dynamic,
    )
    return GivenModule(program, example, parameters, call.result)


class _Flat(nn.Module):
    """A module with tensors for arguments."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module


class _Call:
    """How a module is called; notes the form of what it returns.

    No part of the module: torch.export takes back what a module notes on itself.
    """

    def __init__(self, bound: inspect.BoundArguments, inputs: Sequence[str]) -> None:
        self.bound = bound
        self.inputs = inputs
        self.result: Tree = {}
        self.outputs: tuple[str, ...] = ()

    def __call__(self, module: nn.Module, tensors: Sequence[torch.Tensor]) -> tuple[Any, ...]:
        """The tensors of the result, in the order of its tree.

        Raises:
            TreeError: it is no tree of tensors.
        """
        given = rebuilt(dict(self.bound.arguments), iter(tensors))
        bound = inspect.BoundArguments(self.bound.signature, given)
        value = module(*bound.args, **bound.kwargs)
        names = Names(set(self.inputs), "output")
        self.result = describe(value, names)
        constants = _constants(self.result)
        if constants or not names.found:
            raise TreeError(f"the result has {constants[0] if constants else 'no tensor'}")
        self.outputs = tuple(names.found)
        # In a file every input and output has one name: what is both, or comes twice, is copied.
        seen = {id(value) for value in tensors}
        results: list[torch.Tensor] = []
        for value in names.found.values():
            results.append(_copied(value) if id(value) in seen else value)
            seen.add(id(value))
        return tuple(results)


def _flat(module: nn.Module, call: _Call) -> _Flat:
    def forward(self: _Flat, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return call(self.module, tensors)

    # torch.export names a graph's inputs by the signature.
    parameters = [
        inspect.Parameter(name, inspect.Parameter.POSITIONAL_OR_KEYWORD)
        for name in ("self", *call.inputs)
    ]
    forward.__signature__ = inspect.Signature(parameters)  # pyright: ignore[reportFunctionMemberAccess]
    return type("Flat", (_Flat,), {"forward": forward})(module)


def _bound(
    module: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]
) -> inspect.BoundArguments:
    try:
        found = inspect.signature(module.forward).bind(*args, **kwargs)
    except (TypeError, ValueError) as error:
        raise ConfigError(
            f"{type(module).__name__} cannot be called with these inputs: {first_line(error)}.",
            remedy="args is a tuple, kwargs a mapping: module(*args, **kwargs) must work.",
        ) from error
    found.apply_defaults()
    return found


def _described(bound: inspect.BoundArguments, names: Names) -> list[dict[str, Any]]:
    """The signature with what it was called with."""
    found: list[dict[str, Any]] = []
    for name, parameter in bound.signature.parameters.items():
        kind = KINDS[parameter.kind]
        path = "" if kind == "others" else name  # their own names are enough
        try:
            tree = describe(bound.arguments[name], names, path)
            entry: dict[str, Any] = {"name": name, "kind": kind, "tree": tree}
            if parameter.default is not inspect.Parameter.empty:
                entry["default"] = describe(parameter.default, Names(set(), "default"))
        except TreeError as error:
            raise ConfigError(
                f"An input cannot be compiled: {error}.",
                remedy="Inputs are tensors, constants (None, numbers, text, dtypes), and lists, "
                "tuples, mappings and dataclasses of them. Fix the rest in a module of your own.",
            ) from error
        found.append(entry)
    return found


def _own(value: torch.Tensor) -> torch.Tensor:
    """A copy: torch.export takes one tensor that is given twice for one input."""
    if value.is_sparse or value.is_quantized:
        raise ConfigError(
            "A sparse or quantised tensor cannot go into a graph.", remedy="Give a dense one."
        )
    return value.detach().clone(memory_format=torch.contiguous_format)


def _ranges(
    tensors: Mapping[str, torch.Tensor], batches: BatchRange | None
) -> dict[str, BatchRange]:
    """The range of those inputs that have the batch."""
    if batches is None:
        return {}
    main = next((t for t in tensors.values() if t.dim() > 1), None)
    if main is None or main.shape[0] < 2:
        raise ConfigError(
            "Which inputs have the batch cannot be seen from these examples.",
            remedy="Give example inputs with a batch of 2 or more: the tensors whose first size is "
            "that of the first one get a dynamic one.",
        )
    return {n: batches for n, t in tensors.items() if t.dim() and t.shape[0] == main.shape[0]}


def _copied(value: torch.Tensor) -> torch.Tensor:
    """The same values by an operator that no optimiser takes for the identity."""
    other = ~value if value.dtype is torch.bool else value
    return torch.where(torch.ones_like(value, dtype=torch.bool), value, other)


def _rows(value: torch.Tensor, count: int) -> torch.Tensor:
    """`value` with `count` rows, its own over and over."""
    repeats = -(-count // value.shape[0])
    return value.repeat(repeats, *[1] * (value.dim() - 1))[:count].contiguous()


@contextmanager
def _evaluated(module: nn.Module) -> Generator[None]:
    """In eval mode, and back."""
    modes = {one: one.training for one in module.modules()}
    module.eval()
    try:
        yield
    finally:
        for one, mode in modes.items():
            one.training = mode


def _captured(
    flat: _Flat,
    call: _Call,
    tensors: Sequence[torch.Tensor],
    ranges: Sequence[BatchRange | None],
) -> ExportedProgram:
    name = type(flat.module).__name__
    flat.eval()
    try:
        return capture(flat, tensors, batches=ranges)
    except CaptureError as error:
        try:
            with torch.no_grad():  # does the module fail without us too?
                call(flat.module, tensors)
        except TreeError as own:
            raise ConfigError(
                f"{name} cannot be compiled: {own}.",
                remedy="Return tensors, and None, in lists, tuples, mappings or dataclasses. Wrap "
                "the module in one that does.",
            ) from own
        except Exception as own:  # whatever a module of the user's raises
            raise ConfigError(
                f"{name} does not run on these inputs: {first_line(own)}.",
                remedy="Call module(*args, **kwargs) without todo_compile first.",
            ) from own
        message = error.message.replace("Flat", name, 1)
        raise CaptureError(message, remedy=error.remedy) from error


def _constants(tree: Tree, path: str = "") -> list[str]:
    """What is neither a tensor nor None in a result."""
    if "tensor" in tree:
        return []
    if "constant" in tree or "text" in tree:
        value = tree.get("constant", tree.get("text"))
        return [] if value is None else [f"{value!r:.40}" + (f" as {path}" if path else "")]
    return [one for key, part in parts_of(tree) for one in _constants(part, joined(path, key))]


def _check_outputs(
    program: ExportedProgram, names: Sequence[str], batches: BatchRange | None
) -> None:
    """Every output has fixed sizes, but the batch as its first one.

    Raises:
        ConfigError: one has a size that follows from the batch.
    """
    inputs = [n.meta["val"] for n in program.graph.nodes if n.op == "placeholder"]
    sizes = [s for v in inputs if isinstance(v, torch.Tensor) for s in v.shape if is_symbolic(s)]
    output = next(n for n in reversed(program.graph.nodes) if n.op == "output")
    for name, node in zip(names, output.args[0], strict=True):
        for axis, size in enumerate(node.meta["val"].shape):
            if is_symbolic(size) and not (sizes and axis == 0 and str(size) == str(sizes[0])):
                why = "follows from the batch" if batches else "depends on values"
                raise ConfigError(
                    f"The size of axis {axis} of {name} {why}.",
                    remedy="Results have fixed sizes, and with a dynamic batch that as their first "
                    "one, or not at all. Return them in that form.",
                )
