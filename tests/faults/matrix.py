"""Every fault at every phase of every kind of build: the old output or the new, nothing else.

    PYTHONPATH=. python tests/faults/matrix.py benchmarks/results/faults.json --cells 24

Phases are the events of the code's own progress, taken from a run without faults (`meeting`). Each
cell is a forked process that meets its fault at its event, where nothing stood before, an output of
another model, or one of an older version. Then the place is looked at, nothing may be running any
more, the same command is run once more, and the place is looked at again.

What was tried is kept in a folder as it goes (``--work``): the same command goes on from there.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import sys
import tempfile
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

import torch
from kinds import KINDS, Kind, content, differences
from meeting import FAULTS, READ_ONLY, SECOND, survivable
from processes import ESCAPED, HANGS, adopt_orphans, run, said, start_beside
from sample import Place, Record, cpu_seconds, draw
from tqdm import tqdm

from todo_compile.cli import app

sys.path.append(str(Path(__file__).parents[1]))
from tiny_pipeline import make_rest, make_unet

STOOD = ("nothing", "another model's", "an older version's")


@dataclass
class Cell:
    """One fault at one event, and what was wrong afterwards."""

    kind: str
    fault: str
    event: str
    stood: str
    status: int = 0
    wrong: list[str] = field(default_factory=list[str])


class Matrix:
    """Builds of a tiny model, in folders of its own.

    Args:
        folder: for models and outputs; what is there of an earlier matrix is used.
    """

    def __init__(self, folder: Path) -> None:
        torch.set_num_threads(1)  # a fork has no threads but its own
        tqdm.monitor_interval = 0
        self.folder = folder
        self.models = [folder / "one", folder / "two"]
        if not (folder / "models").exists():
            for path in folder.iterdir():
                shutil.rmtree(path)
            for seed, model in enumerate(self.models, 1):
                make_unet(model, seed)
                make_rest(model)
            (folder / "models").touch()
            _open(folder)
        self._warm()

    def _warm(self) -> None:
        """Build once here, so that forks need neither import nor make what all builds need."""
        work = self.folder / "warm"
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir(mode=0o777)
        home = Path.cwd()
        os.chdir(work)
        code = app.main(KINDS["bundle"].command(self.models[0]))
        os.chdir(home)
        if code or threading.active_count() > 1:  # a fork would lack the threads
            raise RuntimeError(f"{code}, {threading.enumerate()}")

    def finished(self, kind: Kind) -> list[Path]:
        """Folders with the finished output of either model, made once."""
        return [self._finish(kind, model) for model in (0, 1)]

    def _finish(self, kind: Kind, model: int) -> Path:
        work = self.folder / f"{kind.name}-{model}" / "work"
        events = work.parent / "events"
        if events.exists():
            return work
        shutil.rmtree(work.parent, ignore_errors=True)
        work.mkdir(parents=True)
        _open(work.parent)
        kind.place(work, self.models[model])
        log = work.parent / "log"
        if code := run(kind.command(self.models[model]), work, log=log):
            raise RuntimeError(f"{kind.name} cannot be built: {code}: {said(work)}")
        log.rename(events)
        return work

    def places(self, kind: Kind) -> list[Place]:
        """All cells of a kind."""
        events = self.finished(kind)[1].parent / "events"
        names = events.read_text(encoding="utf-8").splitlines()
        return [
            Place(kind.name, fault, number, event, stood)
            for number, event in enumerate(names)
            for fault in FAULTS
            for stood in STOOD
            if survivable(fault, event)
        ]

    def _fresh(self, kind: Kind, stood: str) -> Path:
        work = self.folder / "cell" / "work"
        if work.parent.exists():
            _open(work.parent)
            shutil.rmtree(work.parent)
        if stood == "nothing":
            work.mkdir(parents=True)
        else:
            shutil.copytree(self.finished(kind)[0], work)
        if stood == "an older version's":
            for path in work.rglob("*.json"):
                text = path.read_text(encoding="utf-8")
                path.write_text(text.replace('"format": ', '"format": 9'), encoding="utf-8")
        kind.place(work, self.models[1])
        _open(work.parent)
        return work

    def cell(self, place: Place) -> Cell:
        """Try one."""
        kind, fault = KINDS[place.kind], place.fault
        found = Cell(kind.name, fault, place.event, place.stood)
        work = self._fresh(kind, place.stood)
        command = kind.command(self.models[1])

        def meet() -> None:
            start_beside(command, work) if fault == SECOND else FAULTS[fault](work)

        found.status = run(command, work, at=place.number, meet=meet, drop=fault == READ_ONLY)
        old, new = (content(folder, kind) for folder in self.finished(kind))
        self._check(found, kind, work, old if place.stood == STOOD[1] else {}, new)
        _open(work)
        # Once more, without a fault: it succeeds and leaves nothing behind.
        if code := run(command, work):
            found.wrong.append(f"the next run ends with {code}: {said(work)}")
        if (after := content(work, kind)) != new:
            found.wrong.append(f"the next run's output differs: {differences(after, new)}")
        clean = {p.name for p in self.finished(kind)[1].iterdir()}
        if litter := {p.name for p in work.iterdir()} - clean:
            found.wrong.append(f"litter: {', '.join(sorted(litter))}")
        return found

    def _check(
        self, found: Cell, kind: Kind, work: Path, old: dict[str, str], new: dict[str, str]
    ) -> None:
        if found.status in (HANGS, ESCAPED):
            found.wrong.append(f"it ended with {found.status}: {said(work)}")
        if "Traceback" in said(work, most=10**6):
            found.wrong.append(f"traceback: {said(work)}")
        try:
            seen = content(work, kind)
        except Exception as error:  # noqa: BLE001  # what is half-written is refused in our words
            found.wrong.append(f"{type(error).__name__}: {error}")
            return
        if kind.many:  # each of its outputs by itself
            for name in seen.keys() | old.keys() | new.keys():
                if seen.get(name) not in (old.get(name), new.get(name)):
                    found.wrong.append(f"{name} is neither old nor new")
        elif seen not in (old, new):
            found.wrong.append(f"neither old nor new: {differences(seen, new)}")


def _open(folder: Path) -> None:
    """Let everyone write in a folder and all below: a cell may run as nobody."""
    for path in (folder, *folder.rglob("*")):
        path.chmod(0o777 if path.is_dir() else 0o666)


def main() -> None:
    """Try the matrix, or cells drawn from it, and write what was tried and what survived."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--cells", type=int, default=10**6, help="draw at most so many of a kind")
    parser.add_argument("--kinds", nargs="+", default=list(KINDS), choices=list(KINDS))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work", type=Path, help="keep what was made and tried here, and go on")
    parser.add_argument("--minutes", type=float, default=1e6, help="begin no cell after so many")
    wanted = parser.parse_args()
    until = time.monotonic() + 60 * wanted.minutes
    adopt_orphans()
    with contextlib.ExitStack() as stack:
        folder = wanted.work or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        (folder / "matrix").mkdir(parents=True, exist_ok=True)
        folder.chmod(0o777)
        record = Record(folder / "tried.jsonl")
        matrix = Matrix((folder / "matrix").resolve())
        there = {name: matrix.places(KINDS[name]) for name in wanted.kinds}
        # In turns: what is tried of a part of the time is of every kind.
        chosen = {name: draw(there[name], wanted.cells, wanted.seed) for name in wanted.kinds}
        for turn in range(max(map(len, chosen.values()))):
            for place in (places[turn] for places in chosen.values() if turn < len(places)):
                if place not in record and time.monotonic() < until:
                    before = cpu_seconds()
                    record.add(place, matrix.cell(place), cpu_seconds() - before)
        record.write(wanted.out, there, wanted.seed)


if __name__ == "__main__":
    main()
