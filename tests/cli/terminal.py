"""The command line as a person or a program sees it, without a process: what stands on the screen.

rich moves the cursor up and erases what it shows for a moment (spinners, bars); of that nothing is
left in the end. This is as much of a terminal as it needs.
"""

from __future__ import annotations

import contextlib
import io
import re

import pytest

from todo_compile.cli.app import main
from todo_compile.cli.screen import stderr

_PARTS = re.compile(r"\x1b\[([0-9;?]*)([A-Za-z])|([\r\n])|([^\x1b\r\n]+)")


class Stream(io.StringIO):
    """Standard output or error: of a terminal, or of a pipe."""

    def __init__(self, terminal: bool) -> None:
        super().__init__()
        self._terminal = terminal

    def isatty(self) -> bool:
        return self._terminal


def screen(text: str) -> list[str]:
    """The lines that are left on a screen which `text` was sent to.

    Raises:
        ValueError: it asks for something that is not known here.
    """
    lines, row, column = [""], 0, 0
    for codes, letter, move, plain in _PARTS.findall(text):
        if plain:
            line = lines[row].ljust(column)
            lines[row] = line[:column] + plain + line[column + len(plain) :]
            column += len(plain)
        elif move == "\r":
            column = 0
        elif move == "\n":
            row, column = row + 1, 0
            lines += [""] * (row + 1 - len(lines))
        elif letter == "A":
            row = max(0, row - int(codes or 1))
        elif letter == "K":
            lines[row] = "" if codes == "2" else lines[row][:column]
        elif letter not in "mhl":  # colours, and the cursor shown or hidden
            raise ValueError(f"ESC [ {codes} {letter}")
    while lines and not lines[-1].strip():
        lines.pop()
    return [line.rstrip() for line in lines]


def run(
    words: list[str], width: int, *, terminal: bool, patch: pytest.MonkeyPatch
) -> tuple[int, list[str], list[str]]:
    """Run the command line at a width: its status, and the lines of output and error."""
    patch.setenv("COLUMNS", str(width))
    patch.setenv("TERM", "xterm-256color" if terminal else "dumb")
    for name in ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE"):
        patch.delenv(name, raising=False)
    # Found out when the console was made, which was before this test.
    patch.setattr(stderr, "is_interactive", terminal)
    out, error = Stream(terminal), Stream(terminal)
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(error):
        code = main(words)
    return code, screen(out.getvalue()), screen(error.getvalue())
