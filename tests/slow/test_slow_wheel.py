"""The built wheel with each extra: commands work, or name the one extra that they lack.

Each environment installs torch anew (about half a minute); packages come from pip's index.
"""

from __future__ import annotations

import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]
MISSING = 9

PLAN = ["plan", "--model", "demo", "--res", "256", "--json"]
PLOT = [*PLAN, "--plot", "plan.png"]
ONNX = ["--model", "demo", "--res", "128", "--precision", "fp32", "--out", "x.onnx"]
ENGINE = ["--model", "demo", "--res", "128", "--out", "x.plan"]
DRAW = ["generate", "--model", "demo", "--res", "128", "--steps", "1", "-p", "a", "--out", "x.png"]
ALWAYS = ["models", "--json"]


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


Command = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="module", params=["", "models", "plot", "onnx", "models,onnx", "generate"])
def installed(
    request: pytest.FixtureRequest, wheel: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, Command]:
    """Extras, and how to run the command line of an environment that has only them."""
    folder = tmp_path_factory.mktemp("env")
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    wanted = f"{wheel}[{request.param}]" if request.param else str(wheel)
    subprocess.run(
        [folder / "bin" / "pip", "install", "-q", "-c", ROOT / "constraints.txt", wanted],
        check=True,
        capture_output=True,
    )

    def run(*words: str) -> subprocess.CompletedProcess[str]:
        command = [str(folder / "bin" / "todo-compile"), *words]
        return subprocess.run(
            command,
            cwd=tmp_path_factory.mktemp("work"),
            capture_output=True,
            text=True,
            check=False,
        )

    return request.param, run


# Command → the extras that it needs, all of them; the first that is absent is named.
NEEDS = [
    (ALWAYS, set()),
    (["--help"], set()),
    (PLAN, {"models"}),
    (PLOT, {"models", "plot"}),
    (ONNX, {"models", "onnx"}),
    (ENGINE, {"models", "onnx", "rtx"}),
    (DRAW, {"models", "generate"}),
]


@pytest.mark.parametrize(("words", "needs"), NEEDS, ids=[" ".join(w[:2]) for w, _ in NEEDS])
def test_works_or_names_one_extra(
    installed: tuple[str, Command], words: list[str], needs: set[str]
) -> None:
    given, run = installed
    have = set(given.split(",")) | ({"models"} if given == "generate" else set())
    found = run(*words)
    assert "Traceback" not in found.stderr
    if needs <= have:
        assert found.returncode == 0, found.stderr
        return
    assert found.returncode == MISSING, found.stderr
    assert found.stdout == ""
    named = [extra for extra in needs - have if f'"todo-compile[{extra}]"' in found.stderr]
    assert len(named) == 1, found.stderr
    assert len(found.stderr.strip().splitlines()) <= 3, found.stderr
