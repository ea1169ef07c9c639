"""Random modules around attention, rewritten and compared with the truth: a machine that looks.

python benchmarks/soundness.py [--cases 10000] [--seed 0] [--jobs 2] [--json FILE] [--shrink 40]
                               [--minutes 60]

Each case is drawn by a grammar from its seed (`soundness_parts/case.py`), captured in both
dialects, rewritten with explicit factors, run, and compared with an eager run of the same module
whose attention subsamples its own keys and values. Failures are shrunk and printed as tests. The
rate of rewriting of each class is a result too: who refuses everything is never wrong.
"""

from __future__ import annotations

import argparse
import gc
import json
import multiprocessing
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

sys.path.insert(0, str(Path(__file__).parents[1]))  # the oracle is the tests'

import torch
from common import commit, machine
from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress, TimeRemainingColumn
from rich.table import Table
from soundness_parts.capturing import DIALECTS
from soundness_parts.case import draw
from soundness_parts.judge import Verdict, judge
from soundness_parts.shrinking import as_test, distinct
from soundness_parts.tally import Tally

LIMIT = 120
"""Processor seconds after which a case counts as hanging."""


def _hangs(_: int, __: FrameType | None) -> None:
    raise TimeoutError(f"no end after {LIMIT} s")


def _prepare() -> None:
    gc.freeze()
    gc.disable()  # it takes a third of the time; `one` collects now and then
    torch.set_num_threads(1)
    signal.signal(signal.SIGPROF, _hangs)


def one(seed: int) -> list[Verdict]:
    """The verdicts of one seed."""
    case = draw(seed)
    if seed % 25 == 0:
        gc.collect()
    verdicts: list[Verdict] = []
    for dialect in DIALECTS:
        signal.setitimer(signal.ITIMER_PROF, LIMIT)
        try:
            verdicts.append(judge(case, dialect))
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)
    return verdicts


def _all(seeds: range, jobs: int) -> Iterator[list[Verdict]]:
    if jobs == 1:
        _prepare()
        yield from map(one, seeds)
        return
    context = multiprocessing.get_context("spawn")
    with context.Pool(jobs, _prepare, maxtasksperchild=40) as pool:
        yield from pool.imap(one, seeds, chunksize=25)


def _show(console: Console, tally: Tally) -> None:
    table = Table("class", "rewritten", "refused", "dense", "wrong", "crash", "missing", "rate")
    rates = tally.rates()
    for name, counts in sorted(tally.classes.items()):
        outcomes = ("rewritten", "refused", "dense", "wrong", "crash", "missing")
        table.add_row(name, *(str(counts[o]) for o in outcomes), f"{rates.get(name, 0):.0%}")
    console.print(table)
    console.print(dict(tally.outcomes.most_common()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0, help="of the first case")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--json", type=Path, default=None, metavar="FILE")
    parser.add_argument("--shrink", type=int, default=40, help="failures to shrink and print")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="stop drawing then")
    chosen = parser.parse_args()
    console, tally, start = Console(stderr=True), Tally(), time.perf_counter()
    seeds = range(chosen.seed, chosen.seed + chosen.cases)
    cases = 0
    columns = (*Progress.get_default_columns()[:2], MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console) as progress:
        task = progress.add_task("cases", total=len(seeds))
        for verdicts in _all(seeds, chosen.jobs):
            cases += 1
            for verdict in verdicts:
                tally.add(verdict)
                if verdict.failed:
                    console.print(f"{verdict.outcome}: {verdict.detail}: {verdict.case}")
            if time.perf_counter() - start > 60 * chosen.minutes:
                break
            failed = len(tally.failures)
            progress.update(task, advance=1, description=f"cases ({failed} failures)")
    seconds = time.perf_counter() - start
    _show(console, tally)
    _prepare()
    found = distinct(
        tally.failures,
        most=chosen.shrink,
        tell=lambda verdict, count: print(f"# {count} alike\n{as_test(verdict)}\n", flush=True),
    )
    data = {
        "machine": machine(),
        "commit": commit(Path(__file__).parent),
        "cases": cases,
        "first_seed": chosen.seed,
        "dialects": list(DIALECTS),
        "seconds": round(seconds, 1),
        "processes": chosen.jobs,
        "process_ms_per_case": round(1e3 * seconds * chosen.jobs / max(1, cases), 1),
        **tally.to_dict(),
        "failures": [
            {"alike": count, "dialect": v.dialect, "outcome": v.outcome, "detail": v.detail,
             "case": str(v.case)}
            for v, count in found
        ],
    }  # fmt: skip
    if chosen.json is not None:
        chosen.json.write_text(json.dumps(data, indent=1, ensure_ascii=False) + "\n", "utf-8")
        console.print("wrote", str(chosen.json))
    sys.exit(1 if tally.failures else 0)


if __name__ == "__main__":
    main()
