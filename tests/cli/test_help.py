"""``--help`` of every command: values have names that say something, and nothing costs a second."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from itertools import pairwise
from typing import Any

import pytest
import typer.main

from todo_compile.cli.app import app, main
from todo_compile.cli.examples import EXAMPLES

GROUP: Any = typer.main.get_command(app)
COMMANDS = sorted(GROUP.commands)


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_no_types_for_values(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*command.split(), "--help"]) == 0
    text = capsys.readouterr().out
    assert "Usage:" in text
    assert re.findall(r"<\w.*?>", text) == []
    assert "[default: 0]" not in text.partition("--verbose")[2].partition("--")[0]


def test_paragraphs_break_where_the_terminal_does(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not where the source does: a short line before a longer word's room is left over."""
    for columns in ("80", "100", "140"):
        monkeypatch.setenv("COLUMNS", columns)
        for command in COMMANDS:
            assert main([command, "--help"]) == 0
            prose = capsys.readouterr().out.partition("╭")[0].partition("Usage:")[2]
            for line, following in pairwise(map(str.rstrip, prose.splitlines()[1:])):
                if line.strip() and following.strip() and not following.startswith("  "):
                    first = following.split()[0]
                    assert len(line) + len(first) + 2 > int(columns), (command, line, following)


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_help_ends_with_examples_that_work(
    command: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """They stand there in one piece, and the command line takes every one."""
    monkeypatch.setenv("COLUMNS", "140")
    assert main([*command.split(), "--help"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert EXAMPLES[command]
    for line in EXAMPLES[command]:
        assert f"todo-compile {line}" in shown
        words = shlex.split(line)
        name = words.pop(0) if words[0] in GROUP.commands else "compile"
        assert name == command or not command
        GROUP.commands[name].make_context(name, words)


def test_plan_offers_what_it_takes() -> None:
    told = {p.name: p.help for p in GROUP.commands["plan"].params}
    assert "folder" not in told["component"]
    assert "tunes" not in told["batch"]


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


def test_run_as_a_module() -> None:
    """``python -m todo_compile`` speaks of itself by the command's name, and ends as it does."""
    words = [sys.executable, "-m", "todo_compile", "plan"]
    said = subprocess.run([*words, "--help"], capture_output=True, text=True, check=True)
    assert "Usage: todo-compile plan [OPTIONS]" in said.stdout
    wrong = [*words, "--model", "nothing-of-that-name", "--res", "512"]
    done = subprocess.run(wrong, capture_output=True, text=True, check=False)
    assert done.returncode == main(wrong[3:]) != 0
    assert "Unknown model" in done.stderr and "Traceback" not in done.stderr
