"""The builds of a file on a Ray cluster: a task each, on any machine that has memory for it.

A task starts the child process that a build has on this machine too, in the folder where the
command runs, and with its log beside the others: both lie in a folder that all machines share. If a
machine or a worker dies, its child is interrupted (see `worker`), so that nothing is half-written,
and Ray starts the task again.
"""

from __future__ import annotations

import os
import socket
import sys
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from todo_compile import packages
from todo_compile.build.many.checking import Plan, make_folder
from todo_compile.build.many.matrix import Build
from todo_compile.build.many.running import (
    STOP_SECONDS,
    TICK_SECONDS,
    Outcome,
    log_of,
    start,
    stop,
)
from todo_compile.build.many.schedule import Need
from todo_compile.build.sources import sources_hash
from todo_compile.disk import clear_way, format_bytes
from todo_compile.errors import ConfigError, first_line

RETRIES = 2
"""How often a build is started again whose process, worker or machine was killed."""
_POLL_SECONDS = 0.5


class KilledError(Exception):
    """A build's process was killed, as by a machine that is out of memory."""


@dataclass(frozen=True)
class Task:
    """A build as it is sent to another machine.

    Attributes:
        build: which.
        folder: where the command runs; paths are relative to it.
        log: of the build; made by who sends it, so that it tells whether the folder is shared.
        sources: hash of the sender's todo-compile.
        force: build even what is equal.
    """

    build: Build
    folder: Path
    log: Path
    sources: str
    force: bool


def work(task: Task) -> Outcome:
    """Run a build on this machine; what a task of the cluster does.

    Raises:
        KilledError: its process was killed.
    """
    here = socket.gethostname()
    if not task.log.exists() or not task.folder.is_dir():
        return _failed(task, f"{task.log.parent} and {task.folder} are not shared with {here}")
    with task.log.open("a", encoding="utf-8") as log:
        log.write(f"on {here}, process {os.getpid()}\n")
    if sources_hash() != task.sources:
        return _failed(task, f"todo-compile on {here} is another one than where the command runs")
    running = start(task.build, task.log, task.force, folder=task.folder)
    try:
        while running.process.poll() is None:
            running.measure()
            time.sleep(TICK_SECONDS)
    finally:  # cancelled: no child outlives its task
        stop([running])
    outcome = running.outcome()
    if outcome.status == "failed" and (running.process.returncode or 0) < 0:
        raise KilledError(f"{outcome.error}, on {here}")
    return outcome


def _failed(task: Task, error: str) -> Outcome:
    return Outcome(task.build, "failed", error=error, log=task.log)


def run(
    plan: Plan,
    logs: Path,
    *,
    address: str | None = None,
    retries: int = RETRIES,
    force: bool = False,
    started: Callable[[Build], None] = lambda _build: None,
    ended: Callable[[Outcome], None] = lambda _outcome: None,
) -> tuple[list[Outcome], bool]:
    """Run all builds of a checked plan on a cluster.

    Args:
        plan: from `checking.check`; the folders of its outputs exist. What it says of this
            machine's memory and of builds at once is not for a cluster.
        logs: folder for what each build says; made if need be.
        address: ``ray://HOST:PORT``; None takes ``RAY_ADDRESS``, else a cluster of this machine,
            else makes one.
        retries: how often a build that was killed is started again.
        force: build even what is equal.
        started, ended: called for each build.

    Returns:
        What became of each, in order; and whether all of it was interrupted.

    Raises:
        MissingPackageError: Ray is absent.
        ConfigError: no cluster answers, none of its machines has memory enough, or the folder for
            logs cannot be made.
    """
    ray = packages.load("ray", "--executor ray")
    make_folder(logs, "Name another for logs: --logs DIR.")
    # What Ray says of its workers is for people: stdout may be JSON.
    with redirect_stdout(sys.stderr), _connected(ray, address):
        resources = _resources(plan, [n["Resources"] for n in ray.nodes() if n["Alive"]])
        remote = ray.remote(work)
        waiting: dict[Any, Task] = {}
        for build, needed in zip(plan.builds, resources, strict=True):
            task = Task(build, Path.cwd(), log_of(logs.resolve(), build), sources_hash(), force)
            clear_way(task.log)
            task.log.write_bytes(b"")
            retried = {"max_retries": retries, "retry_exceptions": [KilledError]}
            waiting[remote.options(**needed, **retried).remote(task)] = task
        return _follow(ray, waiting, plan.builds, started, ended)


@contextmanager
def _connected(ray: Any, address: str | None) -> Generator[None]:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is sent to anybody
    try:
        ray.init(address=address, log_to_driver=False, logging_level="error")
    except (ConnectionError, TimeoutError, RuntimeError, ValueError) as error:
        raise ConfigError(
            f"No Ray cluster answers at {address or os.environ.get('RAY_ADDRESS', 'this machine')}:"
            f" {first_line(error)}",
            remedy="Start one: ray start --head; and name it: --executor ray://HOST:10001",
        ) from error
    try:
        yield
    finally:
        ray.shutdown()


def _resources(plan: Plan, nodes: Sequence[Mapping[str, float]]) -> list[dict[str, float]]:
    """What each build asks of a machine.

    Raises:
        ConfigError: no machine has it.
    """
    memory = max((node.get("memory", 0.0) for node in nodes), default=0.0)
    processors = max((node.get("CPU", 0.0) for node in nodes), default=0.0)
    graphics = max((node.get("GPU", 0.0) for node in nodes), default=0.0)

    def asked(build: Build, need: Need) -> dict[str, float]:
        if need.timed and not graphics:
            raise ConfigError(
                f"{build.out} is built by TensorRT on a GPU, and the cluster has none.",
                remedy="Take TensorRT for RTX: --library tensorrt_rtx.",
            )
        if memory < need.bytes:
            raise ConfigError(
                f"{build.out} needs about {format_bytes(need.bytes)}, and no machine of the "
                f"cluster has more than {format_bytes(memory)}.",
                remedy="Add one to the cluster; ray start --memory says what a machine lends.",
            )
        # What must be alone takes a machine's memory whole. Two processors are as on one machine.
        bytes_ = memory if need.alone else need.bytes
        found = {"memory": float(int(bytes_)), "num_cpus": min(2.0, processors)}
        return {**found, "num_gpus": 1.0} if need.timed else found

    return [asked(*pair) for pair in zip(plan.builds, plan.needs, strict=True)]


def _follow(
    ray: Any,
    waiting: dict[Any, Task],
    builds: Sequence[Build],
    started: Callable[[Build], None],
    ended: Callable[[Outcome], None],
) -> tuple[list[Outcome], bool]:
    outcomes: dict[int, Outcome] = {}
    silent = {task.build.number: task for task in waiting.values()}
    interrupted = False

    def finish(ref: Any) -> None:
        task = waiting.pop(ref)
        outcome = outcomes[task.build.number] = _result(ray, ref, task, stopped=interrupted)
        ended(outcome)

    try:
        while waiting:
            done, _ = ray.wait(list(waiting), num_returns=1, timeout=_POLL_SECONDS)
            for number, task in list(silent.items()):
                if task.log.stat().st_size:  # it has said where it runs
                    started(silent.pop(number).build)
            for ref in done:
                finish(ref)
    except KeyboardInterrupt:
        interrupted = True
        for ref in waiting:
            ray.cancel(ref)
        ray.wait(list(waiting), num_returns=len(waiting), timeout=STOP_SECONDS)
        for ref in list(waiting):
            finish(ref)
    return [outcomes[build.number] for build in builds], interrupted


def _result(ray: Any, ref: Any, task: Task, *, stopped: bool) -> Outcome:
    """What became of a build, once its task has ended or was cancelled."""
    if stopped:
        return Outcome(task.build, "stopped", log=task.log if task.log.stat().st_size else None)
    try:
        return ray.get(ref)
    except KilledError as error:
        return _failed(task, str(error).strip().splitlines()[-1].removeprefix("KilledError: "))
    except ray.exceptions.RayError as error:
        return _failed(task, f"{type(error).__name__}: {first_line(error)}")
