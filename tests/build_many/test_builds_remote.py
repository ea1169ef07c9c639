"""What a build asks of a cluster, and what a task does there; `test_slow_ray` has a real one."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from todo_compile import packages
from todo_compile.build.many import remote, running
from todo_compile.build.many.checking import Plan
from todo_compile.build.many.matrix import Build
from todo_compile.build.many.schedule import Need
from todo_compile.build.request import BuildRequest
from todo_compile.build.sources import sources_hash
from todo_compile.cli.app import main
from todo_compile.errors import ConfigError

NODES = [{"CPU": 4.0, "memory": 8e9}, {"CPU": 1.0, "memory": 2e9}]


def build(out: str = "x.plan") -> Build:
    return Build("build 1", 1, BuildRequest(model="m", res=("1",), out=out), number=1)


def plan(need: Need) -> Plan:
    return Plan([build()], [need], budget=1, jobs=1)


@pytest.mark.parametrize(
    ("need", "nodes", "asked"),
    [
        (Need(1e9), NODES, {"memory": 1e9, "num_cpus": 2.0}),
        (Need(1e9, alone=True), NODES, {"memory": 8e9, "num_cpus": 2.0}),  # alone on the largest
        (Need(1e9), NODES[1:], {"memory": 1e9, "num_cpus": 1.0}),
        (
            Need(1e9, timed=True),
            [{**NODES[0], "GPU": 2.0}],
            {"memory": 1e9, "num_cpus": 2.0, "num_gpus": 1.0},
        ),
    ],
)
def test_resources(need: Need, nodes: list[dict[str, float]], asked: dict[str, float]) -> None:
    assert remote._resources(plan(need), nodes) == [asked]


@pytest.mark.parametrize(
    ("need", "says"),
    [
        (Need(9e9), "needs about 9.00 GB, and no machine of the cluster has more than 8.00 GB"),
        (Need(1e9, timed=True), "on a GPU, and the cluster has none"),
    ],
)
def test_what_no_machine_can(need: Need, says: str) -> None:
    """It would wait for ever."""
    with pytest.raises(ConfigError, match=says):
        remote._resources(plan(need), NODES)


def task(folder: Path, **changed: Any) -> remote.Task:
    log = folder / "1.log"
    log.touch()
    given: dict[str, Any] = {"folder": folder, "log": log, "sources": sources_hash()}
    return remote.Task(build(), **{**given, **changed}, force=False)


def test_a_folder_that_is_not_shared(tmp_path: Path) -> None:
    outcome = remote.work(task(tmp_path, log=tmp_path / "elsewhere" / "1.log"))
    assert outcome.status == "failed"
    assert "not shared with" in outcome.error


def test_another_todo_compile(tmp_path: Path) -> None:
    outcome = remote.work(task(tmp_path, sources="another"))
    assert outcome.status == "failed"
    assert "todo-compile on" in outcome.error


SCRIPTS = {
    "built": "open('x.plan', 'w').write('12345'); print('{\"reused\": false}')",
    "failed": "import sys; print('error: broken', file=sys.stderr); sys.exit(6)",
    "killed": "import os, signal; os.kill(os.getpid(), signal.SIGKILL)",
}


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Any:
    def use(name: str) -> None:
        monkeypatch.setattr(running, "_command", lambda _: [sys.executable, "-c", SCRIPTS[name]])

    return use


def test_it_runs_in_the_folder_of_the_command(tmp_path: Path, script: Any) -> None:
    script("built")
    outcome = remote.work(task(tmp_path))
    assert (outcome.status, outcome.bytes, outcome.error) == ("built", 5, "")
    assert (tmp_path / "x.plan").read_text() == "12345"
    assert (tmp_path / "1.log").read_text().startswith("on ")


def test_only_what_was_killed_is_tried_again(tmp_path: Path, script: Any) -> None:
    """Ray starts a task again that raises this error, and no other."""
    script("failed")
    assert remote.work(task(tmp_path)).error == "broken"
    script("killed")
    with pytest.raises(remote.KilledError, match="killed by signal 9"):
        remote.work(task(tmp_path))
    lines = (tmp_path / "1.log").read_text().splitlines()
    assert [line.partition(" ")[0] for line in lines] == ["on", "error:", "on"]


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (("--executor", "dask"), "Unknown executor 'dask'"),
        (("--executor", "ray://"), "Unknown executor 'ray://'"),
        (("--executor", "ray", "--jobs", "2"), "--jobs is for builds on this machine"),
        (("--executor", "ray", "--memory", "2GB"), "--memory is for builds on this machine"),
        (("--retries", "2"), "--retries is for clusters"),
    ],
)
def test_options(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], more: tuple[str, ...], says: str
) -> None:
    file = tmp_path / "b.yaml"
    file.write_text("builds: [{model: sd15, res: 512, out: x.onnx}]", encoding="utf-8")
    assert main(["build", str(file), *more]) == 2
    assert says in capsys.readouterr().err


def test_without_ray(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packages, "installed", lambda module: module != "ray")
    file = tmp_path / "b.yaml"
    file.write_text("builds: [{model: sd15, res: 512, out: x.onnx}]", encoding="utf-8")
    assert main(["build", str(file), "--executor", "ray"]) == 9
    assert "todo-compile[ray]" in capsys.readouterr().err
