"""Processes: side by side within limits, one that fails stops no other, and none outlives us.

The children are small scripts here; `test_command_build` has real builds.
"""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from todo_compile.build.many import running
from todo_compile.build.many.checking import Plan
from todo_compile.build.many.matrix import Build
from todo_compile.build.many.schedule import Need
from todo_compile.build.request import BuildRequest

# Ends when its stdin closes, as the real one.
_POLITE = (
    "import sys; print('at work', file=sys.stderr, flush=True); sys.stdin.read(); sys.exit(130)"
)
# Deaf, with a child of its own.
_DEAF = (
    "import subprocess, sys, time; subprocess.Popen([sys.executable, '-c', 'import time; "
    "time.sleep(99)']); print('at work', file=sys.stderr, flush=True); time.sleep(99)"
)


@pytest.fixture
def plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Plan]:
    """A plan whose builds are Python scripts."""

    def make(*scripts: str, needs: list[float] | None = None, jobs: int = 9) -> Plan:
        builds = [
            Build("build", 1, BuildRequest(model="m", res=("1",), out=str(tmp_path / f"{i}.plan")))
            for i in range(len(scripts))
        ]

        def command(build: Build) -> list[str]:
            return [sys.executable, "-c", scripts[builds.index(build)]]

        monkeypatch.setattr(running, "_command", command)
        sizes = needs or [1.0] * len(scripts)
        return Plan(builds, [Need(size) for size in sizes], 10, jobs)

    return make


def test_what_became_of_each(plan: Callable[..., Plan], tmp_path: Path) -> None:
    made = "open({!r}, 'wb').write(b'12345')".format(str(tmp_path / "0.plan"))
    found, interrupted = running.run(
        plan(
            f"{made}; print('{{\"reused\": false}}')",
            "print('{\"reused\": true}')",
            "import sys; print('x\\nerror: broken [bold]\\nmend it', file=sys.stderr); sys.exit(6)",
            "raise RuntimeError('a bug')",
            "import os, signal; os.kill(os.getpid(), signal.SIGKILL)",
            "import sys; sys.exit(3)",
        ),
        tmp_path / "logs",
    )
    assert not interrupted
    assert [one.status for one in found] == ["built", "kept", *["failed"] * 4]
    assert [one.error for one in found] == [
        "",
        "",
        "broken [bold]",
        "RuntimeError: a bug",
        "killed by signal 9 (out of memory?)",
        "ended with status 3",
    ]
    assert found[0].bytes == 5
    assert all(one.peak_bytes > 1e6 for one in found[:4] if one.seconds > 0.5)
    assert all(one.log is not None and one.log.parent == tmp_path / "logs" for one in found)
    assert found[2].log is not None
    assert "mend it" in found[2].log.read_text()


def together(plan_: Plan, logs: Path) -> int:
    """The most that ran at once."""
    most = 0

    def tick(now: Any) -> None:
        nonlocal most
        most = max(most, len(now))

    found, _ = running.run(plan_, logs, tick=tick)
    assert [one.status for one in found] == ["built"] * len(plan_.builds)
    return most


_WAIT = "import time; time.sleep(1.5)"


@pytest.mark.parametrize(
    ("needs", "jobs", "most"), [([1, 1, 1], 9, 3), ([1, 1, 1], 2, 2), ([6, 6, 20], 9, 1)]
)
def test_side_by_side(
    plan: Callable[..., Plan], tmp_path: Path, needs: list[float], jobs: int, most: int
) -> None:
    assert together(plan(_WAIT, _WAIT, _WAIT, needs=needs, jobs=jobs), tmp_path) == most


def interrupt_when(ready: Callable[[list[running.Running]], bool]) -> Callable[[Any], None]:
    def tick(now: list[running.Running]) -> None:
        if ready(now):
            raise KeyboardInterrupt

    return tick


def at_work(now: list[running.Running]) -> bool:
    return all(running.last_words(one.log) == "at work" for one in now)


def test_interrupted(plan: Callable[..., Plan], tmp_path: Path) -> None:
    """All are told and waited for; what waited never starts."""
    found, interrupted = running.run(
        plan("", _POLITE, _POLITE, _POLITE, jobs=2),
        tmp_path,
        tick=interrupt_when(lambda now: len(now) == 2 and at_work(now)),
    )
    assert interrupted
    assert [one.status for one in found] == ["built", "stopped", "stopped", "stopped"]
    assert [one.log is None for one in found] == [False, False, False, True]
    assert not psutil.Process().children(recursive=True)


def test_deaf_children_are_killed_with_theirs(
    plan: Callable[..., Plan], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(running, "STOP_SECONDS", 0.5)
    found, interrupted = running.run(plan(_DEAF), tmp_path, tick=interrupt_when(at_work))
    assert interrupted
    assert found[0].status == "stopped"
    assert not psutil.Process().children(recursive=True)


def test_an_error_of_ours_leaves_no_child(plan: Callable[..., Plan], tmp_path: Path) -> None:
    def broken(_now: object) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        running.run(plan(_POLITE), tmp_path, tick=broken)
    assert not psutil.Process().children(recursive=True)


def test_size_of_an_output_with_its_files(tmp_path: Path) -> None:
    out = tmp_path / "x.onnx"
    for name, size in (("x.onnx", 5), ("x.onnx.json", 7), ("x.onnx.data", 11), ("y.onnx", 13)):
        (tmp_path / name).write_bytes(bytes(size))
    assert running.size_of(out, bundle=False) == 23
    (tmp_path / ".building").touch()
    assert running.size_of(tmp_path, bundle=True) == 36
    assert running.size_of(tmp_path / "absent.plan", bundle=False) == 0


def test_worker_ends_with_its_parent() -> None:
    """Its stdin closes: it is interrupted as by Ctrl-C, even where that was ignored."""
    import subprocess

    script = (
        "import signal, sys, time; signal.signal(signal.SIGINT, signal.SIG_IGN)\n"
        "from todo_compile.build.many import worker\n"
        "from todo_compile.build.request import BuildRequest\n"
        "def resolve(self, progress):\n"
        "    try:\n"
        "        print('at work', flush=True); time.sleep(99)\n"
        "    except KeyboardInterrupt:\n"
        "        print('tidied up', self.out, flush=True); raise\n"
        "BuildRequest.resolve = resolve\n"
        "worker.main()\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdin is not None and process.stdout is not None
    request = BuildRequest(model="m", res=("1",), out="x.plan")
    print(request.model_dump_json(), file=process.stdin, flush=True)
    assert process.stdout.readline() == "at work\n"
    watchdog = threading.Timer(60, process.kill)
    watchdog.start()
    time.sleep(0.2)
    process.stdin.close()
    assert process.stdout.readline() == "tidied up x.plan\n"
    assert process.wait() == 130
    watchdog.cancel()
    process.stdout.close()


_ENDED_TWICE = """
import time
from todo_compile.build.many import worker
def build(line):
    try:
        print("ready", flush=True)
        time.sleep(60)
    except KeyboardInterrupt:
        for _ in range(20):
            time.sleep(0.02)
        print("cleaned up", flush=True)
        return 130
worker._build = build
worker.main()
"""


@pytest.mark.skipif(sys.platform == "win32", reason="no such signals")
@pytest.mark.parametrize("first", ["signal", "parent"])
def test_a_worker_that_is_ended_twice_cleans_up(first: str) -> None:
    """A scheduler ends all processes of a job, and the command its children."""
    command = [sys.executable, "-c", _ENDED_TWICE]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, text=True, **pipes) as child:
        child.stdin.write("{}\n")
        child.stdin.flush()
        assert child.stdout.readline() == "ready\n"
        ends = [lambda: child.send_signal(signal.SIGTERM), child.stdin.close]
        for end in ends if first == "signal" else reversed(ends):
            end()
        assert child.stdout.read() == "cleaned up\n"
    assert child.returncode == 130
