"""Makes a checkout of ComfyUI importable. Nothing of it (GPL) is in this repository."""

from __future__ import annotations

import importlib
import importlib.util
import sys
import types
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

_UNUSED = ("torchvision", "torchvision.transforms", "torchaudio")
"""Imported at the top of parts that are not run here; an empty module does where they are absent.
The torchvision of PyPI does not import beside torch's CPU build."""


class AbsentError(Exception):
    """There is no ComfyUI, or one of its packages is absent."""


def enter(checkout: Path) -> str:
    """Import it as its ``main.py`` would, on the CPU; returns its version.

    Raises:
        AbsentError: it is no checkout, or what it needs is not installed.
    """
    if not (checkout / "comfy" / "model_patcher.py").is_file():
        raise AbsentError(f"{checkout} is no checkout of ComfyUI.")
    # Behind this repository's folders, ahead of the packages: it has its own `tests` and `app`.
    sys.path.insert(1, str(checkout))
    try:
        for name in ("diffusers", "transformers.utils"):  # they look for torchvision themselves
            importlib.import_module(name)
        for name in _absent():
            sys.modules[name] = types.ModuleType(name)
            sys.modules[name].__spec__ = ModuleSpec(name, None)
        args: Any = importlib.import_module("comfy.cli_args").args
        args.cpu = True
        importlib.import_module("nodes")
        return importlib.import_module("comfyui_version").__version__
    except ImportError as error:
        raise AbsentError(
            f"{error}. Use the Python that runs ComfyUI, or install its requirements.txt."
        ) from error


def _absent() -> list[str]:
    return [n for n in _UNUSED if importlib.util.find_spec(n.partition(".")[0]) is None]
