"""What every way of running an engine has in common: named tensors in, named tensors out.

A session is strict: what is handed over must be exactly what the engine was built for, and is
checked before anything runs. Being lenient (casts, other batches) is up to `component`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Protocol

from todo_compile.errors import InputError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from todo_compile.bundle.tensors import Tensor as Spec
    from todo_compile.runtime.files import Output


class Session(Protocol):
    """A loaded engine."""

    @property
    def device(self) -> torch.device:
        """Where inputs must lie and outputs will."""
        ...

    @property
    def inputs(self) -> Mapping[str, Spec]:
        """By name, in order."""
        ...

    @property
    def outputs(self) -> Mapping[str, Spec]:
        """By name, in order."""
        ...

    def run(self, feeds: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Run once; the outputs are fresh tensors.

        Raises:
            InputError: the inputs are not those that the engine was built for.
            EngineError: it failed.
        """
        ...


class NamedSession(ABC):
    """A session that is told what it takes and gives when it is made.

    Args:
        inputs, outputs: in order.
    """

    _device: torch.device
    """Set by whoever is made of an output: some look into it before they choose."""

    def __init__(self, inputs: Iterable[Spec], outputs: Iterable[Spec]) -> None:
        self._inputs = {spec.name: spec for spec in inputs}
        self._outputs = {spec.name: spec for spec in outputs}

    @property
    def device(self) -> torch.device:
        """See `Session`."""
        return self._device

    @property
    def inputs(self) -> Mapping[str, Spec]:
        """See `Session`."""
        return self._inputs

    @property
    def outputs(self) -> Mapping[str, Spec]:
        """See `Session`."""
        return self._outputs

    @abstractmethod
    def run(self, feeds: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """See `Session`."""


class OutputSession(NamedSession):
    """A session of one output: what it takes and gives stands in the manifest.

    Args:
        output: with its manifest.
    """

    def __init__(self, output: Output) -> None:
        super().__init__(output.manifest.inputs, output.manifest.outputs)
        self._output = output


def dtype_named(name: str) -> torch.dtype:
    """The torch dtype of a manifest's "float16".

    Raises:
        InputError: torch has none of this name.
    """
    import torch

    found = getattr(torch, "bool" if name == "bool" else name, None)
    if not isinstance(found, torch.dtype):
        raise InputError(f"torch has no type {name!r}.", remedy="Build the engine again.")
    return found


def check_feeds(
    feeds: Mapping[str, Tensor],
    specs: Mapping[str, Spec],
    device: torch.device,
    built_for: str,
) -> None:
    """Refuse inputs that an engine was not built for.

    Args:
        feeds: inputs by name.
        specs: what the engine takes.
        device: where it runs.
        built_for: a clause that ends the message, such as "unet.onnx was built for 1024 px".

    Raises:
        InputError: names, shapes, types or devices differ, or a gradient is asked for.
    """
    import torch

    missing = [name for name in specs if name not in feeds]
    foreign = [name for name in feeds if name not in specs]
    if missing or foreign:
        parts = [f"without {', '.join(missing)}"] if missing else []
        parts += [f"with {', '.join(foreign)}, which it does not have"] if foreign else []
        raise InputError(
            f"The engine was called {' and '.join(parts)}; {built_for}.",
            remedy=f"Its inputs are {', '.join(specs)}.",
        )
    batches: dict[int, str] = {}
    texts: dict[int, str] = {}
    for name, spec in specs.items():
        value = feeds[name]
        if not spec.fits(tuple(value.shape)):
            wanted = spec.shape if -1 not in spec.shape else f"({spec.text})"
            raise InputError(
                f"{name} has the shape {tuple(value.shape)} instead of {wanted}; {built_for}.",
                remedy=_shape_remedy(name, tuple(value.shape), spec),
            )
        for axis, bound, seen in ((0, spec.batches, batches), (1, spec.texts, texts)):
            if bound is None:
                continue
            seen.setdefault(int(value.shape[axis]), name)
            if len(seen) > 1:
                named = " and ".join(f"{size} of {one}" for size, one in seen.items())
                raise InputError(
                    f"The inputs have different {bound.many}, {named}; {built_for}.",
                    remedy=f"All inputs of a call need the same {bound.one}.",
                )
        if value.dtype != dtype_named(spec.dtype):
            raise InputError(
                f"{name} is {str(value.dtype).removeprefix('torch.')} instead of {spec.dtype}; "
                f"{built_for}.",
                remedy="Use a pipeline of that precision, or load the engine with cast=True.",
            )
        if value.device != device:
            raise InputError(
                f"{name} lies on {value.device}, the engine on {device}; {built_for}.",
                remedy=f'Move the pipeline, pipe.to("{device}"), or load the engine with '
                f'device="{value.device}".',
            )
        if value.requires_grad and torch.is_grad_enabled():
            raise InputError(
                f"{name} requires a gradient, and an engine has none.",
                remedy="Call it under torch.no_grad().",
            )


def sizes_of(feeds: Mapping[str, Tensor], specs: Mapping[str, Spec]) -> tuple[int, int]:
    """The batch and the tokens of text of checked inputs; 0 where they are fixed."""
    batch = next((name for name, spec in specs.items() if spec.batches is not None), None)
    text = next((name for name, spec in specs.items() if spec.texts is not None), None)
    return (
        0 if batch is None else int(feeds[batch].shape[0]),
        0 if text is None else int(feeds[text].shape[1]),
    )


def _shape_remedy(name: str, got: tuple[int, ...], spec: Spec) -> str:
    wanted = spec.shape
    if len(got) == len(wanted) == 4 and got[2:] != wanted[2:]:
        return (
            "An engine serves one resolution: ask for the picture size it was built for "
            "(height=, width=), or compile one with --res of your own."
        )
    if len(got) == len(wanted) == 3 and got[2] == wanted[2] and spec.texts is not None:
        if got[1] not in spec.texts:
            reaching = f"{min(spec.texts.least, got[1])}..{max(spec.texts.most, got[1])}"
            return f"Compile with --text-tokens {reaching}."
        wanted = (wanted[0], got[1], wanted[2])
    if len(got) == len(wanted) and got[1:] == wanted[1:]:
        return f"Compile with --batch {_reaching(spec, got[0])}, or load without batching='strict'."
    return f"Hand over {name} as ({spec.text})."


def _reaching(spec: Spec, batch: int) -> str:
    """What to compile for: the batch that was wanted, or the range that has it too."""
    if spec.batches is None:
        return str(batch)
    return f"{min(spec.batches.least, batch)}..{max(spec.batches.most, batch)}"
