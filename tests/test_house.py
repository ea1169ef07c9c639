"""The house stays small: what a reader must hold in the head at once."""

from __future__ import annotations

from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LIMIT = 400


@pytest.mark.parametrize(
    "folder", ["todo_compile", "tests", "benchmarks", "training", "integrations"]
)
def test_no_file_is_over_the_limit(folder: str) -> None:
    lines = {
        str(path.relative_to(ROOT)): len(path.read_text(encoding="utf-8").splitlines())
        for path in (ROOT / folder).rglob("*.py")
    }
    assert lines, folder
    assert {path: count for path, count in lines.items() if count > LIMIT} == {}
