"""Faults in the middle of builds; `matrix.py` says what is looked at."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from kinds import KINDS
from matrix import STOOD, Cell
from meeting import FAULTS
from processes import MOST_CPU_SECONDS, MOST_SECONDS, QUIET_SECONDS, Watchdog
from sample import Place, Record, draw

HERE = Path(__file__).parent
RESULT = HERE.parents[1] / "benchmarks" / "results" / "faults.json"


def _tried(out: Path, *words: str) -> dict[str, Any]:
    command = [sys.executable, str(HERE / "matrix.py"), str(out), *words]
    subprocess.run(command, check=True, capture_output=True)
    return json.loads(out.read_text(encoding="utf-8"))


def test_what_hangs() -> None:
    """Whoever gets little of a busy machine does not; whoever waits for ever or never ends does."""
    slow = Watchdog(0)
    step = QUIET_SECONDS - 1
    assert not any(slow.hangs(number, number * step) for number in range(1, 15))
    still = Watchdog(0)
    assert not still.hangs(5, 10)
    assert not still.hangs(5.9, 10 + QUIET_SECONDS)
    assert still.hangs(5.9, 11 + QUIET_SECONDS)
    assert Watchdog(0).hangs(MOST_CPU_SECONDS + 1, 10)
    assert Watchdog(0).hangs(1, MOST_SECONDS + 1)


PLACES = [
    Place("file", fault, number, f"event {number}", stood)
    for number in range(20)
    for fault in FAULTS
    for stood in STOOD
]


def test_draw() -> None:
    """Few cells are of every fault, of all that can have stood there, and of many phases."""
    count = len(FAULTS) * len(STOOD)
    chosen = draw(PLACES, count, seed=3)
    assert len({(place.fault, place.stood) for place in chosen}) == count
    assert len({place.number for place in chosen}) == 20
    assert draw(PLACES, 2 * count, seed=3)[:count] == chosen
    assert draw(PLACES, count, seed=4) != chosen
    assert sorted(draw(PLACES, 10**6, seed=0)) == sorted(PLACES)


def test_record_goes_on(tmp_path: Path) -> None:
    first, second, third = PLACES[:3]
    path = tmp_path / "tried.jsonl"
    Record(path).add(first, Cell("file", first.fault, first.event, first.stood), 1.5)
    record = Record(path)
    assert first in record
    assert second not in record
    record.add(second, Cell("file", second.fault, "e", second.stood, 1, ["lost"]), 2)
    assert third not in record
    record.write(tmp_path / "found.json", {"file": PLACES}, seed=0)
    found = json.loads((tmp_path / "found.json").read_text(encoding="utf-8"))
    assert (found["tried"], found["cpu_seconds"], found["cells"]) == (2, 4, len(PLACES))
    numbers = {"cells": len(PLACES), "tried": 2, "phases": 20, "phases_tried": 1}
    assert found["kinds"] == {"file": numbers}
    assert found["rows"] == [
        {"kind": "file", "fault": first.fault, "tried": 2, "survived": 1},
    ]
    assert found["wrong"][0]["wrong"] == ["lost"]


def test_what_was_committed() -> None:
    """Every kind met every fault; nothing that was found is left."""
    found = json.loads(RESULT.read_text(encoding="utf-8"))
    rows = found["rows"]
    assert {(row["kind"], row["fault"]) for row in rows} == {(k, f) for k in KINDS for f in FAULTS}
    assert sum(row["tried"] for row in rows) == found["tried"] <= found["cells"]
    assert sum(kind["cells"] for kind in found["kinds"].values()) == found["cells"]
    assert set(found["stood"]) == set(STOOD)
    assert found["wrong"] == []
    assert all(row["tried"] == row["survived"] > 0 for row in rows)


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
