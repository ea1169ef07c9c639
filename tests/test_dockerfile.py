"""The Dockerfile names what exists; `tests/slow/test_slow_dockerfile.py` executes its steps."""

from __future__ import annotations

import fnmatch
import json
import re
import subprocess
import tomllib
from pathlib import Path

import dockerfile

ROOT = Path(__file__).parents[1]
STEPS = dockerfile.read(ROOT / "Dockerfile")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def test_what_is_copied_is_tracked_and_reaches_the_build() -> None:
    tracked = subprocess.run(
        ["git", "-C", str(ROOT), "ls-files"], capture_output=True, text=True, check=True
    ).stdout.splitlines()
    let_in = [
        line[1:]
        for line in (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
        if line.startswith("!")
    ]
    sources = [w for s in STEPS if s.word == "COPY" for w in s.words[:-1]]
    assert sources
    for source in sources:
        assert any(t == source or t.startswith(f"{source}/") for t in tracked), source
        assert any(fnmatch.fnmatch(source, one) for one in let_in), source
    # What building the package reads beyond its own folder.
    assert {PROJECT["readme"], *PROJECT["license-files"], "pyproject.toml"} <= set(sources)


def test_what_is_installed_exists() -> None:
    values = dockerfile.variables(STEPS)
    assert set(values["EXTRAS"].split(",")) <= set(PROJECT["optional-dependencies"])
    (line,) = [s.text for s in STEPS if s.word == "RUN" and "pip install" in s.text]
    assert set(re.findall(r"\$\{?(\w+)", line)) <= set(values)
    assert "-c constraints.txt" in line


def test_what_is_started_is_the_command_and_not_as_root() -> None:
    last = {step.word: step.text for step in STEPS}
    (command,) = json.loads(last["ENTRYPOINT"])
    assert command in PROJECT["scripts"]
    assert last["USER"] not in ("root", "0")
    (python,) = re.findall(r"python:(\d+\.\d+)", last["FROM"])
    assert f"Programming Language :: Python :: {python}" in PROJECT["classifiers"]


def test_no_host_is_named() -> None:
    """An index is the user's choice."""
    assert not re.search(r"https?://", (ROOT / "Dockerfile").read_text(encoding="utf-8"))
