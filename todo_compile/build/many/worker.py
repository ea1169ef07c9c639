"""A build in a process of its own, which ends with its parent: ``python -m … ARGUMENTS``.

It reads the parent's end of its stdin. When that closes, because the parent asks for it or is no
more, the build is interrupted as by Ctrl-C, so that it leaves nothing half-written.
"""

from __future__ import annotations

import _thread
import os
import signal
import sys
import threading

_GRACE_SECONDS = 20.0
"""For a step that Python cannot interrupt; what it leaves then, the next build sweeps away."""


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
    """Run the command line of this process's arguments."""
    # A background process inherits an ignored SIGINT, which could not be raised either.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    done = threading.Event()
    threading.Thread(target=_follow_parent, args=(done,), daemon=True).start()
    from todo_compile.cli.app import main as run

    code = run(sys.argv[1:])
    done.set()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # the interpreter's last collection takes seconds after torch


if __name__ == "__main__":
    main()
