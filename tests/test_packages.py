"""Every command says which extra it lacks before it does anything, with one exit code."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

from todo_compile import packages
from todo_compile.cli.app import main
from todo_compile.errors import MissingPackageError

ROOT = Path(__file__).parents[1]
# Distributions whose module has another name.
MODULES = {
    "pillow": "PIL",
    "tensorrt-rtx-cu13": "tensorrt_rtx",
    "huggingface_hub": "huggingface_hub",
}


@pytest.fixture
def without(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Hide modules, as if they were not installed."""

    def hide(*names: str) -> None:
        real = importlib.util.find_spec

        def find(name: str, package: str | None = None) -> object:
            return None if name in names else real(name, package)

        monkeypatch.setattr(importlib.util, "find_spec", find)

    return hide


def test_extras_are_those_of_the_package() -> None:
    """Each distribution in pyproject.toml is a module here, under the same extra."""
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    declared = tomllib.loads(text)["project"]["optional-dependencies"]
    for extra, modules in packages.EXTRAS.items():
        wanted: set[str] = set()
        for requirement in declared[extra]:
            name = re.split(r"[\[><=~ ]", requirement)[0]
            if name != "todo-compile":
                wanted.add(MODULES.get(name, name))
        # onnxscript brings onnx_ir, which we import by name.
        assert set(modules) - {"onnx_ir"} == wanted, extra


def test_onnxruntime_comes_by_its_two_extras_alone() -> None:
    """One for the CPU and one for GPUs: what is installed last overwrites the other."""
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    declared = tomllib.loads(text)["project"]["optional-dependencies"]

    def brought(extra: str) -> set[str]:
        found: set[str] = set()
        for requirement in declared[extra]:
            name, _, more = requirement.partition("[")
            if name == "todo-compile":
                found |= {one for e in more.rstrip("]").split(",") for one in brought(e)}
            else:
                found.add(re.split(r"[><=~ ]", name)[0])
        return found

    runtimes = {e: {n for n in brought(e) if n.startswith("onnxruntime")} for e in declared}
    assert {e: found for e, found in runtimes.items() if found} == {
        "onnx": {"onnxruntime"},
        "onnx-gpu": {"onnxruntime-gpu"},
        "dev": {"onnxruntime"},
    }
    assert brought("onnx") - {"onnxruntime"} == brought("onnx-gpu") - {"onnxruntime-gpu"}
    assert brought("onnx") - {"onnxruntime"} < brought("all")


@pytest.mark.parametrize("module", [m for modules in packages.EXTRAS.values() for m in modules])
def test_the_remedy_names_the_extra(without: Any, module: str) -> None:
    without(module)
    with pytest.raises(MissingPackageError, match=f"^A test needs {module}, which is") as caught:
        packages.need(module, "A test")
    assert f"todo-compile[{packages.extra_of(module)}]" in str(caught.value.remedy)


COMMANDS = [
    (["plan", "--model", "sd15", "--res", "1024"], "numpy", "models"),
    (["plan", "--model", "demo", "--res", "256"], "diffusers", "models"),
    (["drift", "--model", "demo", "--res", "256"], "numpy", "models"),
    (["compile", "--model", "sd15", "--res", "512", "--out", "x.onnx"], "safetensors", "models"),
    (["compile", "--model", "sd15", "--res", "512", "--out", "x.onnx"], "onnxscript", "onnx"),
    (["compile", "--model", "sd15", "--res", "512", "--out", "x/", "--format", "onnx"],
     "transformers", "generate"),
    (["generate", "--model", "demo", "--res", "128", "--out", "x.png", "-p", "a"], "PIL",
     "generate"),
    (["generate", "--model", "demo", "--res", "128", "--out", "x.png", "-p", "a"], "diffusers",
     "generate"),
]  # fmt: skip


@pytest.mark.parametrize(("command", "module", "extra"), COMMANDS)
def test_commands_ask_first(
    without: Any,
    command: list[str],
    module: str,
    extra: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Before any work: nothing is said but this, nothing is written."""
    monkeypatch.chdir(tmp_path)
    without(module)
    monkeypatch.setattr("todo_compile.capture.trace.capture", None)
    assert main(command) == MissingPackageError.exit_code
    out, err = capsys.readouterr()
    assert out == ""
    assert module in err
    assert f'pip install "todo-compile[{extra}]"' in err
    assert not list(tmp_path.iterdir())


def test_a_broken_package(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "matplotlib.py").write_text("raise ImportError('no backend')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(__import__("sys").modules, "matplotlib", raising=False)
    with pytest.raises(MissingPackageError, match="cannot be imported: no backend") as caught:
        packages.load("matplotlib", "A test")
    assert "Install it anew" in str(caught.value.remedy)


@pytest.mark.parametrize("command", [c for c, _, _ in COMMANDS if c[0] != "drift"][::2])
def test_a_bare_installation(command: list[str], tmp_path: Path) -> None:
    """Where the modules really cannot be imported: no traceback, nothing said but this."""
    hidden = [m for modules in packages.EXTRAS.values() for m in modules]
    code = (
        "import sys\n"
        f"sys.modules.update(dict.fromkeys({hidden!r}))\n"
        "from todo_compile.cli.app import main\n"
        f"sys.exit(main({command!r}))"
    )
    found = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert found.returncode == MissingPackageError.exit_code, found.stderr
    assert found.stderr.startswith("error: ")
    assert "pip install" in found.stderr
    assert found.stdout == ""
    assert not list(tmp_path.iterdir())
