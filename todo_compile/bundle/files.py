"""Outputs that are there whole or not at all.

A `Stage` is a hidden folder beside the target, on the same file system. Everything is made in it
under its final name, so files that refer to each other (ONNX and its weights) already fit, and
moves out only when all of it is complete. A build that is killed leaves its stage behind; the
next one for the same target sweeps it away, or finishes its moves if they had begun.
"""

from __future__ import annotations

import errno
import glob
import os
import secrets
import shutil
import tempfile
import time
from collections.abc import Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager, suppress
from pathlib import Path

from todo_compile.bundle import moves
from todo_compile.bundle._locks import alone, hold, lock_file
from todo_compile.bundle._signals import undisturbed
from todo_compile.disk import FULL, check_space, disk_errors, disk_full, flush, read_only
from todo_compile.errors import BundleError, ConfigError

_LOCK = ".lock"
_COMMITS = ".committing"
# A stage without a lock file was killed in its first instant, or is in it right now.
_GRACE_SECONDS = 60.0
# Where the file system has no locks, only its age says whether a build is still running.
_ABANDONED_SECONDS = 24 * 3600.0


def check_target(target: Path, *, needs: int = 0) -> None:
    """Refuse early what cannot succeed: call this before minutes of work.

    Args:
        target: the file to be written.
        needs: bytes that will be needed beside it, 0 if unknown.

    Raises:
        BundleError: the folder is absent or read-only, the target is a folder or a device, the
            disk too full.
    """
    parent = target.parent
    if target.is_dir():
        raise BundleError(f"{target} is a folder.", remedy=f"Name a file: {target / 'engine.plan'}")
    if target.exists() and not target.is_file():
        raise BundleError(
            f"{target} is no regular file.", remedy="It would be replaced: name another file."
        )
    if not parent.exists():
        raise BundleError(
            f"The folder {parent} does not exist.", remedy=f"Make it: mkdir -p {parent}"
        )
    if not parent.is_dir():
        raise BundleError(
            f"{parent} is not a folder.", remedy="Choose another place for the output."
        )
    if not os.access(parent, os.W_OK | os.X_OK):
        raise read_only(parent)
    _try_out(parent)
    check_space(target, needs)


def check_new_folder(folder: Path, option: str) -> None:
    """Refuse early a folder that cannot be made or written; makes nothing.

    Args:
        folder: may be absent, with those above it.
        option: that names it, for the remedy.

    Raises:
        ConfigError: it is a file, or what is there of its path cannot be written.
    """
    above = next(p for p in (folder.absolute(), *folder.absolute().parents) if p.exists())
    try:
        if not above.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
        _try_out(above)
    except (OSError, BundleError) as error:
        raise ConfigError(
            f"The folder {folder} cannot be made or written.",
            remedy=f"Give {option} a folder that you may write.",
        ) from error


def _try_out(folder: Path) -> None:
    """Make a folder in `folder` and remove it: permissions alone say too much for root, /proc, …"""
    try:
        os.rmdir(tempfile.mkdtemp(prefix=".todo-compile-", dir=folder))
    except OSError as error:
        if error.errno in FULL:
            raise disk_full(folder / "x") from error
        raise read_only(folder) from error


class Stage:
    """The folder in which one output is made; see `staged`."""

    def __init__(self, target: Path, folder: Path) -> None:
        self.target = target
        self.folder = folder
        self._published: list[str] = []
        self._retired: list[str] = []
        self._flushes: dict[str, Future[None]] = {}

    def publish(self, name: str) -> Path:
        """Where to write the file that shall stand as `name` beside the target.

        Files move out in the order of these calls. Name data first, then the file that refers to
        it, then the manifest: whoever finds a manifest finds all that it vouches for.
        """
        self._check(name)
        self._published.append(name)
        return self.folder / name

    def scratch(self, name: str) -> Path:
        """Where to write a file that is thrown away at the end."""
        self._check(name)
        return self.folder / name

    def discard(self, name: str) -> None:
        """Remove a scratch file early: what is gone need not be written to the disk any more."""
        (self.folder / name).unlink(missing_ok=True)

    def complete(self, names: Sequence[str]) -> None:
        """Say that these published files have their content: it goes to the disk meanwhile."""
        pool = ThreadPoolExecutor(1, "flush")
        for name in names:
            self._flushes[name] = pool.submit(flush, self.folder / name)
        pool.shutdown(wait=False)

    def settle(self) -> None:
        """Wait for what `complete` started. Called by `staged`."""
        wait(self._flushes.values())

    def retire(self, name: str) -> None:
        """Remove `name` beside the target: the old output had such a file, the new one has not."""
        self._check(name)
        self._retired.append(name)

    def _check(self, name: str) -> None:
        if Path(name).name != name or name in {_LOCK, moves.NOTE, "", ".", ".."}:
            raise ValueError(f"not a plain file name: {name!r}")
        if name in self._published:
            raise ValueError(f"{name!r} is published already")

    def commit(self) -> None:
        """Move everything published out, in order. Called by `staged`.

        Of two builds of one target one does so after the other, so that the manifest of one never
        stands beside the model of the other.
        """
        for name in self._published:
            early = self._flushes.get(name)
            if early is not None:
                early.result()
            else:
                flush(self.folder / name)
        with alone(_committing(self.target)), undisturbed():
            # What refers to other files goes first and comes back last: between the first move
            # and the last, old and new must not be taken for one set.
            vouching = reversed(self._published[1:])
            gone = [name for name in self._retired if name not in self._published]
            moves.publish(self.folder, remove=[*vouching, *gone], move=self._published)


@contextmanager
def staged(target: Path, *, needs: int = 0) -> Generator[Stage]:
    """Make the output `target` and its companions in a stage; publish them if all goes well.

    On any failure, Ctrl-C included, the stage is removed and what stood before stands. Litter of
    killed builds of the same target is removed at the start; a build that is still running is
    left alone, and of two that run at once the last to finish wins.

    Args:
        target: the main file; companions lie in the same folder.
        needs: bytes that will be needed, for the check beforehand; 0 if unknown.

    Raises:
        BundleError: the target cannot be written, or the disk is full.
    """
    check_target(target, needs=needs)
    sweep(target)
    with disk_errors(target, needs=needs):
        folder, lock = _make_stage(target)
        try:
            stage = Stage(target, folder)
            try:
                yield stage
                stage.commit()
            finally:
                stage.settle()
        finally:
            # The lock file cannot be removed on Windows while it is open. In the gap another
            # sweep may take the folder, which is not needed any more.
            os.close(lock)
            if not moves.is_unfinished(folder):
                shutil.rmtree(folder, ignore_errors=True)


def _committing(target: Path) -> Path:
    """The lock that a build holds while its files take their places."""
    return target.parent / f".{target.name}{_COMMITS}"


def sweep(target: Path) -> list[Path]:
    """Remove the stages that dead builds of `target` left behind; returns what was removed.

    A build that was killed between its moves is finished first, since its output was complete.
    """
    with suppress(BundleError):  # else the output is made anew
        finish_moves(target)
    dead = [folder for folder in _stages(target) if _is_dead(folder)]
    for folder in dead:
        shutil.rmtree(folder, ignore_errors=True)
    if _committing(target).exists():  # of a build that was killed at it
        with alone(_committing(target)):
            pass  # leaving removes it
    return dead


def finish_moves(target: Path) -> None:
    """End what a build of `target` began that was killed while its files took their places.

    Raises:
        BundleError: they cannot be moved.
    """
    for folder in _stages(target):
        if not moves.is_unfinished(folder) or not _is_dead(folder):
            continue
        with alone(_committing(target)), disk_errors(target):
            moves.finish(folder)  # unless another process did it meanwhile
        shutil.rmtree(folder, ignore_errors=True)


def _stages(target: Path) -> list[Path]:
    if not os.path.isdir(target.parent):  # False for names that cannot be, too
        return []
    found = target.parent.glob(f".{glob.escape(target.name)}.tmp-*")
    return [folder for folder in found if folder.is_dir() and not folder.is_symlink()]


def _make_stage(target: Path) -> tuple[Path, int]:
    while True:
        folder = target.parent / f".{target.name}.tmp-{os.getpid()}-{secrets.token_hex(4)}"
        folder.mkdir()
        try:
            lock = hold(folder / _LOCK)
        except FileNotFoundError:
            continue  # swept between the two calls (a clock that jumped): take a new name
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        if lock is not None and (folder / _LOCK).exists():
            return folder, lock
        if lock is not None:
            os.close(lock)


def _is_dead(folder: Path) -> bool:
    try:
        lock = lock_file(folder / _LOCK, create=False)
    except FileNotFoundError:
        # A time in the future is that of a clock that was set back.
        return abs(_age(folder)) > _GRACE_SECONDS
    except OSError:
        return _age(folder) > _ABANDONED_SECONDS
    if lock is None:
        return False
    os.close(lock)
    return True


def _age(path: Path) -> float:
    """Seconds since `path` was changed; 0 if it is gone."""
    try:
        return time.time() - path.stat().st_mtime
    except OSError:
        return 0.0
