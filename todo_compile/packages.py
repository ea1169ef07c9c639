"""Optional packages: which commands need which, and the extra that brings what is absent.

Asked before any work, without importing anything: a missing package must not be found out after
minutes of tracing.
"""

from __future__ import annotations

import importlib
import importlib.util
from typing import Any

from todo_compile.errors import MissingPackageError

# Extra → the modules that it brings, as they are imported. A test holds this to pyproject.toml.
EXTRAS: dict[str, tuple[str, ...]] = {
    "models": ("numpy", "safetensors", "huggingface_hub", "diffusers"),
    "onnx": ("onnx", "onnx_ir", "onnxscript", "onnxruntime"),
    "plot": ("matplotlib",),
    "tune": ("scipy",),
    "rtx": ("tensorrt_rtx",),
    "tensorrt": ("tensorrt",),
    "ray": ("ray",),
    "generate": ("PIL", "transformers"),
}
# What has to be there beside an extra's own modules. (Drawing with an engine needs no onnx.)
_BESIDE = {"generate": ("models",)}


def installed(module: str) -> bool:
    """Whether a top-level module can be found; it is not imported."""
    try:
        return importlib.util.find_spec(module) is not None
    except ValueError:  # a module without a spec stands in sys.modules, or None does
        return False


def need(what: str, purpose: str) -> None:
    """Check that a module, or all that an extra brings, is installed.

    Args:
        what: an extra, a key of `EXTRAS`; or one of the modules there.
        purpose: what needs it, as the start of a sentence: "Writing ONNX".

    Raises:
        MissingPackageError: something is absent; the remedy names the extra.
    """
    wanted: list[str] = [what]
    extra = what
    if what in EXTRAS:
        wanted = [m for one in (*_BESIDE.get(what, ()), what) for m in EXTRAS[one]]
    else:
        extra = extra_of(what)
    if absent := [module for module in wanted if not installed(module)]:
        raise _missing(absent, purpose, extra)


def load(module: str, purpose: str) -> Any:
    """Import an optional module.

    Args:
        module: as imported, possibly with dots; its first part is in `EXTRAS`.
        purpose: see `need`.

    Raises:
        MissingPackageError: it is absent, or its import fails.
    """
    top = module.partition(".")[0]
    try:
        return importlib.import_module(module)
    except ImportError as error:
        if not installed(top):
            raise _missing([top], purpose, extra_of(top)) from error
        raise MissingPackageError(
            f"{purpose} needs {top}, which is installed but cannot be imported: {error}.",
            remedy=f"Install it anew: {install(extra_of(top))}",
        ) from error


def extra_of(module: str) -> str:
    """The extra that brings a module of `EXTRAS`."""
    return next(extra for extra, modules in EXTRAS.items() if module in modules)


def install(extra: str) -> str:
    """The command that installs an extra."""
    gpu = " (on an NVIDIA GPU [onnx-gpu])" if extra == "onnx" else ""
    return f'pip install "todo-compile[{extra}]"{gpu}'


def _missing(absent: list[str], purpose: str, extra: str) -> MissingPackageError:
    return MissingPackageError(
        f"{purpose} needs {_listed(absent)}, which {'is' if len(absent) == 1 else 'are'} not "
        "installed.",
        remedy=f"Install {'it' if len(absent) == 1 else 'them'}: {install(extra)}",
    )


def _listed(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
