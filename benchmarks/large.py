"""Plans at 4096 and 8192 px, without weights: ``python benchmarks/large.py [--only MODEL …]``."""

from __future__ import annotations

import argparse
import json
import math
import re
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from common import RESULTS, save

import todo_compile
from todo_compile.errors import TodoError, first_line
from todo_compile.passes.plan.cost import TENSOR_LIMIT

MODELS = (
    ("sd15", "unet"), ("sd15", "vae-decoder"), ("sdxl", "unet"), ("pixart", "unet"),
    ("sd3", "unet"), ("flux", "unet"),
)  # fmt: skip
SIZES = (4096, 8192)


def row(model: str, component: str, px: int) -> dict[str, Any]:
    """What `plan` says of one model at one size, or why it refuses."""
    found: dict[str, Any] = {"model": model, "component": component, "px": px}
    try:
        with tempfile.TemporaryDirectory() as folder:
            report = todo_compile.plan(
                model, res=px, component=component, precision="fp16", dump=f"{folder}/graphs"
            )
            largest = largest_tensor(Path(folder) / "graphs")
    except TodoError as error:
        return {**found, "refused": first_line(error)}
    return {
        **found,
        "flops": report.totals.flops,
        "flops_after": report.totals.flops_after,
        "scores": max(site.score_elements for site in report.sites),
        "scores_after": max(site.score_elements_after for site in report.sites),
        "tensor": largest,
        "limit": TENSOR_LIMIT,
        "rewritten": report.rewritten,
        "sites": len(report.sites),
    }


def largest_tensor(graphs: Path) -> int:
    """Elements of the largest tensor in the rewritten graph, scores not counted."""
    text = (graphs / "07-refresh.txt").read_text(encoding="utf-8")
    shapes = re.findall(r"^\w+: \w+\[([0-9, ]+)\] = ", text, re.MULTILINE)
    return max(math.prod(map(int, shape.split(","))) for shape in shapes)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="*", default=None, help="models to plan anew")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    path = RESULTS / "large.json"
    old = json.loads(path.read_text(encoding="utf-8"))["rows"] if path.exists() else []
    rows = {(r["model"], r["component"], r["px"]): r for r in old}
    for model, component in MODELS:
        if chosen.only is not None and model not in chosen.only:
            continue
        for px in SIZES:
            start = time.perf_counter()
            rows[model, component, px] = row(model, component, px)
            print(rows[model, component, px], f"{time.perf_counter() - start:.1f} s",
                  file=sys.stderr)  # fmt: skip
    kept = [rows[m, c, px] for m, c in MODELS for px in SIZES if (m, c, px) in rows]
    save("large", {"rows": kept})


if __name__ == "__main__":
    main()
