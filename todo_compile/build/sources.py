"""A hash of the package itself: an output made by another source is stale.

Wrappers, inputs, LoRA, capture, options and private torch decide outputs as much as the passes do.
So nothing is picked: every file of code counts, whoever edits one in a checkout builds anew.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING

from todo_compile.errors import ConfigError

if TYPE_CHECKING:
    from importlib.resources.abc import Traversable

PACKAGE = "todo_compile"
_CODE = (".py", ".pyc")
"""Compiled files count where they stand for a source that was left out; caches never do."""


def code_files(root: Traversable, prefix: str = "") -> Iterator[tuple[str, Traversable]]:
    """(path below `root` with slashes, file) of every file of code, in the order of paths."""
    for entry in sorted(root.iterdir(), key=lambda one: one.name):
        if entry.is_dir():
            if entry.name != "__pycache__":
                yield from code_files(entry, f"{prefix}{entry.name}/")
        elif entry.name.endswith(_CODE):
            yield f"{prefix}{entry.name}", entry


def hash_of(root: Traversable) -> str:
    """Hash of names and content of all code below `root`: a folder, or a folder in a zip file.

    Raises:
        ConfigError: there is none to be read.
    """
    digest = hashlib.sha256()
    found = 0
    for name, file in code_files(root):
        content = file.read_bytes()
        # With both lengths, so that no two listings give the same bytes.
        digest.update(f"{len(name)} {len(content)} {name}".encode() + content)
        found += 1
    if not found:
        raise ConfigError(
            "The package's own files cannot be read, so nothing says whether an output is stale.",
            remedy="Install todo-compile from a wheel or a checkout.",
        )
    return digest.hexdigest()[:16]


@cache
def sources_hash() -> str:
    """`hash_of` this package, read once a process.

    Raises:
        ConfigError: it is installed in a way that hides its files.
    """
    return hash_of(files(PACKAGE))
