"""Files that options name with a strength: ``FILE[:SCALE]``, LoRAs and IP-Adapters."""

from __future__ import annotations

import math
from contextlib import suppress
from pathlib import Path

from todo_compile.errors import ConfigError, ModelError


def file_and_scale(text: str, option: str, what: str) -> tuple[Path, float]:
    """The parts of ``FILE`` or ``FILE:SCALE``; the file is there, and called a safetensors file.

    Args:
        text: as given.
        option: it was given to.
        what: the file is, for messages.

    Raises:
        ConfigError: the scale is not a finite number.
        ModelError: the file is absent, or no safetensors.
    """
    name, scale = text, 1.0
    head, colon, tail = text.rpartition(":")
    if colon and not Path(text).is_file():
        with suppress(ValueError):  # a path with a colon, that is not there
            name, scale = head, float(tail)
    if not math.isfinite(scale):
        raise ConfigError(f"{tail!r} is not a scale.", remedy=f"Write {option} FILE:0.8.")
    path = Path(name).expanduser()
    if path.suffix != ".safetensors" or not path.is_file():
        wrong = "is not a safetensors file" if path.exists() else "does not exist"
        raise ModelError(
            f"The {what} {path} {'is a folder' if path.is_dir() else wrong}.",
            remedy=f"Write {option} FILE.safetensors[:SCALE]; pickles are refused.",
        )
    return path, scale
