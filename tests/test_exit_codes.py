"""The documented table of exit codes is the code's."""

from __future__ import annotations

import errno
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from todo_compile import errors
from todo_compile.cli import app
from todo_compile.errors import BundleError, TodoError


def test_documented_table_is_the_code() -> None:
    text = (Path(__file__).parents[1] / "docs" / "security.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (\d+) \| ([^|]*) \|", text, re.MULTILINE)
    documented = {name: int(status) for status, names in rows for name in re.findall(r"\w+", names)}
    found = {
        name: one.exit_code
        for name, one in vars(errors).items()
        if isinstance(one, type) and issubclass(one, TodoError) and one is not TodoError
    }
    assert documented == found


def run(output: int, *arguments: str) -> tuple[int, str]:
    command = [sys.executable, "-P", "-m", "todo_compile.cli.app", *arguments]
    found = subprocess.run(command, stdout=output, stderr=subprocess.PIPE, text=True, check=False)
    return found.returncode, " ".join(found.stderr.split())


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no such device")
def test_full_disk_below_the_output() -> None:
    with open("/dev/full", "wb") as full:
        code, words = run(full.fileno(), "models", "--json")
    assert code == BundleError.exit_code
    assert words.startswith("error: standard output: No space left on device.")
    assert "Traceback" not in words


@pytest.mark.skipif(sys.platform == "win32", reason="no SIGPIPE")
def test_nobody_reads_the_output() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    try:
        assert run(writer, "models", "--json") == (141, "")
    finally:
        os.close(writer)


@pytest.mark.parametrize("name", ["ENOSPC", "EROFS", "ENOLCK", "EIO", "EMFILE", "EACCES"])
def test_the_system_refuses(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Wherever it does, the words are ours; what no system says is a bug, with its traceback."""

    def refuse(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number), "some/where")

    monkeypatch.setattr(app, "app", refuse)
    number = getattr(errno, name)
    assert app.main([]) == BundleError.exit_code
    assert f"some/where: {os.strerror(number)}" in capsys.readouterr().err
    number = errno.EINVAL
    with pytest.raises(OSError, match="some/where"):
        app.main([])
