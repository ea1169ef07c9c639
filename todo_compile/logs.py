"""``TODO_COMPILE_LOG``: what the compiler notes while it works, for those who look for a reason.

``debug``, ``info``, ``warning`` or ``error``; lines go to standard error. It works for the command
line and for ``torch.compile(backend="todo_inductor")`` alike. Without it the logger "todo_compile"
is an ordinary one, which an application configures as it likes.
"""

from __future__ import annotations

import logging
import os
import sys
import warnings

VARIABLE = "TODO_COMPILE_LOG"
LEVELS = ("debug", "info", "warning", "error")


def configure() -> None:
    """Follow the variable; a value that is no level is said once, and changes nothing."""
    wanted = os.environ.get(VARIABLE, "").strip().lower()
    if not wanted:
        return
    if wanted not in LEVELS:
        warnings.warn(f"{VARIABLE}={wanted} is none of {', '.join(LEVELS)}", stacklevel=2)
        return
    logger = logging.getLogger("todo_compile")
    logger.setLevel(wanted.upper())
    if not any(isinstance(handler, _Handler) for handler in logger.handlers):
        handler = _Handler(sys.stderr)
        handler.setFormatter(logging.Formatter("%(levelname)s %(name)s: %(message)s"))
        logger.addHandler(handler)
        logger.propagate = False  # else an application's own handler would say it again


class _Handler(logging.StreamHandler):  # type: ignore[type-arg]
    """Ours, to be told from an application's."""
