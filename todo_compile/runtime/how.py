"""How an output shall run: one description of it, checked against what the output is."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from todo_compile.errors import ConfigError

if TYPE_CHECKING:
    from todo_compile.runtime.files import Output

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
