"""A compiled denoiser whose inputs were recorded in its pipeline; it is called like its class."""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from todo_compile.capture.recording.call import flatten
from todo_compile.capture.recording.padding import Padding
from todo_compile.capture.recording.times import Times
from todo_compile.errors import InputError
from todo_compile.models.build import build
from todo_compile.runtime.component import Component
from todo_compile.runtime.session import dtype_named

if TYPE_CHECKING:
    from typing import Unpack

    from todo_compile.runtime.component import ComponentOptions
    from todo_compile.runtime.files import Origin
    from todo_compile.runtime.session import Session


_TEXTS = ("encoder_hidden_states", "cap_feats")
"""How the names of texts begin, of which some pipelines pass as many tokens as a prompt has."""


class CompiledCall(Component):
    """Any denoiser of diffusers.

    Its pipeline's code makes the tensors, as it did when the call was recorded. What was a constant
    in that call must have the same value now.

    Args:
        session: runs it.
        origin: with the recorded call.
        options: of `Component`.
    """

    def __init__(
        self, session: Session, origin: Origin, **options: Unpack[ComponentOptions]
    ) -> None:
        super().__init__(session, origin, **options)
        import diffusers

        assert origin.call is not None
        self._fixed: Mapping[str, str] = origin.call["fixed"]
        padding = origin.call.get("padding")
        self._padding = None if padding is None else Padding(**padding)
        self._pictures: Mapping[str, list[list[int]]] = origin.call.get("pictures", {})
        self._shared_inputs = frozenset(session.inputs) - frozenset(origin.call["batched"])
        self._times = Times.of(origin.call.get("time"))
        for name, spec in session.inputs.items():
            if name not in self._shared_inputs:  # lists of pictures come before it
                self._least, self._most = self._bounds(spec)
                break
        cls: Any = getattr(diffusers, origin.class_name)
        self._signature = inspect.signature(cls.forward)
        self._twin: Any = None
        first = next(iter(session.inputs.values())).shape
        if len(first) == 4 and first[2] == first[3] and "sample_size" in self._internal_dict:
            # What pipelines take for the size of pictures when the user names none.
            self._change_config(sample_size=first[2])

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """As the module's; see diffusers.

        Raises:
            InputError: it is called otherwise than when it was compiled.
        """
        given = self._bound(args, kwargs)
        wrapped = given.get("return_dict", True)
        if self._padding is not None:
            given = self._padding.filled(given, self.session.inputs[self._padding.text].shape[1])
        flat = flatten(given)
        self._check(flat.fixed, flat.names)
        self._check_text(flat.by_name)
        self._check_pictures(flat.by_name)
        feeds = {name: self._fitting(name, flat.by_name[name]) for name in self.session.inputs}
        results = list(self._run(feeds, shared=self._shared_inputs).values())
        found: Any = results if len(results) > 1 or _in_lists(given) else results[0]
        if not wrapped:
            return (found,)
        from diffusers.models.modeling_outputs import Transformer2DModelOutput

        return Transformer2DModelOutput(sample=found)

    def _bound(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
        try:
            given = dict(self._signature.bind(None, *args, **kwargs).arguments)
        except TypeError as error:
            raise InputError(
                f"{self.origin.class_name} cannot be called like this: {error}.",
                remedy="Call it as diffusers' class of this name.",
            ) from error
        del given[next(iter(self._signature.parameters))]
        return given

    def time_of(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[float, float]:
        """See `Component.time_of`.

        Raises:
            InputError: the call has no time, or how it follows from the schedule is unknown.
        """
        given = self._bound(args, kwargs)
        if self._times is None or given.get(self._times.name) is None:
            raise InputError(
                f"What step a call is of cannot be told; {self.origin.built_for}.",
                remedy="Build it with one phase.",
            )
        return self._times.scheduled(given[self._times.name])

    def cache_context(self, *args: Any, **kwargs: Any) -> AbstractContextManager[None]:
        """Nothing to do: a compiled denoiser keeps nothing from one step to the next."""
        del args, kwargs
        return nullcontext()

    def _check(self, fixed: Mapping[str, str], names: tuple[str, ...]) -> None:
        different = [
            f"{key} = {fixed.get(key, 'nothing')} instead of {self._fixed.get(key, 'nothing')}"
            for key in sorted({*fixed, *self._fixed})
            if fixed.get(key) != self._fixed.get(key)
        ]
        inputs = set(self.session.inputs)
        different += [f"{name} besides" for name in names if name not in inputs]
        different += [f"no {name}" for name in inputs.difference(names)]
        if different:
            raise InputError(
                f"The pipeline passes {', '.join(different)}; {self.origin.built_for}.",
                remedy="Whatever is not a tensor is part of what was compiled: draw with the size "
                "and settings of the build, or use the torch module.",
            )

    def _check_text(self, given: Mapping[str, Tensor]) -> None:
        """Some pipelines pass a text as it is, without filling it up, and without a mask."""
        for name, value in given.items():
            spec = self.session.inputs[name]
            wanted, tokens = tuple(spec.shape)[-2:], value.shape[-2] if value.dim() > 1 else 0
            if not name.startswith(_TEXTS) or value.dim() != len(spec.shape):
                continue
            known = tokens == wanted[0] if spec.texts is None else tokens in spec.texts
            if not known and value.shape[-1] == wanted[1]:
                built = wanted[0] if spec.texts is None else spec.texts
                raise InputError(
                    f"The pipeline passes {tokens} tokens of text; {self.origin.built_for} with "
                    f"{built}.",
                    remedy=self._other_text(given, tokens),
                )

    def _check_pictures(self, given: Mapping[str, Tensor]) -> None:
        """How many tokens pictures to look at have is fixed when an output is built."""
        for name, grids in self._pictures.items():
            tokens = given[name].shape[-2] if given[name].dim() > 1 else 0
            if tokens == sum(math.prod(grid) for grid in grids):
                continue
            sides = " + ".join("×".join(map(str, reversed(grid))) for grid in grids)
            raise InputError(
                f"The pipeline passes {tokens} tokens of pictures; {self.origin.built_for} with "
                f"{sides} (width×height: what is drawn, then each picture to look at).",
                remedy="Give as many pictures to look at, each with the sides' ratio that is in "
                "these numbers, in the size that it was built for; or build it anew.",
            )

    def _other_text(self, given: Mapping[str, Tensor], tokens: int) -> str:
        """What to do about a text of another length, and about two that differ."""
        texts = [v.shape[-2] for n, v in given.items() if n.startswith(_TEXTS) and v.dim() == 2]
        if len(set(texts)) > 1:
            return (
                f"Its texts have {' and '.join(map(str, texts))} tokens, and an output has one "
                "length: give a negative prompt as long as the prompt, or draw without guidance "
                "(--guidance 0) with what was built so: --batch 1 and --text-tokens of the "
                "prompt's length."
            )
        return f"Give another length of prompt, or build it for this one: --text-tokens {tokens}."

    def _fitting(self, name: str, value: Tensor) -> Tensor:
        """The tensor in the type of its input, where that is of numbers without fractions or mixed
        by the pipeline: times, positions and masks.

        Raises:
            InputError: a mask of other numbers than 0 and 1.
        """
        wanted = dtype_named(self.session.inputs[name].dtype)
        if wanted is torch.bool and not bool(((value == 0) | (value == 1)).all()):
            raise InputError(
                f"The pipeline passes a {name} of other numbers than 0 and 1; "
                f"{self.origin.built_for} with those.",
                remedy="Let it say which tokens count, or use the torch module.",
            )
        if value.dtype == wanted or (value.is_floating_point() and value.dim() > 2):
            return value
        return value.to(wanted)

    def __getattr__(self, name: str) -> Any:
        """What pipelines read of the module: its sizes, from one without weights.

        Raises:
            AttributeError, CompiledError: see `Component`.
        """
        if name.startswith("_") or "origin" not in self.__dict__:
            return super().__getattr__(name)
        try:
            return super().__getattr__(name)
        except AttributeError as error:
            found = getattr(self._sizes(), name, None)
            if isinstance(found, torch.nn.Module | int | float | str | tuple):
                return cast("Any", found)
            raise error

    def _sizes(self) -> Any:
        if self._twin is None:
            with torch.device("meta"):
                # In a tuple: as a module of this one it would move with it.
                self._twin = (build(self.origin.config, self.dtype),)
        return self._twin[0]


def _in_lists(given: Mapping[str, Any]) -> bool:
    """Whether pictures come in a list, one for each row, as they then are given back."""
    pictures: Any = next((v for v in given.values() if isinstance(v, Tensor | list)), None)
    return isinstance(pictures, list) and bool(pictures) and isinstance(pictures[0], Tensor)
