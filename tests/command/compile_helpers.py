"""What the tests of single outputs share."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest


def manifest_of(out: Path) -> dict[str, Any]:
    return json.loads(out.with_name(f"{out.name}.json").read_text())


def said(capsys: pytest.CaptureFixture[str]) -> str:
    """Standard error in one line: the console wraps."""
    return " ".join(capsys.readouterr().err.split())


def fp32(model: Path, out: Path, *more: str) -> list[str]:
    size = [] if "--res" in more else ["-r", "64"]
    return ["-m", str(model), *size, "-o", str(out), "--precision", "fp32", *more]
