"""kill -9 at any moment of a publication: the old output or the new one, whole, for who looks."""

from __future__ import annotations

import os
import pathlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from todo_compile.bundle import moves
from todo_compile.bundle.bundle import PARTS, is_bundle, read_bundle
from todo_compile.bundle.files import finish_moves, staged, sweep
from todo_compile.bundle.manifest import read
from todo_compile.errors import BundleError, ConfigError

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="needs fork")

NAMES = ["m.onnx.data", "m.onnx", "m.onnx.json"]
KILLED = 9


def killed_at(moment: int, work: Callable[[], object]) -> bool:
    """Run `work` in a process that ends, without a word, before its n-th change of a folder.

    Returns:
        Whether it came to that; else all is done.
    """
    child = os.fork()
    if child == 0:
        left = moment

        def counted(real: Callable[..., Any]) -> Callable[..., Any]:
            def call(*args: Any, **kwargs: Any) -> Any:
                nonlocal left
                if left == 0:
                    os._exit(KILLED)
                left -= 1
                return real(*args, **kwargs)

            return call

        status = 1
        try:
            os.replace = counted(os.replace)
            pathlib.Path.unlink = counted(pathlib.Path.unlink)  # type: ignore[method-assign]
            work()
            status = 0
        finally:
            os._exit(status)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert status in (0, KILLED)
    return status == KILLED


def make(target: Path, text: str, names: list[str]) -> None:
    with staged(target) as stage:
        for name in names:
            stage.publish(name).write_text(text)
        for name in set(NAMES) - set(names):
            stage.retire(name)


def texts(folder: Path) -> dict[str, str]:
    return {p.name: p.read_text() for p in folder.iterdir() if p.is_file() and p.name[0] != "."}


@pytest.mark.parametrize("names", [NAMES, ["m.onnx", "m.onnx.json"]], ids=["same", "fewer"])
@pytest.mark.parametrize("then", [finish_moves, sweep], ids=["read", "build"])
def test_one_output(tmp_path: Path, names: list[str], then: Callable[[Path], object]) -> None:
    """Also when the new output lacks a file that the old one has."""
    old, new = dict.fromkeys(NAMES, "old"), dict.fromkeys(names, "new")
    seen: list[str] = []
    for moment in range(20):
        target = tmp_path / str(moment) / "m.onnx"
        target.parent.mkdir()
        make(target, "old", NAMES)
        if not killed_at(moment, lambda target=target: make(target, "new", names)):
            assert texts(target.parent) == new
            break
        left = texts(target.parent)
        # A manifest vouches for its own files alone, before anybody has looked.
        if "m.onnx.json" in left:
            assert {left[name] for name in ("m.onnx", "m.onnx.json")} in ({"old"}, {"new"})
        then(target)
        assert texts(target.parent) in (old, new)
        seen.append(texts(target.parent)["m.onnx"])
        sweep(target)
        assert [p.name for p in target.parent.iterdir() if p.name[0] == "."] == []
    else:
        raise AssertionError("it never ended")
    # Until the note is there the old output stands, then the new one.
    assert seen == sorted(seen, reverse=True)
    assert set(seen) == {"old", "new"}
    assert len(seen) > len(names)


def test_a_folder_of_files(tmp_path: Path) -> None:
    """A bundle's: files in folders, one that is removed, one that stays where it is."""
    kept, first = {"kept": "both"}, {"a": "old", "sub/b": "old", "gone": "old", "last": "old"}
    new = {"a": "new", "sub/b": "new", "other/c": "new", "last": "new"}

    def content(home: Path) -> dict[str, str]:
        files = (p for p in home.rglob("*") if p.is_file() and PARTS not in p.parts)
        return {p.relative_to(home).as_posix(): p.read_text() for p in files}

    def publish(parts: Path) -> None:
        moves.publish(parts, remove=["last", "gone"], move=list(new))

    seen: list[dict[str, str]] = []
    for moment in range(20):
        parts = tmp_path / str(moment) / PARTS
        for folder, files in ((parts.parent, kept | first), (parts, new)):
            for name, text in files.items():
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                (folder / name).write_text(text)
        stopped = killed_at(moment, lambda parts=parts: publish(parts))
        for again in range(20):  # killed again, a little later each time, while it is finished
            if moves.is_unfinished(parts):
                killed_at(again, lambda parts=parts: moves.finish(parts))
        assert not moves.is_unfinished(parts)
        seen.append(content(parts.parent))
        if not stopped:
            break
    assert seen[-1] == kept | new
    assert all(found in (kept | first, kept | new) for found in seen)
    assert seen[0] == kept | first
    assert len(seen) > len(new)


def test_a_failure_between_the_moves_is_finished_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on Windows, when somebody reads the old file."""
    target = tmp_path / "m.onnx"
    make(target, "old", NAMES)
    replace = os.replace

    def busy(source: Path, goal: Path) -> None:
        if Path(goal) == target:
            raise PermissionError(13, "used by another process", str(goal))
        replace(source, goal)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", busy)
        with pytest.raises(BundleError, match="Cannot write"):
            make(target, "new", NAMES)
        with pytest.raises(BundleError, match="Cannot write"):
            finish_moves(target)
    finish_moves(target)
    assert texts(tmp_path) == dict.fromkeys(NAMES, "new")
    assert len(list(tmp_path.iterdir())) == len(NAMES)


@pytest.mark.parametrize("name", ["n" * 5000, "n" * 300, "a\0b"])
def test_names_that_cannot_be(name: str) -> None:
    """There is nothing to finish, and the error is ours."""
    for path in (Path(name) / "x.onnx", Path(f"{name}.onnx")):
        with pytest.raises(BundleError, match="does not exist"):
            read(path)
        assert not is_bundle(path)
        with pytest.raises(ConfigError, match=r"too long|not a path"):
            read_bundle(path)


@pytest.mark.parametrize(
    ("note", "says"),
    [
        ('{"remove": ["../out"], "move": []}', "not a plain file name"),
        ('{"remove": [], "move": ["/etc/passwd"]}', "not a plain file name"),
        ('{"remove": [], "move": ["link/x"]}', "is a link"),
        ('{"remove": ["link/x"], "move": []}', "is a link"),
        ('{"remove": []}', "damaged"),
        ("{", "damaged"),
        ('{"remove": [], "move": [], "more": 1}', "damaged"),
    ],
)
def test_a_stranger_s_note(tmp_path: Path, note: str, says: str) -> None:
    """It reaches nothing outside of its folder."""
    out = tmp_path / "out"
    out.mkdir()
    (out / "x").write_text("mine")
    home = tmp_path / "home"
    parts = home / PARTS
    parts.mkdir(parents=True)
    for place in (parts, home):
        (place / "link").symlink_to(out)
    (parts / moves.NOTE).write_text(note)
    with pytest.raises(BundleError, match=says):
        moves.finish(parts)
    assert (out / "x").read_text() == "mine"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["home", "out"]
