"""The faults, and the events at which a build can meet one.

Events are those of the code's own progress, so a new step of the work is covered by itself, and the
moments before every single file moves into its place; of a file of builds they are the starts,
lines and ends of its child processes.
"""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import time
from collections import Counter
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

from todo_compile.build.many import running
from todo_compile.bundle import moves
from todo_compile.bundle.files import Stage
from todo_compile.cli import console

_REAL_STEP = console.ConsoleProgress.step
_REAL_COMMIT = Stage.commit
_REAL_RUN = (running.start, running.Running.measure, running.Running.outcome)


def _sent(number: int) -> Callable[[Path], None]:
    return lambda _: os.kill(os.getpid(), number)


def _interrupted(_: Path) -> None:
    """A terminal sends it to the whole group."""
    os.killpg(os.getpgrp(), signal.SIGINT)


def _disk_full(_: Path) -> None:
    """Nothing more can be written to files; to writers in C++ it looks the same."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY))


def _read_only(work: Path) -> None:
    for path in (work, *(p for p in work.rglob("*") if p.is_dir())):
        with contextlib.suppress(OSError):
            path.chmod(0o555)


def _deleted(work: Path) -> None:
    """Whatever is being made disappears."""
    for path in work.rglob("*"):
        if path.is_file() and any(part.startswith(".") for part in path.relative_to(work).parts):
            with contextlib.suppress(OSError):
                path.unlink()


def _clock_back(_: Path) -> None:
    real = time.time
    time.time = lambda: real() - 7 * 86400


SECOND = "second builder"
READ_ONLY = "read-only"
DELETED = "deleted"
MOVES = ": moves"
"""Ends the name of an event before the move of a file."""
FAULTS: dict[str, Callable[[Path], None]] = {
    "SIGKILL": _sent(signal.SIGKILL),
    "SIGTERM": _sent(signal.SIGTERM),
    "Ctrl-C": _interrupted,
    "disk full": _disk_full,
    READ_ONLY: _read_only,
    DELETED: _deleted,
    "clock back": _clock_back,
    SECOND: lambda _: None,  # `processes.start_beside`
}


def survivable(fault: str, event: str) -> bool:
    """Whether an output can survive: not if its files go when the old ones have gone."""
    return not (fault == DELETED and event.endswith(MOVES))


class _WatchedMoves:
    """The system's calls, as `moves` makes them."""

    def __init__(self, event: Callable[[str], None]) -> None:
        self._event = event

    def __getattr__(self, name: str) -> Any:
        return getattr(os, name)

    def replace(self, source: Path, goal: Path) -> None:
        self._event(f"{goal.name}{MOVES}")
        os.replace(source, goal)


def watch(event: Callable[[str], None]) -> None:
    """Call `event` with the name of everything that the build in this process comes to."""

    @contextlib.contextmanager
    def step(self: Any, name: str) -> Generator[Any]:
        with _REAL_STEP(self, name) as shown:
            event(f"{name}: begins")
            yield shown
            event(f"{name}: ends")

    def commit(self: Stage) -> None:
        event(f"{self.target.name}: goes out")
        _REAL_COMMIT(self)
        event(f"{self.target.name}: is out")

    console.ConsoleProgress.step, Stage.commit = step, commit
    moves.__dict__["os"] = _WatchedMoves(event)
    _watch_children(event)


def unwatch() -> None:
    """A build that is started from here meets no fault."""
    console.ConsoleProgress.step, Stage.commit = _REAL_STEP, _REAL_COMMIT
    moves.__dict__["os"] = os
    running.start, running.Running.measure, running.Running.outcome = _REAL_RUN


def _watch_children(event: Callable[[str], None]) -> None:
    start, measure, outcome = _REAL_RUN
    seen: Counter[Path] = Counter()

    def lines(one: running.Running) -> None:
        said = one.log.read_text(encoding="utf-8", errors="replace").splitlines()
        for line in said[seen[one.log] :]:
            event(f"{one.build.out}: {line.split('  ')[0]}")
        seen[one.log] = len(said)

    def starts(build: Any, *rest: Any) -> running.Running:
        one = start(build, *rest)
        event(f"{build.out}: starts")
        return one

    def measures(self: running.Running) -> None:
        measure(self)
        lines(self)

    def ends(self: running.Running, *, stopped: bool = False) -> running.Outcome:
        lines(self)
        event(f"{self.build.out}: ends")
        return outcome(self, stopped=stopped)

    running.start = starts
    running.Running.measure, running.Running.outcome = measures, ends
