"""Ctrl-C and SIGTERM end a training after the step that is running, with a checkpoint."""

from __future__ import annotations

import signal
from collections.abc import Generator
from contextlib import contextmanager

INTERRUPTED = 130
"""Exit code of a run that was asked to stop: a shell's for Ctrl-C."""


@contextmanager
def asked_to_stop() -> Generator[list[int], None, None]:
    """A list that fills when SIGTERM or Ctrl-C comes; before and after, they act as ever."""
    received: list[int] = []
    before = {
        number: signal.signal(number, lambda caught, _: received.append(caught))
        for number in (signal.SIGTERM, signal.SIGINT)
    }
    try:
        yield received
    finally:
        for number, handler in before.items():
            # None: it was not set from Python, and cannot be given back.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
