"""``python -m todo_compile``: the same as ``todo-compile``."""

from __future__ import annotations

from todo_compile.cli.app import run

if __name__ == "__main__":
    run()
