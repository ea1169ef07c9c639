"""Tables of docs/tools.md about other people's programs; `report.py` writes them."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"


def read(name: str) -> dict[str, Any]:
    """A result of `comfyui.py` or `suites.py`."""
    return json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))


def _table(header: str, rows: list[str]) -> str:
    return "\n".join([f"| {header} |", "|" + "---|" * (header.count("|") + 1), *rows])


def comfyui() -> str:
    """ComfyUI's denoisers with each of its kinds of attention: sites and errors."""
    found = read("comfyui")["rows"]
    kinds = list(dict.fromkeys(row["attention"] for row in found))
    rows: list[str] = []
    for name in dict.fromkeys(row["denoiser"] for row in found):
        of = {row["attention"]: row for row in found if row["denoiser"] == name}
        cells = [_sites(of[kind]) if kind in of else "" for kind in kinds]
        moved = of[kinds[0]]["moved"]
        rows.append(f"| {name} | {' | '.join(cells)} | {moved:.0e} |")
    return _table(f"denoiser | {' | '.join(kinds)} | effect", rows)


def _sites(row: dict[str, Any]) -> str:
    count = f"{row['rewritten']} of {row['self_attentions']}"
    split = "; the graph is split" if row["split"] else ""
    return f"{count}, {row['error']:.0e}" if row["rewritten"] else f"**{count}**{split}"


def comfyui_nodes() -> str:
    """Our nodes in ComfyUI's executor."""
    rows = [
        f"| {row['node']} | {row.get('graphs', '')} | {row.get('rewritten', '')} | "
        f"{row['error']:.0e} | {format(row['moved'], '.0e') if 'moved' in row else ''} |"
        for row in read("comfyui")["nodes"]
    ]
    return _table("node | graphs | sites | error | effect", rows)


def suites() -> str:
    """diffusers' own pipeline tests: as they are, and with our file as the UNet."""
    rows: list[str] = []
    for row in read("suites")["rows"]:
        refused = sum(row["refused"].values())
        rows.append(
            f"| {row['name']} | {row['baseline_passed']} | {row['passed']} | {refused} | "
            f"{len(row['differ'])} | {row['calls']} | {row['most']:.0e} |"
        )
    return _table(
        "tests | pass as they are | pass with our file | refused in our words | differ otherwise "
        "| calls compared | largest difference",
        rows,
    )


def suites_refused() -> str:
    """What those tests ask of a UNet that a compiled one refuses, and how many do."""
    counted: Counter[str] = Counter()
    for row in read("suites")["rows"]:
        counted.update(row["refused"])
    rows = [f"| {count} | {_cell(said)} |" for said, count in counted.most_common()]
    return _table("tests | are told", rows)


def _cell(said: str) -> str:
    """As it was recorded, N for every number."""
    return said.replace("|", "\\|")
