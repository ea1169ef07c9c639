"""Which TensorRT is at hand, asked without loading it into this process."""

from __future__ import annotations

from dataclasses import dataclass

from todo_compile import packages
from todo_compile.errors import ConfigError, EngineError, MissingPackageError
from todo_compile.export._child import run_worker

_LIBRARIES = ("tensorrt_rtx", "tensorrt")


@dataclass(frozen=True)
class Library:
    """A TensorRT that can be imported.

    Attributes:
        name: module name, "tensorrt" or "tensorrt_rtx".
        version: as the module states it.
        targets: GPUs that it can build for by name; empty if only for the one in the machine.
    """

    name: str
    version: str
    targets: tuple[str, ...]


def current_gpu() -> str | None:
    """The first GPU of this machine as "sm89", or None."""
    import torch

    if not torch.cuda.is_available():
        return None
    major, minor = torch.cuda.get_device_capability()
    return f"sm{major}{minor}"


def choose_library(choice: str = "auto", *, gpu: str | None = None) -> Library:
    """Find the library to build with; takes about a second, so that an absent one shows early.

    "auto" takes ``tensorrt`` if it is installed and there is a GPU, else ``tensorrt_rtx``.

    Raises:
        ConfigError: `choice` is no library.
        MissingPackageError: it is not installed.
        EngineError: it does not load.
    """
    if choice not in ("auto", *_LIBRARIES):
        raise ConfigError(
            f"Unknown library {choice}.", remedy=f"Known: auto, {', '.join(_LIBRARIES)}."
        )
    name = choice
    if choice == "auto":
        name = "tensorrt" if gpu is not None and packages.installed("tensorrt") else "tensorrt_rtx"
    install = packages.install(packages.extra_of(name))
    if not packages.installed(name):
        raise MissingPackageError(
            "TensorRT is not installed." if choice == "auto" else f"{name} is not installed.",
            remedy=f"Install it: {install}; or write ONNX only: --out FILE.onnx",
        )
    outcome = run_worker({"do": "probe", "library": name})
    if outcome.error is not None or "version" not in outcome.result:
        raise EngineError(
            f"{name} is installed but does not load: {outcome.error or outcome.last_words}",
            remedy=f"Install it anew: {install}",
        )
    return Library(name, outcome.result["version"], tuple(outcome.result["targets"]))
