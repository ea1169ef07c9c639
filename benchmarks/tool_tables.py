"""Tables of docs/tools.md about other people's programs; `report.py` writes them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"


def read(name: str) -> dict[str, Any]:
    """A result of `comfyui.py`."""
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
