"""Which cells of the matrix are tried, and the record of those that were."""

from __future__ import annotations

import json
import random
import resource
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from matrix import Cell

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))
from common import RESULTS, commit, machine


class Place(NamedTuple):
    """A cell: the fault met at event `number`, by a kind of build, where something stood."""

    kind: str
    fault: str
    number: int
    event: str
    stood: str


def draw(places: Sequence[Place], count: int, seed: int) -> list[Place]:
    """At most `count` of one kind's cells; more of them begin with the same ones.

    Every fault is as often there as any other; and for each fault, what was at the place before
    and the phase are those that were drawn least so far.
    """
    left = random.Random(seed).sample(places, len(places))
    faults = list(dict.fromkeys(place.fault for place in places))
    used: Counter[object] = Counter()

    def rare(place: Place) -> tuple[int, int, int]:
        return used[place.fault, place.stood], used[place.number], used[place.stood]

    chosen: list[Place] = []
    for number in range(min(count, len(places))):
        fault = faults[number % len(faults)]
        place = min((one for one in left if one.fault == fault), key=rare)
        left.remove(place)
        used.update([(fault, place.stood), place.number, place.stood])
        chosen.append(place)
    return chosen


class Record:
    """What came of the cells that were tried, one a line, written as it goes.

    Args:
        path: of the lines; those that are there are read.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        self._tried: dict[Place, dict[str, Any]] = {
            Place(*one["place"]): one for one in map(json.loads, lines)
        }

    def __contains__(self, place: Place) -> bool:
        return place in self._tried

    def add(self, place: Place, cell: Cell, seconds: float) -> None:
        """Keep and print what came of a cell, which took `seconds` of processor time."""
        one = {
            "place": list(place),
            "commit": commit(RESULTS),
            "seconds": round(seconds, 1),
            "cell": asdict(cell),
        }
        self._tried[place] = one
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(one) + "\n")
        print(f"{place} {seconds:.0f} s: {'; '.join(cell.wrong) or 'survived'}", flush=True)

    def write(self, out: Path, there: Mapping[str, Sequence[Place]], seed: int) -> None:
        """Write the result of all cells that were tried.

        Args:
            out: the JSON.
            there: all cells of each kind.
            seed: that they were drawn with.
        """

        def of(kind: str) -> dict[str, int]:
            return {
                "cells": len(there[kind]),
                "tried": sum(place.kind == kind for place, _ in cells),
                "phases": len({place.number for place in there[kind]}),
                "phases_tried": len({place.number for place, _ in cells if place.kind == kind}),
            }

        cells = [(Place(*one["place"]), one["cell"]) for one in self._tried.values()]
        tried = Counter((place.kind, place.fault) for place, _ in cells)
        survived = Counter((place.kind, place.fault) for place, cell in cells if not cell["wrong"])
        found = {
            "machine": machine(),
            "commits": sorted({one["commit"] for one in self._tried.values()}),
            "seed": seed,
            "cells": sum(map(len, there.values())),
            "tried": len(cells),
            "kinds": {kind: of(kind) for kind in there},
            "stood": Counter(place.stood for place, _ in cells),
            "cpu_seconds": round(sum(one["seconds"] for one in self._tried.values())),
            "rows": [
                {"kind": kind, "fault": fault, "tried": count, "survived": survived[kind, fault]}
                for (kind, fault), count in sorted(tried.items())
            ],
            "wrong": [cell for _, cell in cells if cell["wrong"]],
        }
        out.write_text(compact(found) + "\n", encoding="utf-8")


def compact(found: Mapping[str, Any]) -> str:
    """JSON with a line for each row."""
    parts: list[str] = []
    for key, value in found.items():
        if key in ("rows", "wrong") and value:
            inner = ",\n  ".join(json.dumps(one, ensure_ascii=False) for one in value)
            parts.append(f'"{key}": [\n  {inner}\n ]')
        else:
            parts.append(f'"{key}": {json.dumps(value, ensure_ascii=False)}')
    return "{\n " + ",\n ".join(parts) + "\n}"


def cpu_seconds() -> float:
    """Processor time of this process's children that have ended, so far."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime
