"""Engine builds, dense and rewritten side by side: seconds, peak memory, GPU memory, FLOPs.

python benchmarks/build.py                        SD1.5 at 1024, 2048, 4096 px
python benchmarks/build.py --model sdxl --res 2048
python benchmarks/build.py --res 2048 --plans default --checkout DIR --rounds 2 --out build-turns

Every build is the command itself in a fresh process; memory is the largest sum of resident set
sizes over it and its children, sampled ten times a second; of that "anonymous" is what the system
cannot take back when memory runs short (the rest are pages of files). Processor time is of both
processes. GPU memory is what the builder reports. Other checkouts take turns with this one, which
comes last, so that other load strikes all alike.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil
from common import commit, save
from rich.console import Console
from rich.table import Table

HERE = Path(__file__).parents[1]


def build(
    model: str,
    px: int,
    factors: str | None,
    opset: int,
    folder: Path,
    more: Sequence[str] = (),
    checkout: Path = HERE,
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
    # From its folder: no checkout is found before PYTHONPATH's.
    process = subprocess.Popen(
        command, stderr=subprocess.PIPE, text=True, cwd=folder,
        env={**os.environ, "PYTHONPATH": str(checkout)},
    )  # fmt: skip
    peak, anonymous = 0, 0
    while True:
        found, status, used = os.wait4(process.pid, os.WNOHANG)
        if found:
            break
        resident, files = _resident(process.pid)
        peak, anonymous = max(peak, resident), max(anonymous, resident - files)
        time.sleep(0.1)
    seconds = time.perf_counter() - start
    process.returncode = os.waitstatus_to_exitcode(status)
    stderr = process.stderr.read() if process.stderr is not None else ""
    row: dict[str, Any] = {
        "model": model,
        "px": px,
        "plan": factors or "default",
        "opset": opset,
        "commit": commit(checkout),
        "seconds": seconds,
        "processor_seconds": used.ru_utime + used.ru_stime,
        "peak_rss_bytes": peak,
        "peak_anonymous_bytes": anonymous,
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


def _resident(pid: int) -> tuple[int, int]:
    """Bytes of a process and its children, and how many of them are pages of files."""
    try:
        parent = psutil.Process(pid)
        found = [p.memory_info() for p in [parent, *parent.children(recursive=True)]]
    except psutil.NoSuchProcess:
        return 0, 0
    return sum(one.rss for one in found), sum(getattr(one, "shared", 0) for one in found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="sd15")
    parser.add_argument("--res", type=int, nargs="+", default=[1024, 2048, 4096])
    parser.add_argument("--opset", type=int, nargs="+", default=[23])
    parser.add_argument("--plans", nargs="+", default=["off", "default"])
    parser.add_argument("--checkout", type=Path, action="append", default=[])
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--out", help="of the results [default: build-MODEL]")
    arguments = parser.parse_args()
    rows: list[dict[str, Any]] = []
    name = arguments.out or f"build-{arguments.model}"
    checkouts = [path.resolve() for path in arguments.checkout] + [HERE]
    kinds = itertools.product(arguments.res, arguments.opset, arguments.plans)
    for (px, opset, plan), _, checkout in itertools.product(
        kinds, range(arguments.rounds), checkouts
    ):
        factors = None if plan == "default" else plan
        with tempfile.TemporaryDirectory() as folder:
            rows.append(build(arguments.model, px, factors, opset, Path(folder), checkout=checkout))
        print(json.dumps({k: v for k, v in rows[-1].items() if k not in ("totals", "steps")}))
        save(name, {"rows": rows})  # after every build: a long run may be stopped
    table = Table(
        "px", "opset", "plan", "commit", "s", "processor s", "peak GB", "anonymous GB",
        "activation GB", "scratch GB", "TFLOPs",
    )  # fmt: skip
    for row in rows:
        memory, totals = row.get("memory") or {}, row.get("totals") or {}
        table.add_row(
            str(row["px"]),
            str(row["opset"]),
            row["plan"],
            row["commit"],
            f"{row['seconds']:.0f}",
            f"{row['processor_seconds']:.0f}",
            f"{row['peak_rss_bytes'] / 1e9:.1f}",
            f"{row['peak_anonymous_bytes'] / 1e9:.1f}",
            *(f"{memory[k] / 1e9:.2f}" if k in memory else "–" for k in ("activation", "scratch")),
            f"{totals['flops_after'] / 1e12:.1f}" if totals else str(row.get("error", "")),
        )
    Console().print(table)
    print("wrote", save(name, {"rows": rows}))


if __name__ == "__main__":
    main()
