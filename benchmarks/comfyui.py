"""ComfyUI itself: its denoisers under our backend, and our nodes run by its own executor.

    python benchmarks/comfyui.py PATH_OF_COMFYUI [--only WORD …] [--dry]

with the Python that runs ComfyUI. Random weights, on the CPU; errors against `tests/oracle.py`.
Writes ``results/comfyui.json``; with ``--only`` the other rows stay as they were.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # the oracle is the tests'

import torch

# Before `enter`: ComfyUI has a package `tests` too.
from comfyui_parts import checkout, compiled, drawing
from comfyui_parts.denoisers import KINDS
from common import RESULTS, save


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkout", type=Path)
    parser.add_argument("--only", nargs="*", help="denoisers whose name has one, or `nodes`")
    parser.add_argument("--dry", action="store_true", help="write no result")
    chosen = parser.parse_args()
    folder = chosen.checkout.resolve()
    try:
        version = checkout.enter(folder)
    except checkout.AbsentError as error:
        raise SystemExit(str(error)) from error

    torch.set_num_threads(1)
    only = chosen.only or ["", "nodes"]
    path = RESULTS / "comfyui.json"
    old = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    found = {(row["denoiser"], row["attention"]): row for row in old.get("rows", [])}
    drawn = drawing.rows() if "nodes" in only else old.get("nodes", [])
    kinds = [kind for kind in KINDS if any(word in kind.name for word in only)]
    for row in compiled.rows(kinds):
        found[row["denoiser"], row["attention"]] = row
    if not chosen.dry:
        order = [(kind.name, attention) for kind in KINDS for attention in kind.attentions]
        rows = [found[key] for key in order if key in found]
        told = {"comfyui": version, "rows": rows, "nodes": drawn}
        save("comfyui", told)


if __name__ == "__main__":
    main()
