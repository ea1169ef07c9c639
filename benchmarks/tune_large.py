r"""Time and memory of `tune` at full size: SD1.5 with random weights, whose choice means nothing.

    python benchmarks/tune_large.py

The whole machinery runs: single sites replayed, candidates drawn in parts of the schedule, the
choice, plans verified, the plan written, and a bundle's denoisers compiled by it. Each step's time
of the clock and of the processor and the most memory of the process stand in
``results/tune-large.json``, from the first step on.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from common import save
from race_parts.clock import resident

import todo_compile
from todo_compile.build.bundle_job import BundleResult
from todo_compile.progress import SilentProgress, Step

WORK = Path(__file__).parent.parent / "build" / "tune-large"


class Measured(SilentProgress):
    """Time and memory of every step, told as it ends.

    Args:
        ended: called after each.
    """

    def __init__(self, ended: Callable[[], object]) -> None:
        super().__init__()
        self._ended = ended
        self.rows: list[dict[str, Any]] = []
        self.remarks: list[str] = []

    @contextmanager
    def step(self, name: str) -> Generator[Step]:
        """Measure one."""
        resident(reset=True)
        begun, processor = time.perf_counter(), time.process_time()
        with super().step(name) as step:
            yield step
        self.rows.append(
            {
                "step": name,
                "seconds": time.perf_counter() - begun,
                "processor_seconds": time.process_time() - processor,
                "peak_bytes": resident(name="VmHWM"),
            }
        )
        print(self.rows[-1], flush=True)
        self._ended()

    def info(self, text: str) -> None:
        self.remarks.append(text)
        print(text, flush=True)

    warn = info


def main() -> None:
    """Tune, compile, write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--model", default="sd15")
    parser.add_argument("--side", type=int, default=1024)
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--guidance", type=float, default=1.0)
    parser.add_argument("--precision", default="bf16")
    parser.add_argument("--candidates", default="nearest:4")
    parser.add_argument("--budget", default="speedup=1.5")
    parser.add_argument("--fit", type=int, default=1)
    parser.add_argument("--pairs", type=int, default=1)
    given = parser.parse_args()
    WORK.mkdir(parents=True, exist_ok=True)
    found: dict[str, Any] = {"command": vars(given), "finished": False}

    def keep() -> None:
        """What is known so far: a run takes an hour and more."""
        found.update(rows=tuned.rows, remarks=tuned.remarks, compiled=built.rows)
        save("tune-large", found)

    tuned, built = Measured(keep), Measured(keep)
    plan = todo_compile.tune(
        given.model,
        res=given.side,
        budget=given.budget,
        candidates=given.candidates,
        phases=2,
        parts=2,
        steps=given.steps,
        guidance=given.guidance,
        scheduler="ddim",
        fit=given.fit,
        pairs=given.pairs,
        weights="random",
        precision=given.precision,
        quick=True,
        scores=WORK / "scores.json",
        progress=tuned,
    )
    path = plan.save(WORK / "plan.json")
    chosen = [{"start": p.start, "sites": p.sites} for p in plan.phases]
    found.update(settings=plan.settings, speedup=plan.speedup, plan=chosen, notes=plan.notes)
    keep()
    with tempfile.TemporaryDirectory(dir=WORK) as folder:
        made = todo_compile.compile(
            given.model,
            res=given.side,
            out=f"{folder}/bundle/",
            component="unet",
            format="onnx",
            weights="random",
            batch=1,
            plan=path,
            progress=built,
        )
        assert isinstance(made, BundleResult)
        entries = [result.manifest.plan for result in made.results.values()]
    assert all(entry is not None and entry.digest == plan.digest for entry in entries)
    found.update(finished=True, denoisers=len(entries))
    keep()


if __name__ == "__main__":
    main()
