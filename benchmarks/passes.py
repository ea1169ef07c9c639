"""The passes on full-size models: what becomes of every site, and how long the passes take.

python benchmarks/passes.py --before DIR [--repeats 5]

Graphs are captured under fake tensors: no weights, any machine. "sd15 ×4" has four times the
transformer layers in every attention block: seconds should grow with nodes. ``--before`` is a
checkout of another commit, which the same graphs are given to, in turn: `git worktree add --detach
DIR COMMIT`.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from common import commit, save, spread
from passes_parts.subjects import PX, SUBJECTS, Subject
from rich.console import Console
from rich.table import Table

from todo_compile import models

HERE = Path(__file__).parent
TIMED = ("sd15", "sd15 ×2", "sd15 ×4", "sdxl")
"""Those whose seconds are measured several times."""


def subjects() -> dict[str, Subject]:
    """All models with their configurations, and SD1.5 with more layers."""
    found: dict[str, Subject] = {}
    for name, subject in SUBJECTS.items():
        config = subject.config
        if isinstance(config, str):
            config = models.resolve(config).config
        plain = {key: value for key, value in config.items() if not key.startswith("_")}
        found[name] = replace(subject, config=plain)
    for depth in (2, 4):
        config = {**found["sd15"].config, "transformer_layers_per_block": depth}  # type: ignore[dict-item]
        found[f"sd15 ×{depth}"] = replace(found["sd15"], config=config)
    return found


def measured(tree: Path, subject: Subject, repeats: int) -> dict[str, Any]:
    """What the passes of a checkout do to a model."""
    process = subprocess.run(
        [
            sys.executable,
            str(HERE / "passes_parts" / "measure.py"),
            json.dumps({**asdict(subject), "repeats": repeats}),
        ],
        env={**os.environ, "PYTHONPATH": str(tree)},
        capture_output=True,
        text=True,
        check=False,
    )
    if process.returncode:
        raise SystemExit(process.stderr)
    found = json.loads(process.stdout)
    runs = found["runs"]
    return {
        "commit": commit(tree),
        "nodes": found["nodes"],
        "seconds": spread([run["seconds"] for run in runs]),
        "passes": {
            name: spread([run["passes"][name] for run in runs]) for name in runs[0]["passes"]
        },
        "sites": summary(found["sites"]),
    }


def summary(sites: list[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Sites that fared alike, with their number; of those that stay dense no reason is kept."""
    counts = Counter(
        (
            site["action"],
            site["kind"],
            tuple(site["grid"] or ()),
            tuple(site["factor"]),
            tuple(site["keys"]),
        )
        for site in sites
    )
    return [
        {
            "count": count,
            "action": action,
            "kind": kind,
            "grid": list(grid),
            "factor": list(factor),
            "keys": list(keys),
        }
        for (action, kind, grid, factor, keys), count in sorted(counts.items(), key=str)
    ]


def _show(rows: list[dict[str, Any]]) -> None:
    table = Table("model", "tree", "nodes", "seconds", "µs a node", "sites by fate, grid, factor")
    for row in rows:
        for when in ("before", "after"):
            one = row[when]
            median = one["seconds"]["median"]
            fates = "\n".join(
                f"{s['count']} {s['kind']} {s['action']} {s['grid'] or ''} {s['factor']}"
                for s in one["sites"]
            )
            micro = f"{median / one['nodes'] * 1e6:.0f}"
            table.add_row(row["model"], when, str(one["nodes"]), f"{median:.2f}", micro, fates)
    Console().print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--before", type=Path, required=True, metavar="DIR")
    chosen = parser.parse_args()
    trees = {"before": chosen.before, "after": HERE.parent}
    rows: list[dict[str, Any]] = []
    for name, subject in subjects().items():
        repeats = chosen.repeats if name in TIMED else 1
        made = {when: measured(tree, subject, repeats) for when, tree in trees.items()}
        rows.append({"model": name, "px": PX, **made})
    _show(rows)
    print("wrote", save("passes", {"rows": rows}))


if __name__ == "__main__":
    main()
