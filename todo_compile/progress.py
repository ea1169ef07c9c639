"""How long steps tell the outside that they are alive, without knowing what the outside is.

``export`` and ``build`` report to a `Progress`; the command line shows bars on a terminal and
plain lines elsewhere; the Python API stays silent by default.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol


class Step(Protocol):
    """One running step."""

    def update(self, done: float, total: float, detail: str = "") -> None:
        """Report that `done` of `total` units are finished; `detail` names what runs now."""
        ...

    def note(self, text: str) -> None:
        """A remark worth keeping beside the step's finished line."""
        ...


class Progress(Protocol):
    """Receives steps and remarks."""

    def step(self, name: str) -> AbstractContextManager[Step]:
        """A context in which the step called `name` runs; its seconds are measured."""
        ...

    def info(self, text: str) -> None:
        """Something the user should know (a default that was taken, a fall-back)."""
        ...

    def warn(self, text: str) -> None:
        """Something the user should act on."""
        ...

    @property
    def seconds(self) -> dict[str, float]:
        """Wall-clock seconds of every finished step, by name, in order."""
        ...


class _QuietStep:
    def __init__(self) -> None:
        self.notes: list[str] = []

    def update(self, done: float, total: float, detail: str = "") -> None:
        del done, total, detail

    def note(self, text: str) -> None:
        self.notes.append(text)


class SilentProgress:
    """Measures, says nothing: the Python API's default."""

    def __init__(self) -> None:
        self._seconds: dict[str, float] = {}

    @property
    def seconds(self) -> dict[str, float]:
        return self._seconds

    @contextmanager
    def step(self, name: str) -> Generator[Step]:
        start = time.perf_counter()
        try:
            yield _QuietStep()
        finally:
            self._seconds[name] = self._seconds.get(name, 0.0) + time.perf_counter() - start

    def info(self, text: str) -> None:
        del text

    def warn(self, text: str) -> None:
        del text


def finished(name: str, seconds: float, notes: Sequence[str]) -> str:
    """The line of a finished step."""
    remark = f"  ({'; '.join(notes)})" if notes else ""
    return f"{name:<14} {seconds:7.1f} s{remark}"


class LineProgress(SilentProgress):
    """A line for each step when it ends, and for each remark: for logs.

    Args:
        say: takes a line.
    """

    def __init__(self, say: Callable[[str], None]) -> None:
        super().__init__()
        self._say = say

    @contextmanager
    def step(self, name: str) -> Generator[Step]:
        """Measure a step, and say so when it went well."""
        before = self._seconds.get(name, 0.0)
        with super().step(name) as step:
            yield step
        notes = step.notes if isinstance(step, _QuietStep) else ()
        self._say(finished(name, self._seconds[name] - before, notes))

    def info(self, text: str) -> None:
        self._say(text)

    def warn(self, text: str) -> None:
        self._say(f"warning: {text}")
