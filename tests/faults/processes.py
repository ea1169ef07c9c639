"""Run the command line in a fork, and tell a run that works from one that hangs."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
from meeting import unwatch, watch

from todo_compile.cli import app

NOBODY = 65534
HANGS, ESCAPED = -999, 99
QUIET_SECONDS = 180.0
"""So long no process of a run works for a second of processor time: it hangs. (A machine with a
lot to do gives every process that can go on some.)"""
MOST_CPU_SECONDS = 600.0
MOST_SECONDS = 3600.0
"""Runs that work and come to no end hang too. These are generous: a run takes 5 to 30."""


def adopt_orphans() -> None:
    """Let what a killed run started become a child of this process (Linux), wherever it is."""
    subreaper = 36  # PR_SET_CHILD_SUBREAPER of prctl(2)
    if ctypes.CDLL(None, use_errno=True).prctl(subreaper, 1, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl")


class Watchdog:
    """Tells whether a run hangs, from its processor time: on a machine with a lot to do the clock
    alone says little.

    Args:
        now: seconds, at its start.
    """

    def __init__(self, now: float) -> None:
        self._start = self._moved = now
        self._mark = 0.0

    def hangs(self, used: float, now: float) -> bool:
        """Whether it works no more, or goes on for ever.

        Args:
            used: seconds of processor that its processes have had.
            now: seconds.
        """
        if abs(used - self._mark) >= 1:  # less than before where an orphan has ended
            self._moved, self._mark = now, used
        return (
            now - self._moved > QUIET_SECONDS
            or used > MOST_CPU_SECONDS
            or now - self._start > MOST_SECONDS
        )


def _cpu(process: psutil.Process) -> float:
    """Seconds of a process and of those of its children that it has waited for."""
    try:
        return sum(process.cpu_times()[:4])
    except psutil.Error:
        return 0.0


def run(
    arguments: list[str],
    work: Path,
    *,
    at: int | None = None,
    meet: Callable[[], None] | None = None,
    drop: bool = False,
    log: Path | None = None,
) -> int:
    """Run the command line and all that it starts to their ends.

    Args:
        arguments: of ``todo-compile``.
        work: its working directory.
        at: number of the event at which `meet` is called, in the child.
        meet: the fault.
        drop: run without root's rights, which no permission binds.
        log: write the events' names there.

    Returns:
        Its status, negative for a signal; `HANGS` if it or an orphan of it had to be killed.
    """
    before = set(psutil.Process().children())
    # Words go through a pipe: where the disk is full, a file would not take them.
    reader, writer = os.pipe()
    if (child := os.fork()) == 0:
        os.setpgid(0, 0)
        _child(arguments, work, writer, at=at, meet=meet, drop=drop, log=log)
    os.close(writer)
    os.set_blocking(reader, False)
    words = b""
    status: int | None = None
    looked = time.monotonic()
    watchdog = Watchdog(looked)
    while True:
        with contextlib.suppress(BlockingIOError):
            words += os.read(reader, 2**20)
        if status is None and (ended := os.waitpid(child, os.WNOHANG))[0]:
            status = os.waitstatus_to_exitcode(ended[1])
        # What outlives it is looked at as itself: with orphans adopted, they are ours now.
        orphans = [p for p in psutil.Process().children() if p not in before and p.pid != child]
        if status is not None and not _living(orphans):
            break
        if time.monotonic() - looked > 2:
            looked = time.monotonic()
            tree = [p for p in psutil.Process().children(recursive=True) if p not in before]
            if watchdog.hangs(sum(map(_cpu, tree)), looked):
                for one in tree:
                    with contextlib.suppress(psutil.Error):
                        one.kill()
                status = HANGS
                break
        time.sleep(0.05)
    os.close(reader)
    (work.parent / "said").write_bytes(words)
    return status


def _living(orphans: list[psutil.Process]) -> list[psutil.Process]:
    """Those that have not ended; those that have are waited for."""
    for one in orphans:
        with contextlib.suppress(ChildProcessError):
            os.waitpid(one.pid, os.WNOHANG)
    return [one for one in orphans if one.is_running()]


def said(work: Path, most: int = 400) -> str:
    """The last words of a run."""
    path = work.parent / "said"
    text = path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""
    return " ".join(text.split())[-most:]


def start_beside(arguments: list[str], work: Path) -> None:
    """Fork another run beside this one, which meets no fault."""
    unwatch()
    if os.fork() == 0:
        _child(arguments, work, os.open(os.devnull, os.O_WRONLY))


def _child(
    arguments: list[str],
    work: Path,
    words: int,
    *,
    at: int | None = None,
    meet: Callable[[], None] | None = None,
    drop: bool = False,
    log: Path | None = None,
) -> None:
    status = ESCAPED
    try:
        os.dup2(words, 1)
        os.dup2(words, 2)
        os.chdir(work)
        if drop and os.geteuid() == 0:
            os.environ["HOME"] = str(work.parent)
            os.setgid(NOBODY)
            os.setuid(NOBODY)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        if meet is not None or log is not None:
            _meet(at, meet, log)
        status = app.main(arguments)
    except BaseException:  # noqa: BLE001  # a fork must not go on as its parent
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def _meet(at: int | None, meet: Callable[[], None] | None, log: Path | None) -> None:
    count = 0

    def event(name: str) -> None:
        nonlocal count
        if log is not None:
            with log.open("a", encoding="utf-8") as file:
                file.write(f"{name}\n")
        if count == at and meet is not None:
            meet()
        count += 1

    watch(event)
