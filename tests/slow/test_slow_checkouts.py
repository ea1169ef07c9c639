"""Other people's programs, where a checkout of one is at hand; `benchmarks/` has the scripts.

COMFYUI=PATH pytest tests/slow/test_slow_checkouts.py       with the Python that runs ComfyUI
DIFFUSERS=PATH pytest tests/slow/test_slow_checkouts.py     about the installed version's
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]
ROOT = Path(__file__).parents[2]


def checkout(name: str) -> str:
    """The folder that an environment variable names; else the test is skipped."""
    found = os.environ.get(name)
    if not found:
        pytest.skip(f"set {name} to a checkout of it")
    return found


def printed(script: str, *arguments: str) -> list[dict[str, Any]]:
    """What a script has to say, one JSON object a line."""
    run = subprocess.run(
        [sys.executable, ROOT / "benchmarks" / script, *arguments],
        capture_output=True, text=True, check=False, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert run.returncode == 0, run.stderr[-3000:]
    return [json.loads(line) for line in run.stdout.splitlines() if line.startswith("{")]


def test_comfyui() -> None:
    """Every self-attention of its tiny denoisers where attention is torch's or one product after
    the other; the kinds that ask how much memory is free split the graph. Our three nodes."""
    rows = printed("comfyui.py", checkout("COMFYUI"), "--dry", "--only", "tiny", "nodes")
    denoisers = [row for row in rows if "denoiser" in row]
    assert {row["attention"] for row in denoisers} == {"pytorch", "sub-quadratic", "split", "basic"}
    for row in denoisers:
        split = row["attention"] in ("sub-quadratic", "split")
        assert row["split"] == split, row
        assert row["rewritten"] == (0 if split else row["self_attentions"]), row
        assert row["self_attentions"] > 0
        assert row["error"] < 1e-4, row
        assert row["moved"] > 1e-2, row
    nodes = {row["node"]: row for row in rows if "node" in row}
    assert len(nodes) == 6
    for row in nodes.values():
        assert row["error"] < 1e-4, row
        assert row.get("the_given_model_stays", True)


def test_diffusers_pipelines() -> None:
    """What passes as it is passes with our file as the UNet, or is refused in our words."""
    rows = printed("suites.py", checkout("DIFFUSERS"), "--dry", "--only", "inpainting")
    for row in rows:
        assert row["differ"] == {}, row
        assert row["passed"] + sum(row["refused"].values()) == row["baseline_passed"] > 10
        assert row["calls"] > 20
        assert row["most"] < 1e-4
