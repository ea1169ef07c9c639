"""Places that cannot be written are refused early; two builds of one file publish in turn."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest

from todo_compile.bundle import files
from todo_compile.bundle._locks import alone
from todo_compile.bundle.files import check_new_folder, check_target, staged
from todo_compile.errors import BundleError, ConfigError

PROC = Path("/proc")
no_proc = pytest.mark.skipif(not PROC.is_dir(), reason="there is no /proc here")


@no_proc
def test_a_place_that_takes_no_files() -> None:
    """Its permissions say yes to root."""
    with pytest.raises(BundleError, match="Cannot write in /proc"):
        check_target(PROC / "x.onnx")
    with pytest.raises(ConfigError, match=r"/proc/x/y cannot be made") as caught:
        check_new_folder(PROC / "x" / "y", "--dump")
    assert "--dump" in str(caught.value.remedy)


def test_new_folders(tmp_path: Path) -> None:
    check_target(tmp_path / "x.onnx")
    check_new_folder(tmp_path / "a" / "b", "--dump")
    assert not list(tmp_path.iterdir())  # it only looks
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot be made"):
        check_new_folder(tmp_path / "file" / "a", "--dump")


def test_two_builds_publish_in_turn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While one has moved its model and not yet its manifest, the other waits."""
    target = tmp_path / "x.onnx"
    between, go_on = threading.Event(), threading.Event()
    replace = files.os.replace

    def slow(source: Path, goal: Path) -> None:
        replace(source, goal)
        first = threading.current_thread().name == "first"
        if first and goal.name == "x.onnx":
            between.set()
            go_on.wait(20)

    monkeypatch.setattr(files.os, "replace", slow)

    def build(text: str) -> None:
        with staged(target) as stage:
            for name in ("x.onnx", "x.onnx.json"):
                stage.publish(name).write_text(text)

    first = threading.Thread(target=build, args=("first",), name="first")
    second = threading.Thread(target=build, args=("second",), name="second")
    first.start()
    assert between.wait(20)
    second.start()
    time.sleep(0.3)
    assert target.read_text() == "first"  # the second waits
    go_on.set()
    first.join(20)
    second.join(20)
    assert target.read_text() == (tmp_path / "x.onnx.json").read_text() == "second"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["x.onnx", "x.onnx.json"]


def test_a_file_system_without_locks(tmp_path: Path) -> None:
    entered = False
    with alone(tmp_path / "none" / "x"):  # cannot be opened
        entered = True
    assert entered
