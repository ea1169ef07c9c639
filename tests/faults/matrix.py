"""Every fault at every phase of every kind of build: the old output or the new, nothing else.

    PYTHONPATH=. python tests/faults/matrix.py benchmarks/results/faults.json

Phases are the events of the code's own progress, taken from a run without faults, so a new step of
the work is covered by itself; of a file of builds they are the starts, lines and ends of its child
processes. Each cell is a forked process that meets its fault at its event, where nothing stood
before, an output of another model, or one of an older version. Then the place is looked at, nothing
may be running any more, the same command is run once more, and the place is looked at again.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import importlib
import itertools
import json
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Generator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import psutil
import torch

from todo_compile.build.many import running
from todo_compile.bundle.bundle import check_bundle, is_bundle, read_bundle
from todo_compile.bundle.manifest import check_files, read
from todo_compile.cli import app, console
from todo_compile.errors import TodoError

sys.path.append(str(Path(__file__).parents[1]))
from tiny_pipeline import make_rest, make_unet

NOBODY = 65534
_REAL_STEP = console.ConsoleProgress.step
HANGS, ESCAPED = -999, 99
STOOD = ("nothing", "another model's", "an older version's")
LIMIT = 240  # seconds that a run may take before it counts as hanging


@dataclass(frozen=True)
class Kind:
    """A way to build: the command's arguments after the model, and where the output is."""

    name: str
    arguments: tuple[str, ...]
    out: str


KINDS = {
    kind.name: kind
    for kind in (
        Kind("file", ("-r", "64", "--precision", "fp32", "-o", "x.onnx"), "x.onnx"),
        Kind("engine", ("-r", "64", "-o", "x.plan"), "x.plan"),
        Kind("bundle", ("-r", "32", "--precision", "fp32", "--format", "onnx", "-o", "b/"), "b"),
        Kind(
            "bundle of two sizes and a twin",
            ("-r", "32", "-r", "48", "--precision", "fp32", "--format", "onnx", "-o", "b/",
             "--dense-after", "0.5", "--component", "unet,vae-decoder"),
            "b",
        ),
        Kind("builds of a file", ("builds.yaml", "--jobs", "1"), "."),
    )
}  # fmt: skip


def _sent(number: int) -> Callable[[Path], None]:
    return lambda _: os.kill(os.getpid(), number)


def _disk_full(_: Path) -> None:
    """Nothing more can be written to files; to writers in C++ it looks the same."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY))


def _read_only(work: Path) -> None:
    for path in (work, *(p for p in work.rglob("*") if p.is_dir())):
        with contextlib.suppress(OSError):
            path.chmod(0o555)


def _deleted(work: Path) -> None:
    """Whatever is being made disappears."""
    for path in work.rglob("*"):
        if path.is_file() and any(part.startswith(".") for part in path.relative_to(work).parts):
            with contextlib.suppress(OSError):
                path.unlink()


def _clock_back(_: Path) -> None:
    real = time.time
    time.time = lambda: real() - 7 * 86400


FAULTS: dict[str, Callable[[Path], None]] = {
    "SIGKILL": _sent(signal.SIGKILL),
    "SIGTERM": _sent(signal.SIGTERM),
    "Ctrl-C": _sent(signal.SIGINT),
    "disk full": _disk_full,
    "read-only": _read_only,
    "deleted": _deleted,
    "clock back": _clock_back,
    "second builder": lambda _: None,  # started by the parent
}


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
        folder: for models and outputs.
    """

    def __init__(self, folder: Path) -> None:
        torch.set_num_threads(1)  # a fork has no threads but its own
        self.folder = folder
        self.models = [folder / "one", folder / "two"]
        for seed, model in enumerate(self.models, 1):
            make_unet(model, seed)
            make_rest(model)
        folder.chmod(0o777)
        for path in folder.rglob("*"):
            path.chmod(0o777 if path.is_dir() else 0o666)
        self._import_all()
        self._made: dict[str, list[Path]] = {}

    def _import_all(self) -> None:
        """Import what a build imports, once, so that forks needn't."""
        work = self.folder / "imports"
        work.mkdir(mode=0o777)
        if (child := os.fork()) == 0:
            os.chdir(work)
            app.main(self.command(KINDS["file"], 0))
            (work / "names").write_text("\n".join(sys.modules), encoding="utf-8")
            os._exit(0)
        os.waitpid(child, 0)
        for name in (work / "names").read_text(encoding="utf-8").splitlines():
            if name not in sys.modules:
                with contextlib.suppress(Exception):  # made at run time: torch._dynamo's, classes'
                    importlib.import_module(name)

    def command(self, kind: Kind, model: int) -> list[str]:
        """The command line; of a file of builds the file is written."""
        if kind.name.startswith("builds"):
            return ["build", *kind.arguments, "-q"]
        return ["compile", "-m", str(self.models[model]), *kind.arguments, "-q"]

    def place(self, kind: Kind, work: Path, model: int) -> None:
        """What the command needs beside the model."""
        if kind.name.startswith("builds"):
            text = (
                f"defaults: {{model: {self.models[model]}, res: 64, precision: fp32}}\n"
                "builds:\n  - out: a.onnx\n  - {out: c.onnx, factors: '2'}\n"
            )
            (work / "builds.yaml").write_text(text, encoding="utf-8")
            (work / "builds.yaml").chmod(0o666)

    def finished(self, kind: Kind) -> list[Path]:
        """Folders with the finished output of either model, made once."""
        if kind.name not in self._made:
            self._made[kind.name] = [self._finish(kind, model) for model in (0, 1)]
        return self._made[kind.name]

    def _finish(self, kind: Kind, model: int) -> Path:
        work = self.folder / f"{kind.name}-{model}"
        work.mkdir(mode=0o777)
        self.place(kind, work, model)
        if code := run(self.command(kind, model), work):
            raise RuntimeError(f"{kind.name} cannot be built: {code}: {said(work)}")
        return work

    def events(self, kind: Kind) -> list[str]:
        """Names of all events of a build, in their order."""
        work = self._fresh(kind, stood="nothing")
        log = work.parent / "events"
        log.unlink(missing_ok=True)
        run(self.command(kind, 1), work, log=log)
        return log.read_text(encoding="utf-8").splitlines()

    def _fresh(self, kind: Kind, *, stood: str) -> Path:
        work = self.folder / "cell" / "work"
        if work.parent.exists():
            for path in (work.parent, *work.parent.rglob("*")):
                if path.is_dir():
                    path.chmod(0o777)
            shutil.rmtree(work.parent)
        if stood == "nothing":
            work.mkdir(parents=True)
        else:
            shutil.copytree(self.finished(kind)[0], work)
        if stood == "an older version's":
            for path in work.rglob("*.json"):
                text = path.read_text(encoding="utf-8")
                path.write_text(text.replace('"format": ', '"format": 9'), encoding="utf-8")
        self.place(kind, work, 1)
        for path in (work.parent, work, *work.rglob("*")):
            path.chmod(0o777 if path.is_dir() else 0o666)
        return work

    def cell(self, kind: Kind, fault: str, number: int, event: str, *, stood: str) -> Cell:
        """Try one: `number` is the event's place in the order."""
        found = Cell(kind.name, fault, event, stood)
        work = self._fresh(kind, stood=stood)
        arguments = self.command(kind, 1)

        def meet() -> None:
            if fault == "second builder":
                start(arguments, work)
            else:
                FAULTS[fault](work)

        found.status = run(arguments, work, at=number, meet=meet, drop=fault == "read-only")
        old, new = (content(folder, kind) for folder in self.finished(kind))
        allowed = [new, *([old] if stood == STOOD[1] else [{}])]
        self._check(found, kind, work, allowed)
        for path in (work, *work.rglob("*")):
            if path.is_dir():
                path.chmod(0o777)
        # Once more, without a fault: it succeeds and leaves nothing behind.
        if code := run(arguments, work):
            found.wrong.append(f"the next run ends with {code}: {said(work)}")
        if (after := content(work, kind)) != new:
            found.wrong.append(f"the next run's output differs: {_differences(after, new)}")
        clean = {p.name for p in self.finished(kind)[1].iterdir()}
        if litter := {p.name for p in work.iterdir()} - clean:
            found.wrong.append(f"litter: {', '.join(sorted(litter))}")
        return found

    def _check(self, found: Cell, kind: Kind, work: Path, allowed: list[dict[str, str]]) -> None:
        if found.status in (HANGS, ESCAPED):
            found.wrong.append(f"it ended with {found.status}: {said(work)}")
        if "Traceback" in said(work, most=10**6):
            found.wrong.append(f"traceback: {said(work)}")
        try:
            seen = content(work, kind)
        except Exception as error:  # noqa: BLE001  # what is half-written is refused in our words
            found.wrong.append(f"{type(error).__name__}: {error}")
            return
        if kind.name.startswith("builds"):  # each of its outputs by itself
            for name in seen.keys() | set().union(*allowed):
                if seen.get(name) not in [one.get(name) for one in (*allowed, {})]:
                    found.wrong.append(f"{name} is neither old nor new")
        elif seen not in allowed and seen:
            found.wrong.append(f"neither old nor new: {_differences(seen, allowed[0])}")
        elif not seen and found.stood == STOOD[1] and kind.out != "b":
            found.wrong.append("the old output is lost")


def content(work: Path, kind: Kind) -> dict[str, str]:
    """What a reader of the place is given: what each output that loads was made of.

    What does not load is not there for a reader, as long as it is refused in our words. (Bytes
    cannot be compared: engines differ from build to build.)
    """
    outputs = [work / kind.out] if kind.out != "." else [work / "a.onnx", work / "c.onnx"]
    found: dict[str, str] = {}
    for out in outputs:
        try:
            if is_bundle(out):
                bundle = read_bundle(out)
                if not check_bundle(bundle, out):
                    found |= {e.file: _made_of(out / e.file) for _, e in bundle.entries()}
            elif out.is_file() and not check_files(read(out), out.parent):
                found[out.name] = _made_of(out)
        except TodoError:
            continue
    return found


def _made_of(path: Path) -> str:
    return json.dumps(read(path).request, sort_keys=True, default=str)


def _differences(one: dict[str, str], other: dict[str, str]) -> str:
    names = [n for n in one.keys() | other.keys() if one.get(n) != other.get(n)]
    return ", ".join(sorted(names)[:5])


def start(arguments: list[str], work: Path) -> None:
    """Fork another run of the command line beside this one, in its group."""
    console.ConsoleProgress.step = _REAL_STEP  # that one meets no fault
    if os.fork() == 0:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        _child(arguments, work, nowhere, None, None, False, None, leads=False)


def run(
    arguments: list[str],
    work: Path,
    *,
    at: int | None = None,
    meet: Callable[[], None] | None = None,
    drop: bool = False,
    log: Path | None = None,
) -> int:
    """Run the command line in a fork; returns its status, negative for a signal.

    Args:
        arguments: of ``todo-compile``.
        work: its working directory.
        at: number of the event at which `meet` is called, in the child.
        meet: the fault.
        drop: run without root's rights, which no permission binds.
        log: write the events' names there.
    """
    before = set(psutil.Process().children())
    # Words go through a pipe: where the disk is full, a file would not take them.
    reader, writer = os.pipe()
    if (child := os.fork()) == 0:
        _child(arguments, work, writer, at, meet, drop, log)
    os.close(writer)
    os.set_blocking(reader, False)
    words = b""
    until = time.monotonic() + LIMIT
    status: int | None = None
    while status is None and time.monotonic() < until:
        done, ended = os.waitpid(child, os.WNOHANG)
        if done:
            _end_orphans(before)
            status = os.waitstatus_to_exitcode(ended)
        with contextlib.suppress(BlockingIOError):
            words += os.read(reader, 2**20)
        time.sleep(0.02)
    os.close(reader)
    (work.parent / "said").write_bytes(words)
    if status is None:
        os.killpg(child, signal.SIGKILL)
        os.waitpid(child, 0)
        return HANGS
    return status


def adopt_orphans() -> None:
    """Let what a killed run started become a child of this process (Linux), wherever it is."""
    subreaper = 36  # PR_SET_CHILD_SUBREAPER of prctl(2)
    if ctypes.CDLL(None, use_errno=True).prctl(subreaper, 1, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl")


def _end_orphans(before: set[psutil.Process]) -> None:
    """Wait for what the run started: an orphan that goes on by itself is a fault of ours."""
    until = time.monotonic() + LIMIT
    while left := [p for p in psutil.Process().children() if p not in before]:
        for one in left:
            with contextlib.suppress(ChildProcessError):
                os.waitpid(one.pid, os.WNOHANG)
        if time.monotonic() > until:
            for one in left:
                one.kill()
            raise RuntimeError(f"{left} go on after the run has ended")
        time.sleep(0.05)


def said(work: Path, most: int = 400) -> str:
    """The last words of a run."""
    path = work.parent / "said"
    text = path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""
    return " ".join(text.split())[-most:]


def _child(
    arguments: list[str],
    work: Path,
    words: int,
    at: int | None,
    meet: Callable[[], None] | None,
    drop: bool,
    log: Path | None,
    leads: bool = True,
) -> None:
    status = ESCAPED
    try:
        if leads:
            os.setpgid(0, 0)
        os.dup2(words, 1)
        os.dup2(words, 2)
        os.chdir(work)
        if drop and os.geteuid() == 0:
            os.environ["HOME"] = str(work.parent)
            os.setgid(NOBODY)
            os.setuid(NOBODY)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        _watch(at, meet, log)
        status = app.main(arguments)
    except BaseException:  # noqa: BLE001  # a fork must not go on as its parent
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def _watch(at: int | None, meet: Callable[[], None] | None, log: Path | None) -> None:
    count = 0

    def event(name: str) -> None:
        nonlocal count
        if log is not None:
            with log.open("a", encoding="utf-8") as file:
                file.write(f"{name}\n")
        if count == at and meet is not None:
            meet()
        count += 1

    @contextlib.contextmanager
    def step(self: Any, name: str) -> Generator[Any]:
        with _REAL_STEP(self, name) as shown:
            event(f"{name}: begins")
            yield shown
            event(f"{name}: ends")

    console.ConsoleProgress.step = step
    _watch_children(event)


def _watch_children(event: Callable[[str], None]) -> None:
    """Tell of the children of a file of builds: their starts, the lines they say, their ends."""
    start, measure, outcome = running.start, running.Running.measure, running.Running.outcome
    seen: Counter[Path] = Counter()

    def lines(one: running.Running) -> None:
        said = one.log.read_text(encoding="utf-8", errors="replace").splitlines()
        for line in said[seen[one.log] :]:
            event(f"{one.build.out}: {line.split('  ')[0]}")
        seen[one.log] = len(said)

    def starts(build: Any, *rest: Any) -> running.Running:
        one = start(build, *rest)
        event(f"{build.out}: starts")
        return one

    def measures(self: running.Running) -> None:
        measure(self)
        lines(self)

    def ends(self: running.Running, *, stopped: bool = False) -> running.Outcome:
        lines(self)
        event(f"{self.build.out}: ends")
        return outcome(self, stopped=stopped)

    running.start = starts
    running.Running.measure, running.Running.outcome = measures, ends


def cells(matrix: Matrix, kinds: Sequence[str]) -> list[tuple[Kind, str, int, str, str]]:
    """All that there are of some kinds."""
    found: list[tuple[Kind, str, int, str, str]] = []
    for kind in (KINDS[name] for name in kinds):
        for number, event in enumerate(matrix.events(kind)):
            for fault in FAULTS:
                found += [(kind, fault, number, event, stood) for stood in STOOD]
    return found


def drawn(
    all_cells: list[tuple[Kind, str, int, str, str]], count: int, seed: int
) -> list[tuple[Kind, str, int, str, str]]:
    """At most `count` cells, every fault as often as any other."""
    mixed = random.Random(seed).sample(all_cells, len(all_cells))
    by_fault = [[cell for cell in mixed if cell[1] == fault] for fault in FAULTS]
    turns = (cell for turn in zip(*by_fault, strict=True) for cell in turn)
    return list(itertools.islice(turns, count))


def main() -> None:
    """Try the matrix, or cells drawn from it, and write what was tried and what survived."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--cells", type=int, default=10**6, help="draw at most so many of a kind")
    parser.add_argument("--kinds", nargs="+", default=list(KINDS), choices=list(KINDS))
    parser.add_argument("--seed", type=int, default=0)
    wanted = parser.parse_args()
    bad: list[Cell] = []
    tried: Counter[tuple[str, str]] = Counter()
    there = 0
    adopt_orphans()
    with tempfile.TemporaryDirectory() as folder:
        matrix = Matrix(Path(folder))
        Path(folder).chmod(0o777)
        for name in wanted.kinds:
            every = cells(matrix, [name])
            there += len(every)
            for kind, fault, number, event, stood in drawn(every, wanted.cells, wanted.seed):
                cell = matrix.cell(kind, fault, number, event, stood=stood)
                tried[kind.name, fault] += 1
                if cell.wrong:
                    bad.append(cell)
                    print(cell, flush=True)
            print(f"{name}: {len(every)} cells, {len(bad)} wrong so far", flush=True)
    rows = [
        {"kind": kind, "fault": fault, "tried": count,
         "survived": count - sum(c.kind == kind and c.fault == fault for c in bad)}
        for (kind, fault), count in sorted(tried.items())
    ]  # fmt: skip
    found = {"cells": there, "tried": sum(tried.values()), "rows": rows}
    text = json.dumps({**found, "wrong": [asdict(cell) for cell in bad]}, indent=1)
    wanted.out.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
