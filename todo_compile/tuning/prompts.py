"""What to draw while tuning: the user's prompts, the model's own, or a few general ones."""

from __future__ import annotations

from pathlib import Path

from todo_compile.errors import ConfigError
from todo_compile.foreign import ForeignError, read_bytes
from todo_compile.models.registry import DEMO
from todo_compile.models.resolution import Resolution

GENERAL = (
    "a lighthouse on a rocky coast at dusk", "a bowl of ripe cherries on a linen cloth",
    "portrait of a young woman with a red scarf", "a narrow alley in an old harbour town",
    "a fox in fresh snow", "a steam locomotive in a mountain valley",
    "a wooden desk with books and a lamp", "a hot-air balloon above green hills",
    "an old sailor, oil on canvas", "a macro photograph of a dragonfly",
    "a city street in the rain at night", "a glass vase with white tulips",
)  # fmt: skip
_MOST = 10_000


def read_prompts(file: Path | None, folder: Path | None, resolution: Resolution) -> list[str]:
    """One a line; empty lines and those that begin with ``#`` are left out.

    Args:
        file: the user's; None takes ``prompts.txt`` beside the model, or general ones.
        folder: of the model's pipeline, if it has one.
        resolution: the packaged demo model draws patterns above its own size.

    Raises:
        ConfigError: the file cannot be read, or has no prompts, or too many.
    """
    own = None if folder is None else folder / "prompts.txt"
    if folder == DEMO and max(resolution.height, resolution.width) > 128:
        own = DEMO / "prompts-patterns.txt"
    chosen = file or (own if own is not None and own.is_file() else None)
    if chosen is None:
        return list(GENERAL)
    remedy = "Give --prompts a text file with one prompt a line."
    try:
        text = read_bytes(chosen).decode("utf-8")
    except (ForeignError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"The prompts {chosen} cannot be used: {error}.", remedy=remedy
        ) from error
    except OSError as error:
        raise ConfigError(
            f"The prompts {chosen} cannot be read: {error.strerror}.", remedy=remedy
        ) from error
    lines = [line.strip() for line in text.splitlines()]
    found = list(dict.fromkeys(line for line in lines if line and not line.startswith("#")))
    if not found or len(found) > _MOST:
        raise ConfigError(f"{chosen} has {len(found)} prompts.", remedy=remedy)
    return found


def split(prompts: list[str]) -> tuple[list[str], list[str]]:
    """Prompts to measure scores with, and held-out ones to verify with.

    Below four they share all prompts, and differ by seeds only.
    """
    return (prompts, prompts) if len(prompts) < 4 else (prompts[::2], prompts[1::2])
