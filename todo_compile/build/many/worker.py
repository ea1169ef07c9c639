"""A build in a process of its own, which ends with its parent: ``python -m …``.

It reads its request from stdin, one line of JSON, and then follows the parent's end of it. When
that closes, because the parent asks for it or is no more, the build is interrupted as by Ctrl-C, so
that it leaves nothing half-written. Steps and errors go to stderr, what became of it to stdout.
"""

from __future__ import annotations

import _thread
import json
import os
import signal
import sys
import threading

from todo_compile.build.request import BuildRequest
from todo_compile.errors import INTERRUPTED, TodoError
from todo_compile.foreign import printable
from todo_compile.progress import LineProgress

_GRACE_SECONDS = 20.0
"""For a step that Python cannot interrupt; what it leaves then, the next build sweeps away."""


_SIGNALS = [getattr(signal, n) for n in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, n)]


def _interrupt(*_: object) -> None:
    """One is enough: a second, of a parent that is ended too, would interrupt the cleaning up."""
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    raise KeyboardInterrupt


def _follow_parent(done: threading.Event) -> None:
    while os.read(0, 4096):
        pass
    if done.is_set():
        return
    if sys.platform == "win32":
        _thread.interrupt_main()
    else:  # a real signal, to the main thread, wakes it from waiting too
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
    if not done.wait(_GRACE_SECONDS):
        os._exit(130)


def main() -> None:
    """Build the request on stdin, and end the process with the status that the command has."""
    # A background process inherits an ignored SIGINT, which could not be raised either. Schedulers
    # send SIGTERM to all processes of a job.
    for number in _SIGNALS:
        signal.signal(number, _interrupt)
    line = sys.stdin.buffer.readline()
    done = threading.Event()
    threading.Thread(target=_follow_parent, args=(done,), daemon=True).start()
    code = _build(line)
    done.set()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # the interpreter's last collection takes seconds after torch


def _build(line: bytes) -> int:
    # Before torch is loaded, see `cli.app`.
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")

    try:
        request = BuildRequest.model_validate_json(line)
        result = request.resolve(LineProgress(_say)).build()
        print(json.dumps({"reused": result.reused}))
    except TodoError as error:
        _say(f"error: {error.message}")
        _say(error.remedy or "")
        return error.exit_code
    except KeyboardInterrupt:
        _say(INTERRUPTED)
        return 130
    return 0


def _say(text: str) -> None:
    print(printable(text), file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
