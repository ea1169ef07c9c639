"""``--module``: a factory of the user's own on the command line and in a file of builds."""

from __future__ import annotations

import json
import runpy
import shutil
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from helpers import said

import todo_compile
from todo_compile.cli.app import main

_MODULES = Path(__file__).parents[1] / "build" / "given_modules.py"


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with ``nets.py`` and a package that imports from it."""
    monkeypatch.chdir(tmp_path)
    shutil.copy(_MODULES, tmp_path / "nets.py")
    package = tmp_path / "mine"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "wrapped.py").write_text("from nets import named\nclass Makers:\n    make = named\n")
    (package / "broken.py").write_text("import no_such_thing_anywhere\n")
    return tmp_path


def test_compile_keep_and_load(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--module", "nets.py:small", "--out", "x.onnx", "--factors", "2"]
    assert main([*arguments, "--json"]) == 0
    first = json.loads(capsys.readouterr().out)
    assert first["manifest"]["model"]["name"] == "nets.py:small"
    assert main([*arguments, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["reused"] is True
    # Another factory of the same module: other names come in by keyword, the graph is the same.
    assert main(["--module", "mine.wrapped:Makers.make", *arguments[2:]]) == 0
    assert "is up to date" in said(capsys)
    source = (here / "nets.py").read_text()
    (here / "nets.py").write_text(source.replace("sample * 2", "sample * 3"))
    assert main(arguments) == 0
    assert "is up to date" in said(capsys)  # a branch that the graph has not
    (here / "nets.py").write_text(source.replace("+ text", "- text"))
    assert main(arguments) == 0
    assert "Rebuilding: graph: sha256:" in said(capsys)
    x, text = torch.ones(2, 4, 8, 8), torch.ones(2, 1, 4)
    assert todo_compile.load(here / "x.onnx")(x, {"text": text}).sample.shape == (2, 64, 4)
    assert main(["inspect", "x.onnx"]) == 0
    assert "nets.py:small (Small), batch 2, fp32" in capsys.readouterr().out


def test_plan(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "--module", "nets.py:small", "--factors", "2"]) == 0
    assert "1 attention site rewritten" in capsys.readouterr().out
    assert not (here / "plan.onnx").exists()


def test_in_a_file_of_builds(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Checked without executing it, built by itself in a child process."""
    (here / "builds.yaml").write_text(
        "builds:\n  - {module: 'nets.py:small', out: '{module}.onnx', factors: 2}\n"
    )
    # The file may come from a stranger: what it would execute is named, and nothing is built.
    assert main(["build", "builds.yaml"]) == 2
    text = said(capsys)
    assert "asks to execute Python code: nets.py:small" in text
    assert "--allow-code" in text
    assert not (here / "nets.py-small.onnx").exists()
    assert main(["build", "builds.yaml", "--json", "--allow-code"]) == 0
    assert json.loads(capsys.readouterr().out)["builds"][0]["status"] == "built"
    assert (here / "nets.py-small.onnx").exists()
    (here / "builds.yaml").write_text(
        "builds:\n  - {module: 'absent.py:small', out: y.onnx}\n"
        "  - {module: 'nets.py:small', model: sd15, res: 64, out: z.onnx}\n"
    )
    assert main(["build", "builds.yaml"]) == 2
    text = said(capsys)
    assert "line 2: build 1: The file absent.py does not exist." in text
    assert "line 3: build 2: model and module both say what to build." in text


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--module", "absent.py:f"], "The file absent.py does not exist."),
        (["--module", "nets.py"], "names no factory. Write FILE.py:FACTORY"),
        (["--module", "nets.py:"], "names no factory"),
        (["--module", "nets.py:absent"], "nets.py has no absent."),
        (["--module", "nets.py:number"], "nets.py:number cannot be called."),
        (["--module", "nets.py:fails"], "RuntimeError: no such weights (nets.py, line"),
        (["--module", "nets.py:leaves"], "nets.py:leaves failed: SystemExit: 3"),
        (["--module", "nets.py:alone"], "nets.py:alone returned 1 value."),
        (["--module", "nets.py:four"], "nets.py:four returned 4 values."),
        (["--module", "nets.py:no_module"], "returned something else: 'x' is not a torch module."),
        (["--module", "nets.py:no_tuple"], "returned something else: args is a Tensor."),
        (["--module", "mine.absent:f"], "ModuleNotFoundError: No module named 'mine.absent'"),
        (["--module", "mine.broken:f"], "No module named 'no_such_thing_anywhere' (broken.py, li"),
        (["--module", "no/such/place:f"], "is neither a .py file nor a module"),
        (["--module", "nets.py:small", "-m", "sd15"], "both say what to build"),
        (["--module", "nets.py:small", "-r", "64"], "--res is for models by name"),
        (["--module", "nets.py:small", "--weights", "random"], "--weights is for models by name"),
        (["--module", "nets.py:small", "--lora", "x"], "--lora is for models by name"),
        (["-m", "sd15", "-r", "64", "--dynamic-batch", "1..2"], "is for modules of your own"),
        (["-r", "64"], "Nothing says what to build."),
        (["-m", "sd15"], "res is missing."),
    ],
)  # fmt: skip
def test_refused(
    here: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], says: str
) -> None:
    before = sorted(p.name for p in here.iterdir() if p.name != "__pycache__")
    assert main([*arguments, "--out", "x.onnx"]) == 2
    assert says in said(capsys)
    assert sorted(p.name for p in here.iterdir() if p.name != "__pycache__") == before


def test_help_says_that_code_is_executed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compile", "--help"]) == 0
    assert "Its code is executed" in " ".join(capsys.readouterr().out.replace("│", " ").split())


def test_drift_on_the_example_inputs(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Against the module run eagerly with every other row and column of its 8×8 keys."""
    words = ["drift", "--module", "nets.py:small", "--factors", "2"]
    assert main([*words, "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    nets = runpy.run_path(str(here / "nets.py"))
    x, text = nets["inputs"]()
    module = nets["Small"]().eval()
    with torch.no_grad():
        dense = module(x, {"text": text})
        q, k = dense.more["pair"]
        (v, (attended, _)) = dense.more["list"]
        k, v = (t.unflatten(2, (8, 8))[:, :, ::2, ::2].flatten(2, 3) for t in (k, v))
        pooled = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        sample = module.out(pooled) + text
    local = float((pooled - attended).norm() / attended.norm())
    total = float((sample - dense.sample).norm() / dense.sample.norm())
    assert local > 1e-3
    (site,) = said["sites"]
    assert site["local"] == [pytest.approx(local, rel=1e-4)]
    assert said["total"] == site["output"] == [pytest.approx(total, rel=1e-4)]
    assert (said["model"], said["conditions"]) == ("nets.py:small", "given")
    assert (said["res"], said["batch"], said["timesteps"], said["precision"]) == (
        None, None, [0.0], "fp32",
    )  # fmt: skip
    assert main(words) == 0
    shown = capsys.readouterr().out
    assert f"{total:.2e}" in shown
    assert "on the example inputs" in shown
    assert "t=" not in shown
    assert main(words[:3]) == 0  # nothing says how far: it says so
    assert "No site is rewritten under this plan: nothing drifts." in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "Nothing says what to measure"),
        (["--module", "nets.py:small", "--model", "demo"], "both say what to measure"),
        (["--module", "nets.py:small", "--res", "64"], "--res is for models by name"),
        (["--module", "nets.py:small", "--steps", "0"], "--steps is for models by name"),
        (["--module", "nets.py:small", "--plot", "x.png"], "--plot is for models by name"),
        (["--module", "nets.py:fails"], "no such weights"),
        (["--model", "demo"], "res is missing"),
    ],
)
@pytest.mark.usefixtures("here")
def test_drift_refuses(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["drift", *words]) == 2
    assert message in said(capsys)
