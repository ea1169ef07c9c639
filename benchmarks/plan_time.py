"""Processor time of ``todo-compile plan`` from start to end, of several commits in turn.

git worktree add DIR COMMIT
python benchmarks/plan_time.py --checkout DIR [--checkout …] [--rounds 5]

Each run is a process of its own, as a user starts it, with one thread; checkouts take turns, so
that other load strikes all alike. This checkout comes last. Peak memory is of the same processes.
"""

from __future__ import annotations

import argparse
import compileall
import os
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path
from typing import Any

from common import commit, save, spread

HERE = Path(__file__).parents[1]
MODELS = ("sd15", "sdxl")


def once(checkout: Path, model: str) -> tuple[float, int]:
    """Processor seconds (user and system) and peak bytes of one run."""
    project = tomllib.loads((checkout / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    module, _, function = project["scripts"]["todo-compile"].partition(":")
    code = f"from {module} import {function} as run; run()"
    command = [sys.executable, "-c", code, "plan", "--model", model, "--res", "2048"]
    env = {**os.environ, "PYTHONPATH": str(checkout), "OMP_NUM_THREADS": "1"}
    with tempfile.TemporaryDirectory() as folder:  # no checkout is found before PYTHONPATH's
        child = subprocess.Popen(
            command, cwd=folder, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
        )
        assert child.stderr is not None
        said = child.stderr.read()
        _, status, used = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode:
        raise SystemExit(f"{checkout}, {model}: {said.decode(errors='replace')}")
    return used.ru_utime + used.ru_stime, used.ru_maxrss * 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--checkout", type=Path, action="append", default=[])
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    checkouts = [path.resolve() for path in given.checkout] + [HERE]
    for checkout in checkouts:  # as installed
        compileall.compile_dir(str(checkout / "todo_compile"), quiet=1)
    rows: list[dict[str, Any]] = []
    for model in MODELS:
        found: dict[Path, list[tuple[float, int]]] = {path: [] for path in checkouts}
        for _ in range(given.rounds):
            for path in checkouts:
                found[path].append(once(path, model))
        for path, runs in found.items():
            row = {
                "model": model,
                "commit": commit(path),
                "processor_seconds": spread([seconds for seconds, _ in runs]),
                "peak_bytes": spread([peak for _, peak in runs]),
            }
            rows.append(row)
            print(model, row["commit"], row["processor_seconds"], f"{runs[-1][1] / 1e9:.2f} GB")
    print("wrote", save("plan-time", {"px": 2048, "rounds": given.rounds, "rows": rows}))


if __name__ == "__main__":
    main()
