"""``--help`` of every command: values have names that say something, and nothing costs a second."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from typing import Any

import pytest
import typer.main

from todo_compile.cli.app import app, main

GROUP: Any = typer.main.get_command(app)
COMMANDS = sorted(GROUP.commands)


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_no_types_for_values(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*command.split(), "--help"]) == 0
    text = capsys.readouterr().out
    assert "Usage:" in text
    assert re.findall(r"--[a-z-]+ .*<(?:bool|str|int|float|path|list.*)>", text) == []


def test_help_imports_nothing_heavy() -> None:
    """The first help is shown before a user wonders: without torch and all that needs it."""
    code = (
        "import sys; from todo_compile.cli.app import main; main(['compile', '--help']);"
        "print([m for m in ('torch', 'numpy', 'onnx', 'diffusers', 'transformers', 'matplotlib')"
        " if m in sys.modules], file=sys.stderr)"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stderr.strip() == "[]"


def test_completion_is_offered(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    assert "--install-completion" in capsys.readouterr().out


def _log(value: str) -> str:
    code = "import todo_compile, logging; logging.getLogger('todo_compile').info('a note')"
    found = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "TODO_COMPILE_LOG": value},
    )
    return found.stderr


def test_logging_variable() -> None:
    assert _log("INFO") == "INFO todo_compile: a note\n"
    assert _log("error") == ""
    assert "TODO_COMPILE_LOG=loud is none of debug, info" in _log("loud")
