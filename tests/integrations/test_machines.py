"""The examples for Kubernetes and Slurm: whole, for the file they name, and their command runs."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest
import yaml

from todo_compile.build.many.checking import builds_of

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "machines.md").read_text(encoding="utf-8")


def example(language: str) -> str:
    (found,) = re.findall(rf"```{language}\n(.*?)```", PAGE, flags=re.DOTALL)
    assert found.count("\n") <= 20
    return found


@pytest.fixture
def asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file of what todo-compile, a stand-in, was called with."""
    script = tmp_path / "bin" / "todo-compile"
    script.parent.mkdir()
    script.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/asked\n', encoding="utf-8")
    script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{script.parent}{os.pathsep}{os.environ['PATH']}")
    return tmp_path / "asked"


def count() -> int:
    return len(builds_of(ROOT / "examples" / "builds.yaml"))


def test_kubernetes(asked: Path) -> None:
    job = yaml.safe_load(example("yaml"))
    assert (job["kind"], job["spec"]["completionMode"]) == ("Job", "Indexed")
    assert job["spec"]["completions"] == count()
    pod = job["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert [v["name"] for v in pod["volumes"]] == [m["name"] for m in container["volumeMounts"]]
    for index in (0, count() - 1):
        environment = {**os.environ, "JOB_COMPLETION_INDEX": str(index)}
        subprocess.run(container["command"], check=True, env=environment, timeout=60)
    assert asked.read_text().splitlines() == [
        "build builds.yaml --only 1",
        f"build builds.yaml --only {count()}",
    ]


def test_slurm(asked: Path) -> None:
    script = example("bash")
    array = re.search(r"--array=1-(\d+)%", script)
    assert array is not None
    assert int(array[1]) == count()
    environment = {**os.environ, "SLURM_ARRAY_TASK_ID": "4", "SLURM_CPUS_PER_TASK": "2"}
    subprocess.run(["bash", "-c", script], check=True, env=environment, timeout=60)
    assert asked.read_text() == "build builds.yaml --only 4\n"
