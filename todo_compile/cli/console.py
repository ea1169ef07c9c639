"""How the command line shows steps and tables; everything but results goes to standard error.

On a terminal long steps have bars; elsewhere (CI, pipes) each step is one line when it ends, so
that logs stay clean.
"""

from __future__ import annotations

import time
from collections.abc import Generator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.progress import BarColumn, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bars

from todo_compile.foreign import printable
from todo_compile.progress import Step, finished

if TYPE_CHECKING:
    from todo_compile.cli.screen import Screen


class _BarStep:
    def __init__(self, bars: Bars | None, name: str) -> None:
        self._bars = bars
        self._task = bars.add_task(name, total=None, detail="") if bars is not None else None
        self.remarks: list[str] = []

    def update(self, done: float, total: float, detail: str = "") -> None:
        if self._bars is not None and self._task is not None:
            self._bars.update(
                self._task, completed=done, total=total, detail=printable(detail[:48])
            )

    def note(self, text: str) -> None:
        self.remarks.append(text)


class ConsoleProgress:
    """Shows steps on standard error.

    Args:
        console: of standard error, see `screen`.
        verbosity: -1 says only warnings, 0 steps, 1 remarks too.
    """

    def __init__(self, console: Screen, verbosity: int = 0) -> None:
        self.console = console
        self.verbosity = verbosity
        self._seconds: dict[str, float] = {}

    @property
    def seconds(self) -> dict[str, float]:
        """Wall-clock seconds of finished steps."""
        return self._seconds

    @contextmanager
    def step(self, name: str) -> Generator[Step]:
        """Show a step while it runs, and its seconds when it ends."""
        start = time.perf_counter()
        bars = self._bars() if self.verbosity >= 0 and self.console.is_terminal else None
        if bars is not None:
            bars.start()
        step = _BarStep(bars, name)
        failed = True
        try:
            yield step
            failed = False
        finally:
            if bars is not None:
                bars.stop()
            seconds = time.perf_counter() - start
            self._seconds[name] = self._seconds.get(name, 0.0) + seconds
            if self.verbosity >= 0 and not failed:
                self.console.facts([finished(name, seconds, step.remarks)])

    def info(self, text: str) -> None:
        """Something worth knowing; shown unless quiet."""
        if self.verbosity >= 0:
            self.console.print(text, style="dim")

    def warn(self, text: str) -> None:
        """Something to act on; always shown."""
        self.console.print(f"warning: {text}", style="yellow")

    def _bars(self) -> Bars:
        return Bars(
            SpinnerColumn(),
            TextColumn("{task.description:<14}", markup=False),
            BarColumn(bar_width=30),
            TimeElapsedColumn(),
            TextColumn("{task.fields[detail]}", style="dim", markup=False),
            console=self.console,
            transient=True,
        )
