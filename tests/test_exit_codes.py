"""The documented table of exit codes is the code's."""

from __future__ import annotations

import re
from pathlib import Path

from todo_compile import errors
from todo_compile.errors import TodoError


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
