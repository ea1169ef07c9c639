"""The built wheel with each extra: commands work, or name the one extra that they lack.

torch is installed once, with the wheel alone; the environment of an extra has what that brings and
sees the first one's packages besides. Packages come from pip's index.
"""

from __future__ import annotations

import email
import os
import re
import subprocess
import sys
import tomllib
import zipfile
from dataclasses import dataclass
from pathlib import Path

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]
ROOT = Path(__file__).parents[2]
MISSING = 9
# An environment is seen as it is: nothing of ours reaches it by PYTHONPATH.
OUTSIDE = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}

BUILDS = "builds:\n  - {model: demo, res: 128, precision: fp32, out: y.onnx}\n"
SMALL = ["--model", "demo", "--res", "128"]
# Command → the extras that it needs, all of them; the first that is absent is named.
NEEDS: dict[str, tuple[list[str], set[str]]] = {
    "models": (["models", "--json"], set()),
    "help": (["tune", "--help"], set()),
    "plan": (["plan", *SMALL, "--json"], {"models"}),
    "plot": (["plan", *SMALL, "--plot", "plan.png"], {"models", "plot"}),
    "drift": (["drift", *SMALL, "--steps", "1", "--seeds", "1", "--local"], {"models"}),
    "onnx": ([*SMALL, "--precision", "fp32", "--out", "x.onnx"], {"models", "onnx"}),
    "engine": ([*SMALL, "--out", "x.plan"], {"models", "onnx", "rtx"}),
    "build": (["build", "builds.yaml", "--dry-run"], {"models", "onnx"}),
    "generate": (
        ["generate", *SMALL, "--steps", "1", "-p", "a", "--out", "x.png"],
        {"models", "generate"},
    ),
    "tune": (
        ["tune", *SMALL, "--budget", "drift=0.5", "--out", "p.json"],
        {"models", "generate", "tune"},
    ),
}
SLOW = {"tune"}  # tried only where it is refused
# What an extra brings of the others. (onnxruntime comes by [onnx] and [onnx-gpu] alone.)
BRINGS = {
    "generate": {"models", "generate"},
    "all": {"models", "rtx", "plot", "tune", "generate"},
}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)],
        cwd=ROOT,
        check=True,
        capture_output=True,
    )
    (found,) = folder.glob("*.whl")
    return found


def test_the_wheel_holds_no_sample_sheet(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    assert [n for n in names if n.endswith((".png", ".jpg"))] == []
    assert any(n.endswith("demo/unet/diffusion_pytorch_model.safetensors") for n in names)


def test_what_the_wheel_says_of_its_extras(wheel: Path) -> None:
    """onnx-gpu is read here alone: its runtime is for machines with a GPU."""
    with zipfile.ZipFile(wheel) as file:
        (name,) = [n for n in file.namelist() if n.endswith(".dist-info/METADATA")]
        said = email.message_from_bytes(file.read(name))
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert set(said.get_all("Provides-Extra", [])) == set(declared["optional-dependencies"])
    found: dict[str, set[str]] = {}
    for line in said.get_all("Requires-Dist", []):
        requirement, _, marker = line.partition(";")
        for extra in re.findall(r"extra == ['\"]([\w-]+)", marker):
            found.setdefault(extra, set()).add(re.split(r"[\[<>=~ ]", requirement.strip())[0])
    assert found["onnx-gpu"] == found["onnx"] - {"onnxruntime"} | {"onnxruntime-gpu"}
    assert not {"onnxruntime", "onnxruntime-gpu"} & found["all"]


@dataclass(frozen=True)
class Environment:
    """An environment with the wheel and some extras."""

    folder: Path
    extras: set[str]

    @property
    def packages(self) -> Path:
        (found,) = self.folder.glob("lib/python*/site-packages")
        return found

    def install(self, wanted: str) -> None:
        pip = [str(self.folder / "bin" / "python"), "-m", "pip", "install", "-q"]
        done = subprocess.run(
            [*pip, "--disable-pip-version-check", "-c", str(ROOT / "constraints.txt"), wanted],
            capture_output=True,
            text=True,
            check=False,
            env=OUTSIDE,
        )
        assert done.returncode == 0, done.stderr

    def run(self, place: Path, *words: str) -> subprocess.CompletedProcess[str]:
        """The command line, from this environment's own Python."""
        code = "from todo_compile.cli.app import run; run()"
        (place / "builds.yaml").write_text(BUILDS, encoding="utf-8")
        return subprocess.run(
            [str(self.folder / "bin" / "python"), "-c", code, *words],
            cwd=place,
            capture_output=True,
            text=True,
            check=False,
            env=OUTSIDE,
        )


@pytest.fixture(scope="module")
def base(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Environment:
    """The wheel alone, by the script that it brings."""
    made = Environment(tmp_path_factory.mktemp("base"), set())
    subprocess.run([sys.executable, "-m", "venv", str(made.folder)], check=True)
    made.install(str(wheel))
    script = subprocess.run(
        [str(made.folder / "bin" / "todo-compile"), "--version"],
        capture_output=True, text=True, check=True, env=OUTSIDE,
    )  # fmt: skip
    assert script.stdout.strip() in wheel.name
    return made


@pytest.fixture(
    scope="module",
    params=["", "models", "onnx", "rtx", "plot", "models,plot", "models,onnx", "generate", "all",
            "all,onnx"],
)  # fmt: skip
def installed(
    request: pytest.FixtureRequest,
    base: Environment,
    wheel: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Environment:
    if not request.param:
        return base
    named = set(request.param.split(","))
    extras = set[str]().union(*(BRINGS.get(one, {one}) for one in named))
    made = Environment(tmp_path_factory.mktemp("env"), extras)
    subprocess.run([sys.executable, "-m", "venv", str(made.folder)], check=True)
    (made.packages / "base.pth").write_text(f"{base.packages}\n", encoding="utf-8")
    made.install(f"{wheel}[{request.param}]")
    return made


@pytest.mark.parametrize("command", NEEDS)
def test_works_or_names_one_extra(installed: Environment, command: str, tmp_path: Path) -> None:
    words, needs = NEEDS[command]
    if needs <= installed.extras and command in SLOW:
        pytest.skip("takes minutes where it works; tests/tune runs it")
    found = installed.run(tmp_path, *words)
    assert "Traceback" not in found.stderr
    if needs <= installed.extras:
        assert found.returncode == 0, found.stderr
        return
    assert found.returncode == MISSING, found.stderr
    assert found.stdout == ""
    lacks = needs - installed.extras
    named = [extra for extra in lacks if f'"todo-compile[{extra}]"' in found.stderr]
    assert len(named) == 1, found.stderr
    assert len(found.stderr.strip().splitlines()) <= 3, found.stderr
    assert [p.name for p in tmp_path.iterdir()] == ["builds.yaml"], "nothing was begun"
