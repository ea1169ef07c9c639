"""The Dockerfile's steps, executed in a fresh folder and environment instead of a container.

What is not tried: the base image itself, `apt-get` and `useradd` (they are root's), and Docker's
own reading of the file.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import dockerfile
import pytest

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]
ROOT = Path(__file__).parents[2]
ROOTS_OWN = ("apt-get", "useradd")


class Box:
    """A folder as a container's file system; its Python is a new environment's."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        subprocess.run([sys.executable, "-m", "venv", str(folder / "env")], check=True)
        self.variables: dict[str, str] = {}
        self.place = folder / "root"
        self.entry: list[str] = []
        self.left_out: list[str] = []

    @property
    def environment(self) -> dict[str, str]:
        kept = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
        path = f"{self.folder / 'env' / 'bin'}{os.pathsep}{os.environ['PATH']}"
        given = {k: v for k, v in self.variables.items() if v}
        return {**kept, **given, "PATH": path}

    def inside(self, path: str) -> Path:
        return (
            self.folder / "root" / path.lstrip("/") if path.startswith("/") else self.place / path
        )

    def do(self, step: dockerfile.Step) -> None:
        if step.word in ("ARG", "ENV"):
            self.variables.update(dockerfile.variables([step]))
        elif step.word == "WORKDIR":
            self.place = self.inside(step.text)
            self.place.mkdir(parents=True, exist_ok=True)
        elif step.word == "COPY":
            *sources, target = step.words
            for source in sources:
                found, to = ROOT / source, self.inside(target)
                if found.is_dir():
                    shutil.copytree(found, to, ignore=shutil.ignore_patterns("__pycache__"))
                else:
                    shutil.copy(found, to)
        elif step.word == "RUN":
            self.run(step.text)
        elif step.word == "ENTRYPOINT":
            self.entry = json.loads(step.text)

    def run(self, text: str) -> None:
        if any(word in text for word in ROOTS_OWN):
            self.left_out.append(text)
            return
        text = text.replace("/src", str(self.inside("/src")))
        done = subprocess.run(
            ["sh", "-ec", text], cwd=self.place, env=self.environment, capture_output=True,
            text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr

    def start(self, *words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [str(self.folder / "env" / "bin" / self.entry[0]), *self.entry[1:], *words],
            cwd=self.place, env=self.environment, capture_output=True, text=True, check=False,
        )  # fmt: skip


@pytest.fixture(scope="module")
def box(tmp_path_factory: pytest.TempPathFactory) -> Box:
    made = Box(tmp_path_factory.mktemp("box"))
    for step in dockerfile.read(ROOT / "Dockerfile"):
        made.do(step)
    return made


def test_only_roots_own_steps_are_left_out(box: Box) -> None:
    assert len(box.left_out) == len(ROOTS_OWN)
    assert not list(box.inside("/src").iterdir()), "what was built from is gone"


@pytest.mark.parametrize(
    ("words", "makes"),
    [
        ("--help", None),
        ("plan --model demo --res 256 --plot plan.png", "plan.png"),
        ("--model demo --res 128 --precision fp32 --verify --out unet.onnx", "unet.onnx"),
        ("generate --model demo --res 128 --steps 1 --prompt cat --out cat.png", "cat.png"),
    ],
)
def test_it_builds(box: Box, words: str, makes: str | None) -> None:
    done: Any = box.start(*words.split())
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    assert makes is None or (box.place / makes).is_file()
