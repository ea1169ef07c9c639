"""Run builds as child processes, as many at once as memory allows, and tell what became of them.

A build that fails stops no other. Ctrl-C ends all: each child is told through its stdin (see
`worker`), given time to leave nothing half-written, and killed if it takes too long.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Literal

import psutil

from todo_compile.build.many.checking import Plan, make_folder
from todo_compile.build.many.matrix import Build
from todo_compile.build.many.schedule import startable
from todo_compile.disk import clear_way
from todo_compile.errors import ConfigError

Status = Literal["built", "kept", "failed", "stopped"]
_WORKER = "todo_compile.build.many.worker"
TICK_SECONDS = 0.2
STOP_SECONDS = 30.0


@dataclass(frozen=True)
class Outcome:
    """What became of a build.

    Attributes:
        build: which.
        status: ``stopped`` is one that was interrupted, or never started because of that.
        seconds: that it ran; 0 if it never did.
        bytes: of the output; 0 if there is none.
        peak_bytes: the most memory that it and its children held.
        error: first line, if it failed.
        log: file with what it printed; None if it never ran.
    """

    build: Build
    status: Status
    seconds: float = 0.0
    bytes: int = 0
    peak_bytes: int = 0
    error: str = ""
    log: Path | None = None


@dataclass
class Running:
    """A child at work.

    Attributes:
        folder: where it runs, if not here.
        log_start: where its lines begin in the log, in bytes.
    """

    build: Build
    process: subprocess.Popen[bytes]
    answer: IO[bytes]
    log: Path
    folder: Path | None = None
    log_start: int = 0
    started: float = field(default_factory=time.monotonic)
    peak_bytes: int = 0

    @property
    def seconds(self) -> float:
        """Since its start."""
        return time.monotonic() - self.started

    def measure(self) -> None:
        """Look how much memory the child and its children hold."""
        with suppress(psutil.Error):
            root = psutil.Process(self.process.pid)
            held = [p.memory_info().rss for p in (root, *root.children(recursive=True))]
            self.peak_bytes = max(self.peak_bytes, sum(held))

    def ask_to_end(self) -> None:
        """See `worker`."""
        if self.process.stdin is not None:
            with suppress(OSError):
                self.process.stdin.close()

    def kill(self) -> None:
        """Kill it with its children."""
        with suppress(psutil.Error):
            for child in psutil.Process(self.process.pid).children(recursive=True):
                with suppress(psutil.Error):
                    child.kill()
        with suppress(OSError):
            self.process.kill()
        self.process.wait()

    def outcome(self, *, stopped: bool = False) -> Outcome:
        """What became of it, once it has ended."""
        code = self.process.returncode
        self.answer.seek(0)
        answer = self.answer.read()
        self.answer.close()
        self.ask_to_end()
        status: Status = "stopped" if stopped else "failed"
        if code == 0:
            status = "kept" if _reused(answer) else "built"
        return Outcome(
            self.build,
            status,
            seconds=self.seconds,
            bytes=size_of(
                (self.folder or Path()) / self.build.out, bundle=self.build.request.bundle
            ),
            peak_bytes=self.peak_bytes,
            error=_error(_lines(self.log, self.log_start), code) if status == "failed" else "",
            log=self.log,
        )


def run(
    plan: Plan,
    logs: Path,
    *,
    force: bool = False,
    started: Callable[[Build], None] = lambda _build: None,
    ended: Callable[[Outcome], None] = lambda _outcome: None,
    tick: Callable[[Sequence[Running]], None] = lambda _running: None,
) -> tuple[list[Outcome], bool]:
    """Run all builds of a checked plan.

    Args:
        plan: from `checking.check`; the folders of its outputs exist.
        logs: folder for what each build says; made if need be.
        force: build even what is equal.
        started, ended: called for each build.
        tick: called a few times a second with those that run.

    Returns:
        What became of each, in order; and whether all of it was interrupted.

    Raises:
        ConfigError: the folder for logs cannot be made, or no process can be started.
    """
    make_folder(logs, "Name another for logs: --logs DIR.")
    waiting = dict(enumerate(plan.needs))
    running: dict[int, Running] = {}
    outcomes: dict[int, Outcome] = {}
    interrupted = False

    def finish(number: int, *, stopped: bool = False) -> None:
        outcomes[number] = running.pop(number).outcome(stopped=stopped)
        ended(outcomes[number])

    try:
        while waiting or running:
            beside = [plan.needs[number] for number in running]
            for number in startable(waiting, beside, budget=plan.budget, jobs=plan.jobs):
                del waiting[number]
                build = plan.builds[number]
                running[number] = start(build, log_of(logs, build), force)
                started(build)
            time.sleep(TICK_SECONDS)
            for number, one in list(running.items()):
                one.measure()
                if one.process.poll() is not None:
                    finish(number)
            tick(list(running.values()))
    except KeyboardInterrupt:
        interrupted = True
    finally:  # whatever happened: no child outlives us
        stop(list(running.values()))
    for number in list(running):
        finish(number, stopped=True)
    for number in waiting:
        outcomes[number] = Outcome(plan.builds[number], "stopped")
    return [outcomes[number] for number in sorted(outcomes)], interrupted


def _reused(answer: bytes) -> bool:
    try:
        return bool(json.loads(answer)["reused"])
    except (ValueError, KeyError, TypeError):
        return False  # something else was printed: it was built all the same


def size_of(out: Path, *, bundle: bool) -> int:
    """Bytes of an output with all its files."""
    if bundle:
        files = [p for p in out.rglob("*") if p.is_file() and not p.name.startswith(".")]
    else:
        files = [out, out.with_name(f"{out.name}.json"), out.with_name(f"{out.name}.data")]
    return sum(p.stat().st_size for p in files if p.is_file())


def _asked(build: Build, force: bool) -> bytes:
    """The build's request as its child reads it."""
    request = build.request.model_copy(update={"force": True}) if force else build.request
    return request.model_dump_json(exclude_defaults=True).encode() + b"\n"


def _command(build: Build) -> list[str]:
    del build
    # -P: nothing of the working directory is imported.
    return [sys.executable, "-P", "-m", _WORKER]


def start(build: Build, log: Path, force: bool, *, folder: Path | None = None) -> Running:
    """Start the child process of a build.

    Args:
        build: which.
        log: what it says goes there; with a `folder`, after what the log has.
        force: build even what is equal.
        folder: where it runs, if not here.

    Raises:
        ConfigError: no process can be started.
    """
    answer = tempfile.TemporaryFile()  # noqa: SIM115 (`outcome` closes it)
    environment: Mapping[str, str] = {**os.environ, "PYTHONUTF8": "1"}
    try:
        clear_way(log)
        with log.open("wb" if folder is None else "ab") as sink:
            log_start = sink.tell()
            process = subprocess.Popen(
                _command(build),
                stdin=subprocess.PIPE,
                stdout=answer,
                stderr=sink,
                cwd=folder,
                env=environment,
                # Apart from our group: a Ctrl-C is for us, who tell the children in order.
                start_new_session=os.name != "nt",
                creationflags=getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0),
            )
    except OSError as error:
        answer.close()
        raise ConfigError(
            f"The process of {build.out} does not start: {error}.",
            remedy="Fewer at once (--jobs), more room for processes and memory, or a folder for "
            "logs that may be written (--logs).",
        ) from error
    assert process.stdin is not None
    with suppress(BrokenPipeError):  # it is gone already; its status says why
        process.stdin.write(_asked(build, force))
        process.stdin.flush()  # and left open: its closing tells the child to end
    return Running(build, process, answer, log, folder, log_start)


def stop(running: Sequence[Running]) -> None:
    """End children, in order or else by force."""
    for one in running:
        one.ask_to_end()
    deadline = time.monotonic() + STOP_SECONDS
    for one in running:
        try:
            one.process.wait(timeout=max(0.0, deadline - time.monotonic()))
        except (subprocess.TimeoutExpired, KeyboardInterrupt):
            deadline = 0.0  # a second Ctrl-C: at once
            one.kill()


def log_of(logs: Path, build: Build) -> Path:
    """Where in `logs` the log of a build goes."""
    name = re.sub(r"[^\w.-]+", "-", build.out).strip("-.")
    return logs / f"{build.number:03}-{name[-80:]}.log"


def _error(printed: Sequence[str], code: int) -> str:
    """The first line of an error: ours if there is one, else the last line of all."""
    lines = [line for line in printed if line.strip()]
    ours = next((line for line in lines if line.startswith("error: ")), None)
    if ours is not None:
        return ours.removeprefix("error: ")
    if code < 0:
        return f"killed by signal {-code}" + (" (out of memory?)" if code == -9 else "")
    return lines[-1].strip() if lines else f"ended with status {code}"


def _lines(log: Path, since: int = 0) -> list[str]:
    with suppress(OSError):
        return log.read_bytes()[since:].decode("utf-8", errors="replace").splitlines()
    return []


def last_words(log: Path) -> str:
    """The last line that a build has said so far."""
    lines = [line for line in _lines(log) if line.strip()]
    return lines[-1].strip() if lines else ""
