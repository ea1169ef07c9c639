"""A lock that the system gives back when its process dies, however it dies.

A process id tells nothing across containers that share a volume, and ids are used again; a lock
held by the kernel is right in both cases.
"""

from __future__ import annotations

import errno
import os
import sys
import time
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path

_POLL_SECONDS = 0.02
# What network and container file systems say that have no locks.
_NO_LOCKS = {
    getattr(errno, name, errno.ENOSYS) for name in ("ENOLCK", "ENOSYS", "ENOTSUP", "EOPNOTSUPP")
}


class NoLocksError(OSError):
    """The file system knows no locks.

    The policy everywhere: a build goes on without, outputs are whole all the same since they are
    moved into place, and it is up to the user not to start two builds of one output.
    """


def lock_file(path: Path, *, create: bool) -> int | None:
    """Open `path` and lock it for this process.

    Returns:
        An open file descriptor (closing it gives the lock back), or None if another process
        holds the lock.

    Raises:
        NoLocksError: its file system knows no locks.
        OSError: the file cannot be opened, or is a link.
    """
    # Python opens descriptors so that children don't inherit them: a child that outlives us
    # must not keep our lock.
    handle = os.open(path, _FLAGS | (os.O_CREAT if create else 0), 0o644)
    try:
        if _try_lock(handle):
            return handle
    except OSError as error:
        os.close(handle)
        if error.errno in _NO_LOCKS:
            raise NoLocksError(error.errno, error.strerror) from error
        raise
    except BaseException:
        os.close(handle)
        raise
    os.close(handle)
    return None


def hold(path: Path) -> int | None:
    """As `lock_file`, created; where there are no locks, the open file alone.

    Raises:
        OSError: the file cannot be opened, or is a link.
    """
    try:
        return lock_file(path, create=True)
    except NoLocksError:
        return os.open(path, _FLAGS)


def still_there(handle: int, path: Path) -> bool:
    """Whether the open file is what lies at `path`: it may be removed before it is locked."""
    with suppress(OSError):
        return os.path.samestat(os.fstat(handle), path.stat())
    return False


@contextmanager
def alone(path: Path) -> Generator[None]:
    """Wait until no other process holds the lock file `path`, then hold it. Meant for moments.

    Where the file system knows no locks, nothing is waited for.
    """
    try:
        lock = _wait_for(path)
    except NoLocksError:  # the file was made, and keeps nobody out
        with suppress(OSError):
            path.unlink()
        yield
        return
    except OSError:
        yield
        return
    try:
        yield
    finally:
        # Removed while it is held: whoever waits for it finds another file, or none, and asks anew.
        # Windows removes no open file; there it stays.
        with suppress(OSError):
            path.unlink()
        os.close(lock)


def _wait_for(path: Path) -> int:
    """Wait for the lock file, and hold it; it is the file that lies at `path` then."""
    while True:
        lock = lock_file(path, create=True)
        if lock is None:
            time.sleep(_POLL_SECONDS)
            continue
        if still_there(lock, path):
            return lock
        os.close(lock)


# A link that a stranger put there would have us make a file elsewhere.
_FLAGS = os.O_RDWR | getattr(os, "O_NOFOLLOW", 0)

if sys.platform == "win32":
    import msvcrt

    def _try_lock(handle: int) -> bool:
        try:
            msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)
        except PermissionError:
            return False
        return True

else:
    import fcntl

    def _try_lock(handle: int) -> bool:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True
