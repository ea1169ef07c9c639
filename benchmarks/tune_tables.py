"""Tables of tuned plans, from the JSON of `tune.py`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"


def sizes(name: str) -> list[dict[str, Any]]:
    """What was measured, size by size."""
    return json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))["sizes"]


def tuned_rows() -> list[tuple[dict[str, Any], dict[str, Any], dict[str, Any]]]:
    """(size, tuned row, the uniform row whose speed it has)."""
    found: list[tuple[dict[str, Any], dict[str, Any], dict[str, Any]]] = []
    for size in sizes("tune"):
        named = {row["name"]: row for row in size["rows"]}
        found += [
            (size, row, named[row["at_the_speed_of"]])
            for row in size["rows"]
            if "at_the_speed_of" in row
        ]
    return found


def readme_rows() -> list[tuple[str, str, str]]:
    """(setting, FLOPs, squared error) of plans of three phases: a factor's FLOPs, and its error
    times so much at each size."""
    found: dict[str, list[str]] = {}
    for size, row, base in tuned_rows():
        if row["phases"] == 3:
            factor = base["name"].removeprefix("uniform nearest:").partition(",")[0]
            said = _ratio(row["against_uniform"], 3)
            found.setdefault(factor, []).append(f"{said} at {size['side']} px")
    return [
        (
            f"tuned to the speed of factor {factor}, 3 phases",
            f"as factor {factor}",
            f"× factor {factor}'s: {', '.join(said)}",
        )
        for factor, said in found.items()
    ]


def tuned() -> str:
    """Tuned plans and the uniform ones whose speed they have."""
    rows = [
        f"| {size['side']} | {base['name']} | {base['speedup']:.4f}× | "
        f"{base['measured']['drift']['mean']:.1e} | {row['phases']} | {row['speedup']:.4f}× | "
        f"{row['measured']['drift']['mean']:.1e} | "
        f"**{row['against_uniform']['ratio']:.3f}** [{row['against_uniform']['low']:.3f}, "
        f"{row['against_uniform']['high']:.3f}] | {row['measured']['pairs']} |"
        for size, row, base in tuned_rows()
    ]
    header = (
        "px | uniform plan | its speed | its drift | phases | tuned speed | tuned drift | "
        "tuned / uniform | pairs"
    )
    return table(header, rows)


def table(header: str, rows: list[str]) -> str:
    """A table in Markdown; cells are separated by bars."""
    return "\n".join([f"| {header} |", "|" + "---|" * (header.count("|") + 1), *rows])


def _ratio(one: dict[str, Any], digits: int) -> str:
    return f"{one['ratio']:.{digits}f} [{one['low']:.{digits}f}, {one['high']:.{digits}f}]"
