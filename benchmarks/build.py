"""Engine builds, dense and rewritten side by side: seconds, peak memory, GPU memory, FLOPs.

python benchmarks/build.py                        SD1.5 at 1024, 2048, 4096 px
python benchmarks/build.py --model sdxl --res 2048

Every build is the command itself in a fresh process; memory is the largest sum of resident set
sizes over it and its children, sampled ten times a second. GPU memory is what the builder reports.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil
from common import save
from rich.console import Console
from rich.table import Table


def build(
    model: str,
    px: int,
    factors: str | None,
    opset: int,
    folder: Path,
    more: Sequence[str] = (),
) -> dict[str, Any]:
    """One build in its own process; what it took and what the manifest says."""
    out = folder / "engine.plan"
    command = [
        sys.executable, "-m", "todo_compile.cli.app", "--model", model, "--weights", "random",
        "--res", str(px), "--out", str(out), "--force", "--opset", str(opset), "-q", *more,
    ]  # fmt: skip
    if factors is not None:
        command += ["--factors", factors]
    start = time.perf_counter()
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    peak = 0
    while process.poll() is None:
        peak = max(peak, _resident(process.pid))
        time.sleep(0.1)
    seconds = time.perf_counter() - start
    stderr = process.stderr.read() if process.stderr is not None else ""
    row: dict[str, Any] = {
        "model": model,
        "px": px,
        "plan": factors or "default",
        "opset": opset,
        "seconds": seconds,
        "peak_rss_bytes": peak,
    }
    if process.returncode != 0:
        return {**row, "error": stderr.strip().splitlines()[:2]}
    manifest = json.loads((folder / "engine.plan.json").read_text(encoding="utf-8"))
    return {
        **row,
        "memory": manifest["memory"],
        "engine_bytes": manifest["files"][0]["bytes"],
        "steps": manifest["seconds"],
        "totals": manifest["totals"],
        "library": manifest["library"],
        "targets": manifest["targets"],
    }


def _resident(pid: int) -> int:
    try:
        parent = psutil.Process(pid)
        return sum(p.memory_info().rss for p in [parent, *parent.children(recursive=True)])
    except psutil.NoSuchProcess:
        return 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="sd15")
    parser.add_argument("--res", type=int, nargs="+", default=[1024, 2048, 4096])
    parser.add_argument("--opset", type=int, nargs="+", default=[23])
    parser.add_argument("--plans", nargs="+", default=["off", "default"])
    arguments = parser.parse_args()
    rows: list[dict[str, Any]] = []
    name = f"build-{arguments.model}"
    for px in arguments.res:
        for opset in arguments.opset:
            for plan in arguments.plans:
                with tempfile.TemporaryDirectory() as folder:
                    factors = None if plan == "default" else plan
                    rows.append(build(arguments.model, px, factors, opset, Path(folder)))
                print(
                    json.dumps({k: v for k, v in rows[-1].items() if k not in ("totals", "steps")})
                )
                save(name, {"rows": rows})  # after every build: a long run may be stopped
    table = Table("px", "opset", "plan", "s", "peak GB", "activation GB", "scratch GB", "TFLOPs")
    for row in rows:
        memory, totals = row.get("memory") or {}, row.get("totals") or {}
        table.add_row(
            str(row["px"]),
            str(row["opset"]),
            row["plan"],
            f"{row['seconds']:.0f}",
            f"{row['peak_rss_bytes'] / 1e9:.1f}",
            *(f"{memory[k] / 1e9:.2f}" if k in memory else "–" for k in ("activation", "scratch")),
            f"{totals['flops_after'] / 1e12:.1f}" if totals else str(row.get("error", "")),
        )
    Console().print(table)
    print("wrote", save(name, {"rows": rows}))


if __name__ == "__main__":
    main()
