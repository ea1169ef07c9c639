"""What the fidelity benchmark's files say of how they were made."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import fidelity
import pytest
import test_bench_fidelity as helpers
import torch
from fidelity_parts.origin import named, origin, portable
from fidelity_parts.settings import QUICK, RUNS, Setting
from PIL import Image

from todo_compile.models.registry import DEMO


def test_paths_are_the_repositorys_or_names(tmp_path: Path) -> None:
    root = tmp_path / "repo"
    assert named(root / "build" / "x", root) == "build/x"
    assert named(tmp_path / "home" / "model", root) == "model"
    assert portable(f"--real={tmp_path}/pictures", root) == "--real=pictures"
    assert portable(str(root / "prompts.txt"), root) == "prompts.txt"
    for plain in ("--steps", "8", "nearest 4,2;blend:0.5 2", "--only=nearest 2"):
        assert portable(plain, root) == plain


def test_real_pictures_are_counted(tmp_path: Path) -> None:
    (tmp_path / "p.txt").touch()
    facts = origin(["--pairs", "4"], tmp_path, tmp_path / "p.txt", tmp_path / "real", {128: 24})
    assert facts == {
        "arguments": ["--pairs", "4"],
        "prompts_file": "p.txt",
        "real": {"folder": "real", "pictures": {"128": 24}},
    }
    facts = origin([], tmp_path, tmp_path / "none.txt", None, {})
    assert facts["prompts_file"] is facts["real"] is None


def test_published_runs_can_be_made_again() -> None:
    """Steps are the published ones unless told otherwise, and the prompts are in the package."""
    for name in ("baseline", "factors-2x"):
        path = fidelity.RESULTS / f"fidelity-{name}.json"
        published = json.loads(path.read_text(encoding="utf-8"))
        assert RUNS[name].steps == QUICK.steps == published["steps"]
        file = DEMO / ("prompts.txt" if RUNS[name].scales == (1,) else "prompts-patterns.txt")
        assert set(published["prompts"]) <= set(file.read_text(encoding="utf-8").splitlines())


def test_a_run_says_how_it_was_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Named(helpers.Tiny):
        def __init__(self, folder: Path, *, device: str) -> None:
            del device
            super().__init__()
            self.folder = folder

    for number in range(2):
        (tmp_path / "real").mkdir(exist_ok=True)
        Image.new("RGB", (12, 12)).save(tmp_path / "real" / f"{number}.png")
    (tmp_path / "words.txt").write_text("a\nbb\n", encoding="utf-8")
    monkeypatch.setattr(fidelity, "Model", Named)
    monkeypatch.setattr(fidelity, "load_features", lambda: (None, "left out"))
    monkeypatch.setattr(fidelity, "RESULTS", tmp_path)
    monkeypatch.setattr(fidelity, "save", lambda name, data: _write(tmp_path / name, data))
    control = Setting("control", sampling="no attention")
    monkeypatch.setattr(fidelity, "QUICK", fidelity.QUICK.__class__((1,), (control,), steps=2))
    paths = {"--model": tmp_path, "--prompts": tmp_path / "words.txt", "--real": tmp_path / "real"}
    given = [text for option, path in paths.items() for text in (option, str(path))]
    command = ["fidelity.py", "--quick", "--pairs", "4", "--cache", str(tmp_path / "c"), *given]
    monkeypatch.setattr(sys, "argv", command)
    torch.manual_seed(0)
    fidelity.main()
    facts = json.loads((tmp_path / "fidelity-quick").read_text(encoding="utf-8"))
    assert facts["prompts_file"] == "words.txt"
    assert facts["real"] == {"folder": "real", "pictures": {"12": 2}}
    assert facts["arguments"][:3] == ["--quick", "--pairs", "4"]
    assert str(tmp_path) not in json.dumps(facts)


def _write(path: Path, data: dict[str, object]) -> Path:
    path.write_text(json.dumps(data), encoding="utf-8")
    return path
