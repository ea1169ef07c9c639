"""What the file system says, in our words: full disks, folders that cannot be written, sizes."""

from __future__ import annotations

import errno
import os
import shutil
import stat
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path

from todo_compile.errors import BundleError

FULL = {errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC)}
"""Errors of a full disk."""


def check_space(target: Path, needs: int) -> None:
    """Raise `BundleError` if fewer than `needs` bytes are free where `target` will lie."""
    free = shutil.disk_usage(target.parent).free
    if needs > free:
        raise disk_full(target, needs)


def disk_full(target: Path, needs: int = 0) -> BundleError:
    """The error for a full disk, in one wording wherever it strikes; `needs` is bytes or 0."""
    free = shutil.disk_usage(target.parent).free
    about = f" needs about {format_bytes(needs)}," if needs else ""
    return BundleError(
        f"Disk full: {target.name}{about} {format_bytes(free)} free in {target.parent}.",
        remedy="Free some space or choose an output on another disk.",
    )


def format_bytes(count: float) -> str:
    """A size for people: ``1.74 GB`` (decimal units, as disks are sold)."""
    for unit in ("bytes", "kB", "MB"):
        if abs(count) < 1000:
            return f"{count:.0f} {unit}" if unit == "bytes" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.2f} GB"


@contextmanager
def disk_errors(target: Path, *, needs: int = 0) -> Generator[None]:
    """Turn the file system's complaints about `target` into `BundleError` with a remedy."""
    try:
        yield
    except OSError as error:
        if error.errno in FULL:
            raise disk_full(target, needs) from error
        # Only what concerns the output: the body may also read files elsewhere.
        named = Path(str(error.filename or ""))
        ours = bool(error.filename) and target.parent in (named, *named.parents)
        if ours and error.errno in {errno.EROFS, errno.EACCES, errno.EPERM}:
            raise read_only(target.parent) from error
        if error.errno == errno.EFBIG:
            raise BundleError(
                f"{target} would be larger than this file system or the process's limit allows.",
                remedy="Choose another disk, or raise the limit (ulimit -f).",
            ) from error
        if ours:
            raise BundleError(
                f"{error.filename}: {error.strerror}.",
                remedy="Something changes this place during the build: run it again, or choose "
                "another output.",
            ) from error
        raise


def clear_way(path: Path) -> None:
    """Remove what is no regular file where one will be written into: a link would lead elsewhere,
    a FIFO would block.

    Raises:
        OSError: it cannot be removed; it is a folder.
    """
    with suppress(FileNotFoundError):
        if not stat.S_ISREG(path.lstat().st_mode):
            path.unlink()


def read_only(folder: Path) -> BundleError:
    """The error for a folder that cannot be written."""
    return BundleError(
        f"Cannot write in {folder}.",
        remedy="Choose another output folder or change its permissions "
        "(on Windows: close the program that holds the file).",
    )


def flush(path: Path) -> None:
    """Wait until the content of `path` is on the disk, so that no power cut leaves a hole."""
    handle = os.open(path, os.O_RDWR | getattr(os, "O_BINARY", 0))
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
