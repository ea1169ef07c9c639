"""What every loaded component has in common: diffusers takes it for the module it was made from.

A session takes one batch, or a range, and one type. Here other batches are cut into the engine's,
and a cast is made where the user asked for it.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, Self, TypedDict

import torch
from torch import Tensor

from todo_compile.batches import pieces
from todo_compile.errors import ConfigError, InputError
from todo_compile.runtime.compiled import Compiled, CompiledError
from todo_compile.runtime.finite import check_finite
from todo_compile.runtime.session import dtype_named

if TYPE_CHECKING:
    from todo_compile.bundle.tensors import Tensor as Spec
    from todo_compile.runtime.files import Origin
    from todo_compile.runtime.session import Session

Batching = Literal["split", "strict"]


class ComponentOptions(TypedDict, total=False):
    """See `Component`."""

    batching: Batching
    cast: bool


class PaddedBatchWarning(UserWarning):
    """Part of an engine's batch was computed for nothing."""


_MADE = ("encoder_hid_proj",)
"""What an IP-Adapter puts into a UNet, so that its class does not have it."""


class Component(Compiled):
    """A compiled component that looks like the diffusers module that it replaces.

    Args:
        session: runs it.
        origin: what it was made from.
        batching: ``split`` cuts larger batches into the engine's (of a range, its largest) and
            fills up what is too small for it (with a warning, once); ``strict`` refuses every
            batch that the engine does not have.
        cast: inputs of another float type are cast to the engine's and the result back. Without,
            they are refused, as by torch.

    Attributes:
        session: as given.
        origin: as given.
    """

    def __init__(
        self,
        session: Session,
        origin: Origin,
        *,
        batching: Batching = "split",
        cast: bool = False,
    ) -> None:
        super().__init__()
        if batching not in ("split", "strict"):
            raise ConfigError(f"Unknown batching={batching!r}.", remedy="Known: split, strict.")
        self.session = session
        self.origin = origin
        self._batching = batching
        self._cast = cast
        self._warned = False
        main = next(iter(session.inputs.values()))
        results = next(iter(session.outputs.values()))
        self._least, self._most = self._bounds(main)
        # A text encoder's inputs are integers; its type is that of what comes out.
        self._dtype = dtype_named(main.dtype if "float" in main.dtype else results.dtype)
        # Settable, since diffusers replaces it in old checkpoints' pipelines.
        self._internal_dict = self._make_config(dict(origin.config))
        self.eval()

    @staticmethod
    def _bounds(spec: Spec) -> tuple[int, int]:
        """The least and the most rows that an input with the batch first takes."""
        if spec.batches is not None:
            return spec.batches.least, spec.batches.most
        return spec.shape[0], spec.shape[0]

    def _make_config(self, values: dict[str, Any]) -> Any:
        """The configuration as diffusers presents it, defaults filled in."""
        return frozen_config(values, self.origin.class_name)

    @property
    def config(self) -> Any:
        """Configuration of the module that this was made from."""
        return self._internal_dict

    def _change_config(self, **changes: object) -> None:
        self._internal_dict = type(self._internal_dict)({**self._internal_dict, **changes})

    @property
    def dtype(self) -> torch.dtype:
        """The precision that it was built with."""
        return self._dtype

    @property
    def device(self) -> torch.device:
        """Where it runs; fixed when it is loaded."""
        return self.session.device

    def time_of(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[float, float]:
        """The scheduler's time that a call is of, and how far off it may be by rounding.

        Args:
            args, kwargs: of the call.

        Raises:
            InputError: the call has no time.
        """
        given = inspect.signature(self.forward).bind_partial(*args, **kwargs).arguments
        if given.get("timestep") is None:
            raise InputError("The denoiser was called without a timestep.")
        return float(torch.as_tensor(given["timestep"]).reshape(-1)[0]), 0.0

    def extra_repr(self) -> str:
        """For `print`."""
        return f"{self.origin.built_for}, on {self.device}"

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """What ``to``, ``cuda``, ``half``, … come down to.

        Raises:
            InputError: another device or precision is asked for.
        """
        probe = torch.empty(0, dtype=self.dtype, device=self.device)
        moved = fn(probe)
        if (moved.device, moved.dtype) != (probe.device, probe.dtype):
            kind = str(moved.dtype).removeprefix("torch.")
            raise InputError(
                f"A compiled component cannot be moved to {moved.device}, {kind}: "
                f"{self.origin.built_for}, and was loaded for {self.device}.",
                remedy=self._instead(moved),
            )
        # Modules inside (a torch encoder beside a compiled decoder) do move.
        return super()._apply(fn, recurse)

    def _instead(self, moved: Tensor) -> str:
        """What to do where a move is refused."""
        if moved.dtype != self.dtype:
            return "Compile it with the --precision that you need."
        if moved.device.type == "cpu" and self.origin.name.endswith((".plan", ".engine")):
            return (
                "An engine of TensorRT runs on its GPU alone: delete the pipeline to free its "
                "memory, and leave offloading out."
            )
        return (
            f'Load it with device="{moved.device}", and do without offloading: a compiled '
            "component stays where it was loaded."
        )

    @property
    def _called(self) -> str:
        return self.origin.name

    @property
    def _shared(self) -> tuple[object, ...]:
        return self.session, self.origin

    def __getattr__(self, name: str) -> Any:
        """What the module has and a compiled one can't: adapters, processors, fusing, ….

        Raises:
            CompiledError: the module that it was made from has this.
            AttributeError: that has no such attribute either.
        """
        try:
            return super().__getattr__(name)
        except AttributeError:
            origin: Any = self.__dict__.get("origin")
            if (
                origin is None
                or name.startswith("__")
                or not (name in _MADE or hasattr(_class_named(origin.class_name), name))
            ):
                raise
        raise CompiledError(
            f"{origin.name} is compiled: it has no {name} of {origin.class_name}.",
            remedy="IP-Adapters are layers in attention: compile the UNet with one, "
            "--ip-adapter FILE[:SCALE], whose scale is fixed, or use the torch pipeline."
            if "ip_adapter" in name or name in _MADE
            else "What changes weights or attention comes before compiling (LoRAs: --lora "
            "FILE[:SCALE]). Or load the pipeline that it was made from.",
        )

    def _run(self, feeds: Mapping[str, Tensor], *, shared: frozenset[str]) -> dict[str, Tensor]:
        """Run a batch of any size.

        Args:
            feeds: inputs by name; all but `shared` have the batch first.
            shared: names of inputs that have no batch.

        Raises:
            NotFiniteError: an output holds NaN or infinity.
        """
        feeds, back = self._casted(feeds)
        first = next((value for name, value in feeds.items() if name not in shared), None)
        count = int(first.shape[0]) if first is not None and first.ndim else 0
        if not count or self._least <= count <= self._most or self._batching == "strict":
            results = self.session.run(feeds)  # which refuses what does not fit
        else:
            results = self._in_pieces(feeds, shared, count)
        check_finite(results.values(), self.origin.name)
        if back is None:
            return results
        return {k: v.to(back) if v.is_floating_point() else v for k, v in results.items()}

    def _casted(self, feeds: Mapping[str, Tensor]) -> tuple[Mapping[str, Tensor], Any]:
        """`feeds` in the engine's types, and the type to return to, if casting is on."""
        if not self._cast:
            return feeds, None
        back: torch.dtype | None = None
        casted: dict[str, Tensor] = {}
        for name, value in feeds.items():
            spec = self.session.inputs.get(name)
            wanted = dtype_named(spec.dtype) if spec is not None else value.dtype
            if value.is_floating_point() and wanted.is_floating_point and value.dtype != wanted:
                back = back or value.dtype
                value = value.to(wanted)  # noqa: PLW2901
            casted[name] = value
        return casted, back

    def _in_pieces(
        self, feeds: Mapping[str, Tensor], shared: frozenset[str], count: int
    ) -> dict[str, Tensor]:
        sizes = pieces(count, self._least, self._most)
        spare = max(0, self._least - sizes[-1])
        if spare and not self._warned:
            self._warned = True
            halved = 2 * count == self._least
            guided = ", or draw with guidance above 1, which fills it" if halved else ""
            warnings.warn(
                f"{self.origin.built_for}; it was called with a batch of {count}, so {spare} of "
                f"{count + spare} rows are computed for nothing. Compile with --batch {count} to "
                f"avoid it{guided}.",
                PaddedBatchWarning,
                stacklevel=4,
            )
        found: list[dict[str, Tensor]] = []
        start = 0
        for size in sizes:
            filled = max(size, self._least)
            piece = {
                name: value if name in shared else _rows(name, value, start, filled, count)
                for name, value in feeds.items()
            }
            found.append(self.session.run(piece))
            start += size
        return {name: torch.cat([p[name] for p in found])[:count] for name in found[0]}


def _rows(name: str, value: Tensor, start: int, size: int, count: int) -> Tensor:
    """`size` rows from `start` on; the last one is repeated where there are no more."""
    if value.ndim == 0 or value.shape[0] != count:
        raise InputError(
            f"{name} has the shape {tuple(value.shape)} where a batch of {count} was expected.",
            remedy="All inputs need the same batch.",
        )
    rows = value[start : start + size]
    if len(rows) == size:
        return rows
    return torch.cat([rows, rows[-1:].expand(size - len(rows), *rows.shape[1:])])


def frozen_config(values: dict[str, Any], class_name: str) -> Any:
    """diffusers' ``FrozenDict`` of `values`, with the defaults of the class for what is absent.

    Old checkpoints lack the keys that came later, and pipelines read them all the same.
    """
    from diffusers.configuration_utils import FrozenDict

    made_from = _class_named(class_name)
    if inspect.isclass(made_from):
        for name, parameter in inspect.signature(made_from.__init__).parameters.items():
            if parameter.default is not inspect.Parameter.empty:
                values.setdefault(name, parameter.default)
    return FrozenDict(values)


def _class_named(name: str) -> Any:
    """The class of the module that something was made from, or None."""
    import diffusers

    if (found := getattr(diffusers, name, None)) is not None:
        return found
    import transformers

    return getattr(transformers, name, None)
