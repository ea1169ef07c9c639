"""What the matrix found: the system's complaints in the middle of work end in our words."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from todo_compile.build.bundles import check_folder
from todo_compile.build.many.checking import check
from todo_compile.build.many.running import run
from todo_compile.bundle.alone import only_one
from todo_compile.bundle.files import staged
from todo_compile.disk import disk_errors
from todo_compile.errors import BundleError, ConfigError, EngineError
from todo_compile.export._child import run_worker


def test_a_stage_that_disappears(tmp_path: Path) -> None:
    target = tmp_path / "x.onnx"
    target.write_text("old")

    def build() -> None:
        with staged(target) as stage:
            stage.publish("x.onnx").write_text("new")
            (stage.folder / "x.onnx").unlink()

    with pytest.raises(BundleError, match="No such file") as raised:
        build()
    assert "run it again" in str(raised.value.remedy)
    assert [p.name for p in tmp_path.iterdir()] == ["x.onnx"]
    assert target.read_text() == "old"


def test_files_elsewhere_are_not_the_outputs(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), disk_errors(tmp_path / "out" / "x.onnx"):
        (tmp_path / "weights").read_bytes()


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(BundleError, match="Not a directory"), only_one(tmp_path / "file" / "b"):
        pass


def test_parts_alone_are_a_bundle_that_was_begun(tmp_path: Path) -> None:
    (tmp_path / ".parts").mkdir()
    check_folder(tmp_path)
    (tmp_path / "notes").touch()
    with pytest.raises(BundleError, match="holds other files"):
        check_folder(tmp_path)


def test_the_builder_does_not_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    with pytest.raises(EngineError, match="does not start"):
        run_worker({})


def test_a_build_of_many_does_not_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "builds.yaml"
    path.write_text("builds:\n  - {model: demo, res: 128, out: a.onnx}\n", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    plan = check(path)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    with pytest.raises(ConfigError, match=r"The process of a\.onnx does not start"):
        run(plan, tmp_path / "logs")
    assert not (tmp_path / "a.onnx").exists()
