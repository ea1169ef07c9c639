"""AOTInductor packages (``.pt2``) in this process, on the CPU."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from todo_compile import _torch
from todo_compile.errors import ConfigError, EngineError, first_line
from todo_compile.export import package
from todo_compile.runtime.files import check_library
from todo_compile.runtime.session import OutputSession, check_feeds, dtype_named, sizes_of

if TYPE_CHECKING:
    from todo_compile.runtime.files import Output


def check_device(name: str, device: str | None) -> None:
    """Refuse to run packages anywhere but on the CPU.

    Raises:
        EngineError: another device is asked for.
    """
    if device not in (None, "cpu"):
        raise EngineError(
            f"{name} was compiled for the CPU, not for {device}.",
            remedy='Leave device out. For a GPU: torch.compile(backend="todo_inductor"), '
            "ONNX, or an engine.",
        )


class PackageSession(OutputSession):
    """A package in torch.

    Args:
        output: checked, see `files.open_output`.
        device: ``cpu`` or None.
        threads: must be None.

    Raises:
        EngineError: it is of another torch, needs another processor, or does not load.
        ConfigError: `threads` was given: the package takes torch's.
    """

    def __init__(
        self, output: Output, *, device: str | None = None, threads: int | None = None
    ) -> None:
        super().__init__(output)
        self._device = torch.device("cpu")
        manifest = output.manifest
        if threads is not None:
            raise ConfigError(
                "threads is for onnxruntime, and a package takes torch's threads.",
                remedy="Leave it out, and call torch.set_num_threads.",
            )
        check_device(output.path.name, device)
        check_library(output, package.NAME, package.version())
        if missing := sorted(set(manifest.targets) - package.features_here()):
            raise EngineError(
                f"{output.path.name} needs {', '.join(missing)}, which this machine lacks.",
                remedy="Build it again here, or on a machine like this one.",
            )
        try:
            self._call: Any = _torch.load_ahead(str(output.path))
        except RuntimeError as error:
            raise EngineError(
                f"torch cannot load {output.path.name}: {first_line(error)}",
                remedy="Build it again with todo-compile.",
            ) from error

    def run(self, feeds: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """See `Session.run`."""
        name = self._output.path.name
        check_feeds(feeds, self._inputs, self.device, self._output.built_for)
        held = [feeds[one].contiguous() for one in self._inputs]
        try:
            with torch.no_grad():
                found: Any = self._call(*held)
        except RuntimeError as error:
            raise EngineError(
                f"{name} failed: {first_line(error)}",
                remedy="If memory ran out: a smaller batch or resolution.",
            ) from error
        results = list(found) if isinstance(found, (tuple, list)) else [found]
        sizes = sizes_of(feeds, self._inputs)
        wanted = [(spec.at(*sizes), dtype_named(spec.dtype)) for spec in self._outputs.values()]
        if [(tuple(one.shape), one.dtype) for one in results] != wanted:
            raise EngineError(
                f"{name} returned something other than its manifest says.",
                remedy="Build it again with todo-compile.",
            )
        # A graph may hand on an input, or a part of one.
        lent = {_torch.storage_of(one) for one in held}
        fresh = [one.clone() if _torch.storage_of(one) in lent else one for one in results]
        return dict(zip(self._outputs, fresh, strict=True))
