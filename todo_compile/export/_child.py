"""Run `_tensorrt_worker` in a process of its own and listen to it.

A child, so that torch's and TensorRT's memory never add up and a crash there is a message here.
The child ends with us: it reads our end of its stdin, and leaves when that closes.
"""

from __future__ import annotations

import json
import os
import queue
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from todo_compile.errors import EngineError

_WORKER = "todo_compile.export._tensorrt_worker"


@dataclass(frozen=True)
class Outcome:
    """How a worker ended.

    Attributes:
        result: what its "result" event said; empty if there was none.
        error: what its "error" event said, or None.
        errno: of an operating system's error, or None.
        returncode: of the process; negative is the signal that killed it.
        last_words: the last line of its log, if it had no log file of its own.
    """

    result: dict[str, Any] = field(default_factory=dict[str, Any])
    error: str | None = None
    errno: int | None = None
    returncode: int = 0
    last_words: str = ""


def run_worker(
    request: dict[str, Any],
    *,
    log: Path | None = None,
    on_event: Callable[[dict[str, Any]], None] | None = None,
) -> Outcome:
    """Start a worker with `request`, pass its events on, wait for its end.

    Args:
        request: see `_tensorrt_worker`.
        log: file for all that it and TensorRT say; None keeps the last line only.
        on_event: called with every event but "result" and "error".

    Any exception here, Ctrl-C included, kills the worker before it goes on.
    """
    # -P: nothing of the working directory is imported.
    command = [sys.executable, "-P", "-m", _WORKER]
    sink: IO[bytes] | int = subprocess.PIPE if log is None else log.open("ab", buffering=0)
    try:
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=sink,
            env={**os.environ, "PYTHONUTF8": "1", "GLIBC_TUNABLES": _tunables()},
        )
    except OSError as error:
        raise EngineError(
            f"The builder's process does not start: {error}.",
            remedy="It is another process of this Python: raise the limits on processes or memory.",
        ) from error
    finally:
        if not isinstance(sink, int):
            sink.close()
    try:
        return _listen(process, request, on_event or (lambda _event: None))
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout, process.stderr):
            if pipe is not None:
                _close(pipe)


def _tunables() -> str:
    """glibc's tunables with huge pages for malloc, unless the user chose otherwise.

    Building touches gigabytes of fresh memory; with 4 kB pages a third of its time is page faults.
    Other C libraries ignore the variable.
    """
    chosen = os.environ.get("GLIBC_TUNABLES", "")
    if "glibc.malloc.hugetlb" in chosen:
        return chosen
    return ":".join(filter(None, (chosen, "glibc.malloc.hugetlb=1")))


def _listen(
    process: subprocess.Popen[bytes],
    request: dict[str, Any],
    on_event: Callable[[dict[str, Any]], None],
) -> Outcome:
    assert process.stdin is not None
    # Threads read, so that this one waits in short pieces and Ctrl-C gets through on Windows too.
    events: queue.Queue[bytes | None] = queue.Queue()
    words: list[bytes] = []
    readers = [
        threading.Thread(target=_read_events, args=(process.stdout, events), daemon=True),
        threading.Thread(target=_read_words, args=(process.stderr, words), daemon=True),
    ]
    for reader in readers:
        reader.start()
    try:
        process.stdin.write(json.dumps(request).encode() + b"\n")
        process.stdin.flush()  # and left open: its closing is how the worker learns of our end
    except BrokenPipeError:
        pass  # it died before reading; its return code and words say why
    result: dict[str, Any] = {}
    error: dict[str, Any] = {}
    while True:
        try:
            line = events.get(timeout=0.2)
        except queue.Empty:
            continue
        if line is None:
            break
        event: dict[str, Any] = json.loads(line)
        if event["event"] == "result":
            result = event
        elif event["event"] == "error":
            error = event
        else:
            on_event(event)
    returncode = process.wait()
    readers[1].join(timeout=5)
    return Outcome(
        result=result,
        error=error.get("message"),
        errno=error.get("errno"),
        returncode=returncode,
        last_words=words[-1].decode(errors="replace") if words else "",
    )


def _read_events(pipe: IO[bytes], events: queue.Queue[bytes | None]) -> None:
    for line in pipe:
        events.put(line)
    events.put(None)


def _read_words(pipe: IO[bytes] | None, words: list[bytes]) -> None:
    for line in pipe or ():
        if line.strip():
            words[:] = [line.strip()]


def _close(pipe: IO[bytes]) -> None:
    with suppress(BrokenPipeError):  # unread input of a worker that is gone
        pipe.close()
