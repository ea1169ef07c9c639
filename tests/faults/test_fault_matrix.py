"""Faults in the middle of builds; `matrix.py` says what is looked at."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent


def _tried(out: Path, *words: str) -> dict[str, Any]:
    command = [sys.executable, str(HERE / "matrix.py"), str(out), *words]
    subprocess.run(command, check=True, capture_output=True)
    return json.loads(out.read_text(encoding="utf-8"))


def test_two_faults(tmp_path: Path) -> None:
    """A single file, killed and ended by a scheduler, each at a phase that the seed chose."""
    found = _tried(tmp_path / "found.json", "--cells", "2", "--kinds", "file")
    assert found["wrong"] == []
    assert {row["fault"] for row in found["rows"]} == {"SIGKILL", "SIGTERM"}


@pytest.mark.slow
def test_every_fault_once(tmp_path: Path) -> None:
    found = _tried(tmp_path / "found.json", "--cells", "8", "--kinds", "file")
    assert found["wrong"] == []
    assert {row["fault"]: row["tried"] for row in found["rows"]} == dict.fromkeys(
        ("Ctrl-C", "SIGKILL", "SIGTERM", "clock back", "deleted", "disk full", "read-only",
         "second builder"), 1,
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(
    "kind", ["engine", "bundle", "bundle of two sizes and a twin", "builds of a file"]
)
def test_other_kinds(tmp_path: Path, kind: str) -> None:
    found = _tried(tmp_path / "found.json", "--cells", "16", "--seed", "1", "--kinds", kind)
    assert found["wrong"] == []
