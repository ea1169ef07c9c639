"""What a results file says of how it was made, without paths of the machine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


def origin(
    arguments: Sequence[str],
    root: Path,
    prompts: Path,
    real: Path | None,
    counts: Mapping[int, int],
) -> dict[str, Any]:
    """Facts that a reader needs to make the run again.

    Args:
        arguments: of the command line, without the script's name.
        root: the repository's.
        prompts: the file that was looked for; where it is none, the built-in ones were taken.
        real: folder of real pictures, if it was given.
        counts: by side, how many of them were compared with.
    """
    facts: dict[str, Any] = {
        "arguments": [portable(argument, root) for argument in arguments],
        "prompts_file": named(prompts, root) if prompts.is_file() else None,
        "real": None,
    }
    if real is not None:
        pictures = {str(side): count for side, count in counts.items()}
        facts["real"] = {"folder": named(real, root), "pictures": pictures}
    return facts


def portable(argument: str, root: Path) -> str:
    """An argument of the command line; where it is a path, as `named` says it."""
    option, equals, value = argument.partition("=") if argument[:1] == "-" else ("", "", argument)
    is_path = "/" in value or "\\" in value
    return option + equals + (named(Path(value), root) if is_path else value)


def named(path: Path, root: Path) -> str:
    """Relative to the repository inside it, else the name alone: folders are the machine's."""
    whole, root = path.resolve(), root.resolve()
    return whole.relative_to(root).as_posix() if whole.is_relative_to(root) else whole.name
