"""Which TensorRT is at hand, asked without loading it into this process."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass

from todo_compile.errors import ConfigError, EngineError
from todo_compile.export._child import run_worker

_INSTALL = {
    "tensorrt_rtx": 'pip install "todo-compile[rtx]"',
    "tensorrt": 'pip install "todo-compile[tensorrt]"',
}


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
        EngineError: it is not installed or does not load.
    """
    if choice not in ("auto", *_INSTALL):
        raise ConfigError(
            f"Unknown library {choice}.", remedy=f"Known: auto, {', '.join(_INSTALL)}."
        )
    name = choice
    if choice == "auto":
        name = "tensorrt" if gpu is not None and _installed("tensorrt") else "tensorrt_rtx"
    if not _installed(name):
        raise EngineError(
            "TensorRT is not installed." if choice == "auto" else f"{name} is not installed.",
            remedy=f"Install it: {_INSTALL[name]}; or write ONNX only: --out FILE.onnx",
        )
    outcome = run_worker({"do": "probe", "library": name})
    if outcome.error is not None or "version" not in outcome.result:
        raise EngineError(
            f"{name} is installed but does not load: {outcome.error or outcome.last_words}",
            remedy=f"Install it anew: {_INSTALL[name]}",
        )
    return Library(name, outcome.result["version"], tuple(outcome.result["targets"]))


def _installed(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ValueError:  # a module without a spec stands in sys.modules, or None does
        return False
