"""A compiled module of the user's own: it is called like the module and returns the same form."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Self, cast

import torch
from torch import Tensor

from todo_compile.capture.trees import (
    KINDS,
    Tree,
    TreeError,
    compose,
    default_of,
    joined,
    match,
    tensors_of,
)
from todo_compile.errors import BundleError, InputError
from todo_compile.runtime.compiled import Sealed
from todo_compile.runtime.session import dtype_named

if TYPE_CHECKING:
    from todo_compile.bundle.manifest import Manifest
    from todo_compile.bundle.tensors import Tensor as Spec
    from todo_compile.runtime.session import Session

COMPONENT = "module"
"""What manifests of modules call the component."""


class CompiledModule(Sealed):
    """Any compiled module.

    Its call has the signature of the module's ``forward``. Tensors have the shapes and types that
    it was compiled for, of a range every batch; everything else is what it was then. Results have
    the form of the module's; dataclasses come as `todo_compile.capture.trees.Fields`.

    Args:
        session: runs it.
        manifest: of the output.
        name: of the file, for messages.

    Raises:
        BundleError: the manifest describes no module.
    """

    def __init__(self, session: Session, manifest: Manifest, name: str) -> None:
        super().__init__()
        self.session = session
        self.name = name
        try:
            self._trees, self._defaults, self.signature = _signature(manifest.model)
            self._result: Tree = manifest.model["result"]
            inputs = [one for tree in self._trees.values() for one in tensors_of(tree)]
            outputs = tensors_of(self._result)
            compose(self._result, dict.fromkeys(outputs))  # it can be
        except (TreeError, KeyError, TypeError, ValueError) as error:
            raise BundleError(
                f"The manifest of {name} does not describe a module's call.",
                remedy="Build it again with todo-compile.",
            ) from error
        if set(inputs) != set(session.inputs) or set(outputs) != set(session.outputs):
            raise BundleError(
                f"The manifest of {name} describes other tensors than its call has.",
                remedy="Build it again with todo-compile.",
            )
        self.eval()

    @property
    def _called(self) -> str:
        return self.name

    @property
    def _shared(self) -> tuple[object, ...]:
        return (self.session,)

    @property
    def device(self) -> torch.device:
        """Where it runs; fixed when it is loaded."""
        return self.session.device

    def extra_repr(self) -> str:
        """For `print`."""
        return f"{self.name}{self.signature}, on {self.device}"

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """What ``to``, ``cuda``, ``half``, … come down to.

        Raises:
            InputError: another device is asked for.
        """
        moved = fn(torch.empty(0, device=self.device))
        if moved.device != self.device:
            raise InputError(
                f"A compiled module cannot be moved to {moved.device}.",
                remedy=f'Load it with device="{moved.device}".',
            )
        return super()._apply(fn, recurse)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the compiled graph.

        Raises:
            InputError: an input is not what it was compiled for.
            EngineError: it failed.
        """
        feeds: dict[str, Tensor] = {}

        def take(name: str, path: str, value: Tensor) -> None:
            self._check(self.session.inputs[name], path, value)
            feeds[name] = value

        try:
            bound = self.signature.bind(*args, **kwargs)
            for name, tree in self._trees.items():
                if name in bound.arguments:
                    match(tree, bound.arguments[name], self._path(name), take)
                elif self._defaults.get(name, default_of(self.signature, name)) != tree:
                    raise TreeError(f"{name} was given when this was compiled, and is missing")
        except (TreeError, TypeError) as error:
            raise InputError(
                f"{self.name} cannot be called like this: {error}.",
                remedy=f"Call it as it was compiled, {self.signature}; compile another one for "
                "other constants. What shall vary must go in as a tensor.",
            ) from error
        return compose(self._result, self.session.run(feeds))

    def _path(self, name: str) -> str:
        kind = self.signature.parameters[name].kind
        return "" if kind is inspect.Parameter.VAR_KEYWORD else joined("", name)

    def _check(self, spec: Spec, path: str, value: Tensor) -> None:
        if value.dtype != dtype_named(spec.dtype):
            got = str(value.dtype).removeprefix("torch.")
            raise InputError(
                f"{path} is {got} instead of {spec.dtype}.",
                remedy=f"Convert it: {path}.to(torch.{spec.dtype}); or compile with such inputs.",
            )
        if not spec.fits(tuple(value.shape)):
            raise InputError(
                f"{path} has the shape {tuple(value.shape)} instead of ({spec.text}).",
                remedy="A compiled module has the sizes of its example inputs. Compile one for "
                "these, or with dynamic_batch for every batch of a range.",
            )
        if value.device != self.device:
            raise InputError(
                f"{path} lies on {value.device}, and {self.name} on {self.device}.",
                remedy=f'Move it: {path}.to("{self.device}"); or load with '
                f'device="{value.device}".',
            )


def _signature(
    model: dict[str, Any],
) -> tuple[dict[str, Tree], dict[str, Tree], inspect.Signature]:
    """(trees, trees of defaults, signature) of a manifest's description."""
    trees: dict[str, Tree] = {}
    defaults: dict[str, Tree] = {}
    parameters: list[inspect.Parameter] = []
    for entry in cast("list[dict[str, Any]]", model["parameters"]):
        name, default = entry["name"], inspect.Parameter.empty
        trees[name] = entry["tree"]
        if "default" in entry:
            defaults[name] = entry["default"]
            default = compose(entry["default"], {})
        kind = next(kind for kind, text in KINDS.items() if text == entry["kind"])
        parameters.append(inspect.Parameter(name, kind, default=default))
    return trees, defaults, inspect.Signature(parameters)
