"""How an output shall run, and how it becomes a component: one description of each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from todo_compile.errors import ConfigError

if TYPE_CHECKING:
    from torch import nn

    from todo_compile.runtime.component import Batching
    from todo_compile.runtime.files import Output, Verify
    from todo_compile.runtime.session import Session

SPECIALISATIONS = ("lazy", "eager", "none")


@dataclass(frozen=True)
class How:
    """See `load` for each.

    Raises:
        ConfigError: `specialise` is none of `SPECIALISATIONS`.
    """

    device: str | None = None
    provider: str | None = None
    threads: int | None = None
    cuda_graph: bool = False
    specialise: str | None = None
    runtime_cache: Path | None = None

    def __post_init__(self) -> None:
        if self.specialise not in (None, *SPECIALISATIONS):
            raise ConfigError(
                f"Unknown specialise={self.specialise!r}.",
                remedy=f"Known: {', '.join(SPECIALISATIONS)}.",
            )

    def check(self, output: Output) -> None:
        """Refuse what is for outputs of another format.

        Raises:
            ConfigError: says what, and where the output runs.
        """
        manifest, name = output.manifest, output.path.name
        engine = manifest.library is not None and not manifest.packaged
        place = "TensorRT" if engine else "torch" if manifest.packaged else "onnxruntime"
        given = {
            "cuda_graph": (self.cuda_graph, engine, "TensorRT engines"),
            "specialise": (self.specialise is not None, engine, "TensorRT engines"),
            "runtime_cache": (self.runtime_cache is not None, engine, "TensorRT engines"),
            "provider": (self.provider is not None, place == "onnxruntime", "ONNX files"),
        }
        for option, (asked, fits, what) in given.items():
            if asked and not fits:
                raise ConfigError(
                    f"{option} is for {what}.", remedy=f"Leave it out: {name} runs in {place}."
                )

    def with_cache_of(self, output: Output) -> How:
        """For one more output: each engine has a cache of its own, beside the first one's."""
        if (cache := self.runtime_cache) is None:
            return self
        return replace(self, runtime_cache=cache.with_name(f"{output.path.name}.cache"))


@dataclass(frozen=True)
class Wrapping:
    """How checked outputs become components; see `load` for each.

    Attributes:
        opener: opens an output, in place of `open_session`.
    """

    how: How = How()
    verify: Verify = "full"
    batching: Batching = "split"
    cast: bool = False
    encoder: nn.Module | None = None
    opener: Callable[[Output], Session] | None = None
