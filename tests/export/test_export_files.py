"""Outputs are there whole or not at all, whatever happens to the one who makes them."""

from __future__ import annotations

import errno
import os
import signal
import sys
import time
from pathlib import Path

import pytest
from export_helpers import litter, start_python

from todo_compile.bundle import files
from todo_compile.bundle.files import check_target, staged, sweep
from todo_compile.disk import check_space, format_bytes
from todo_compile.errors import BundleError

_HOLD = """
import sys, time
from pathlib import Path
from todo_compile.bundle.files import staged
target = Path(sys.argv[1])
with staged(target) as stage:
    stage.publish(target.name).write_text(sys.argv[2])
    print("staged", flush=True)
    sys.stdin.readline()
print("done", flush=True)
"""


def write(target: Path, text: str, *companions: str) -> None:
    with staged(target) as stage:
        stage.publish(target.name).write_text(text)
        for name in companions:
            stage.publish(name).write_text(text)


def test_publishes_everything_and_leaves_no_litter(tmp_path: Path):
    write(tmp_path / "a.plan", "new", "a.plan.json")
    assert (tmp_path / "a.plan").read_text() == "new"
    assert (tmp_path / "a.plan.json").read_text() == "new"
    assert litter(tmp_path) == []


def test_scratch_files_are_not_published(tmp_path: Path):
    with staged(tmp_path / "a.plan") as stage:
        stage.publish("a.plan").write_text("engine")
        stage.scratch("model.onnx").write_text("intermediate")
    assert [p.name for p in tmp_path.iterdir()] == ["a.plan"]


@pytest.mark.parametrize("failure", [ValueError, KeyboardInterrupt, SystemExit])
def test_failure_keeps_the_old_output(tmp_path: Path, failure: type[BaseException]):
    target = tmp_path / "a.plan"
    write(target, "old", "a.plan.json")

    def fail() -> None:
        with staged(target) as stage:
            stage.publish("a.plan").write_text("half")
            raise failure

    with pytest.raises(failure):
        fail()
    assert target.read_text() == "old"
    assert (tmp_path / "a.plan.json").read_text() == "old"
    assert litter(tmp_path) == []


def test_file_that_was_never_written_keeps_the_old_output(tmp_path: Path):
    target = tmp_path / "a.plan"
    write(target, "old")
    with pytest.raises(BundleError, match="No such file"), staged(target) as stage:
        stage.publish("a.plan")
    assert target.read_text() == "old"


def test_what_is_complete_early_is_flushed_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flushed: list[str] = []
    monkeypatch.setattr(files, "flush", lambda path: flushed.append(path.name))
    with files.staged(tmp_path / "a.plan") as stage:
        stage.publish("a.plan").write_text("engine")
        stage.scratch("model.onnx").write_text("not needed any more")
        stage.discard("model.onnx")
        assert not (stage.folder / "model.onnx").exists()
        stage.complete(["a.plan"])
        stage.publish("a.plan.json").write_text("manifest")
    assert sorted(flushed) == ["a.plan", "a.plan.json"]


def test_flush_that_fails_early_keeps_the_old_output(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "a.plan"
    target.write_text("old")

    def full(path: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr(files, "flush", full)

    def attempt() -> None:
        with files.staged(target) as stage:
            stage.publish("a.plan").write_text("new")
            stage.complete(["a.plan"])

    with pytest.raises(BundleError, match="Disk full"):
        attempt()
    assert target.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.plan"]


def test_retired_companion_goes_with_the_old_output(tmp_path: Path):
    target = tmp_path / "m.onnx"
    with staged(target) as stage:
        stage.publish("m.onnx.data").write_text("weights")
        stage.publish("m.onnx").write_text("old")
    with staged(target) as stage:
        stage.publish("m.onnx").write_text("new")
        stage.retire("m.onnx.data")
    assert [p.name for p in tmp_path.iterdir()] == ["m.onnx"]


@pytest.mark.parametrize("name", ["../a", "b/c", "", "..", ".lock"])
def test_names_stay_in_the_stage(tmp_path: Path, name: str):
    with staged(tmp_path / "a") as stage, pytest.raises(ValueError, match="plain file name"):
        stage.publish(name)


def test_killed_build_keeps_the_old_output_and_the_next_sweeps(tmp_path: Path):
    target = tmp_path / "a[1].plan"  # a name that glob would take for a pattern
    write(target, "old")
    child = start_python(_HOLD, target, "half", stdin=-1)
    assert child.stdout is not None
    assert child.stdout.readline() == "staged\n", child.communicate()
    child.kill()
    child.communicate()
    assert target.read_text() == "old"
    assert len(litter(tmp_path)) == 1
    write(target, "new")
    assert target.read_text() == "new"
    assert litter(tmp_path) == []


def test_two_processes_leave_each_other_alone(tmp_path: Path):
    target = tmp_path / "a.plan"
    first = start_python(_HOLD, target, "first", stdin=-1)
    assert first.stdout is not None
    assert first.stdout.readline() == "staged\n", first.communicate()
    write(target, "second")
    assert target.read_text() == "second"
    out, err = first.communicate("\n")
    assert out == "done\n", err
    assert target.read_text() == "first"
    assert litter(tmp_path) == []


def test_sweeps_only_its_own_target(tmp_path: Path):
    other = tmp_path / ".other.plan.tmp-1-aa"
    other.mkdir()
    (other / ".lock").touch()
    assert sweep(tmp_path / "a.plan") == []
    assert sweep(tmp_path / "other.plan") == [other]


def test_stage_without_a_lock_is_swept_when_it_is_old(tmp_path: Path):
    folder = tmp_path / ".a.plan.tmp-1-aa"
    folder.mkdir()
    assert sweep(tmp_path / "a.plan") == []
    past = time.time() - 3600
    os.utime(folder, (past, past))
    assert sweep(tmp_path / "a.plan") == [folder]


@pytest.mark.skipif(sys.platform == "win32", reason="no SIGINT to a single process")
def test_ctrl_c_cleans_up(tmp_path: Path):
    target = tmp_path / "a.plan"
    write(target, "old")
    child = start_python(_HOLD, target, "half", stdin=-1)
    assert child.stdout is not None
    assert child.stdout.readline() == "staged\n", child.communicate()
    child.send_signal(signal.SIGINT)
    _, err = child.communicate()
    assert "KeyboardInterrupt" in err
    assert target.read_text() == "old"
    assert litter(tmp_path) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_wait_for_the_moves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    """Between the first and the last there is neither the old output nor the new."""
    moves: list[str] = []
    real = os.replace

    def replace(source: Path, goal: Path) -> None:
        signal.raise_signal(number)
        moves.append(goal.name)
        real(source, goal)

    before = signal.signal(number, signal.default_int_handler)
    monkeypatch.setattr(files.os, "replace", replace)
    try:
        with pytest.raises(KeyboardInterrupt):
            write(tmp_path / "a.plan", "new", "a.plan.json")
        assert signal.getsignal(number) is signal.default_int_handler
    finally:
        signal.signal(number, before)
    assert moves == [".moves", "a.plan", "a.plan.json"]
    assert {p.name: p.read_text() for p in tmp_path.iterdir()} == dict.fromkeys(moves[1:], "new")


@pytest.mark.skipif(sys.platform == "win32", reason="no FIFOs")
def test_target_that_is_no_file(tmp_path: Path) -> None:
    """A device of that name would be replaced by the output."""
    os.mkfifo(tmp_path / "a.plan")
    (tmp_path / "b.plan").symlink_to("/dev/null")
    for name in ("a.plan", "b.plan"):
        with pytest.raises(BundleError, match="is no regular file"):
            check_target(tmp_path / name)


def test_absent_folder(tmp_path: Path):
    with pytest.raises(BundleError, match=r"does not exist.*\n.*mkdir"):
        check_target(tmp_path / "none" / "a.plan")


def test_folder_that_is_a_file(tmp_path: Path):
    (tmp_path / "file").touch()
    with pytest.raises(BundleError, match="not a folder"):
        check_target(tmp_path / "file" / "a.plan")


def test_target_that_is_a_folder(tmp_path: Path):
    with pytest.raises(BundleError, match="is a folder"):
        check_target(tmp_path)


@pytest.mark.parametrize("code", [errno.EROFS, errno.EACCES])
def test_read_only_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int):
    # Root may write anywhere, so the refusal is the file system's.
    def refuse(self: Path) -> None:
        raise OSError(code, os.strerror(code), str(self))

    monkeypatch.setattr(files.Path, "mkdir", refuse)
    with pytest.raises(BundleError, match="Cannot write"), staged(tmp_path / "a.plan"):
        pass


@pytest.mark.skipif(
    sys.platform == "win32" or os.geteuid() == 0, reason="permissions do not bind root"
)
def test_folder_without_permission(tmp_path: Path):
    tmp_path.chmod(0o500)
    with pytest.raises(BundleError, match="Cannot write"):
        check_target(tmp_path / "a.plan")


def test_permission_of_a_foreign_file_is_not_blamed_on_the_output(tmp_path: Path):
    with pytest.raises(PermissionError), staged(tmp_path / "a.plan"):
        raise PermissionError(errno.EACCES, "denied", "/elsewhere/weights.safetensors")


def test_too_little_space_is_seen_beforehand(tmp_path: Path):
    with pytest.raises(BundleError, match=r"needs about 1000000\.00 GB, .* free"):
        check_space(tmp_path / "a.plan", 10**15)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_disk_that_fills_up(tmp_path: Path):
    target = tmp_path / "a.plan"
    write(target, "old")

    def fill() -> None:
        with staged(target) as stage:
            stage.publish("a.plan").symlink_to("/dev/full")
            (stage.folder / "a.plan").write_bytes(b"x" * 10_000)

    with pytest.raises(BundleError, match="Disk full"):
        fill()
    assert target.read_text() == "old"
    assert litter(tmp_path) == []


def test_sizes_for_people():
    assert [format_bytes(n) for n in (999, 1000, 2_500_000, 1_738_576_812)] == [
        "999 bytes", "1.0 kB", "2.5 MB", "1.74 GB",
    ]  # fmt: skip
