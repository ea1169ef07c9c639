"""Rows of a table that is measured family by family: those of the last run, and a new one."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from typing import Any

from common import RESULTS


def committed(name: str) -> dict[str, dict[str, Any]]:
    """The rows of the last run, by family; of ``results/NAME.json``."""
    path = RESULTS / f"{name}.json"
    if not path.exists():
        return {}
    return {row["family"]: row for row in json.loads(path.read_text(encoding="utf-8"))["rows"]}


def timed(measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What is measured, printed with its seconds."""
    start = time.perf_counter()
    row = measure()
    print(row, f"{time.perf_counter() - start:.1f} s", file=sys.stderr, flush=True)
    return row
