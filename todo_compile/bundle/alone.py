"""One build at a time in a folder."""

from __future__ import annotations

import os
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path

from todo_compile.bundle._locks import hold, still_there
from todo_compile.disk import disk_errors
from todo_compile.errors import BundleError

LOCK = ".building"


@contextmanager
def only_one(folder: Path) -> Generator[None]:
    """Make the folder if it is absent, and keep a second build out; the lock ends with the process.

    A folder in which nothing was made is removed again, by the build that holds it alone.

    Raises:
        BundleError: another process builds into it, or it cannot be written.
    """
    made = not folder.exists()
    lock = _held(folder)
    try:
        yield
    finally:
        if made and folder.is_dir() and all(p.name == LOCK for p in folder.iterdir()):
            with suppress(OSError):  # Windows cannot remove an open file
                (folder / LOCK).unlink()
                folder.rmdir()
        os.close(lock)


def _held(folder: Path) -> int:
    path = folder / LOCK
    while True:
        with disk_errors(path):
            try:
                folder.mkdir(exist_ok=True)
                lock = hold(path)
            except FileNotFoundError:
                continue  # another build that failed removed the folder just now
        if lock is None:
            raise BundleError(
                f"Another process is building into {folder}.",
                remedy="Wait for it, or choose another --out.",
            )
        if still_there(lock, path):
            return lock
        os.close(lock)
