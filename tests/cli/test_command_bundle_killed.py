"""Bundles whose build is killed, or that two processes build."""

from __future__ import annotations

import errno
import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from bundle_helpers import (
    arguments,
    bundle_content,
    content,
    damage,
    refuse_build,
)
from helpers import said

from todo_compile.bundle import _locks, files
from todo_compile.bundle.alone import only_one
from todo_compile.bundle.bundle import read_bundle
from todo_compile.cli.app import main
from todo_compile.errors import BundleError
from todo_compile.export import onnx

# A build that stops for a minute when it comes to a component, or to a line of the last phase.
_HANGING = """
import os, sys, time
from pathlib import Path
from todo_compile.build import bundle_job, compiler
from todo_compile.cli.app import main
from todo_compile.export import onnx
where = sys.argv.pop(1)
onnx.SHARED_OVER = 0  # tiny weights are shared, as big ones are
def hang():
    print("ready", flush=True)
    time.sleep(120)
real = compiler._rewritten
def rewritten(job):
    if job.source.component == where:
        hang()
    return real(job)
compiler._rewritten = rewritten
if where.startswith("move"):
    left = int(where.removeprefix("move"))
    replace = os.replace
    def slow(part, goal):
        global left
        if ".parts" in Path(part).parts and ".parts" not in Path(goal).parts:
            if left == 0:
                hang()
            left -= 1
        replace(part, goal)
    os.replace = slow
if where == "finish":
    bundle_job.write = lambda *_: hang()
sys.exit(main(sys.argv[1:]))
"""


def start_hanging(where: str, arguments: list[str]) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", _HANGING, where, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    line = process.stdout.readline()
    if line != "ready\n":
        process.kill()
        raise AssertionError(process.communicate()[1])
    return process


@pytest.mark.parametrize(
    ("where", "stands", "built_again"),
    [
        ("vae_decoder", True, ["vae_decoder"]),
        ("move1", False, []),  # a model without its manifest
        pytest.param("move3", False, [], marks=pytest.mark.slow),
        pytest.param("finish", True, [], marks=pytest.mark.slow),
    ],
)
def test_killed(
    pipeline: Path,
    bundle: Path,
    monkeypatch: pytest.MonkeyPatch,
    where: str,
    stands: bool,
    built_again: list[str],
) -> None:
    """kill -9: the old bundle stands, or the new one does for whoever looks."""
    before = bundle_content(bundle)
    changed = arguments(pipeline, bundle, "--sampling", "average", "-q")
    process = start_hanging(where, changed)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    if stands:
        assert bundle_content(bundle) == before
        assert damage(bundle) == []
    else:
        assert not (bundle / "bundle.json").exists()
        assert read_bundle(bundle).created != json.loads(before["bundle.json"])["created"]
        assert damage(bundle) == []
    started = refuse_build(monkeypatch)
    assert main(changed) == 0
    assert started == built_again
    assert damage(bundle) == []
    assert not [p.name for p in bundle.rglob(".*") if p.name != ".building"]


@pytest.mark.parametrize("fault", ["Disk full", "has disappeared"])
def test_what_fails_at_the_end(
    pipeline: Path, bundle: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any, fault: str
) -> None:
    """What is copied is copied, and seen to be there, before the old bundle goes."""
    started = refuse_build(monkeypatch)
    before = bundle_content(bundle)
    vocabulary = pipeline / "tokenizer" / "vocab.json"
    old = vocabulary.read_text()
    vocabulary.write_text('{"more": 1}')
    commit = files.Stage.commit

    def failing(stage: files.Stage) -> None:
        if stage.target.name == "bundle.json":
            if fault == "Disk full":
                raise OSError(errno.ENOSPC, "No space left on device", str(stage.target))
            (bundle / ".parts" / "tokenizer" / "vocab.json").unlink()
        commit(stage)

    try:
        with monkeypatch.context() as patch:
            patch.setattr(files.Stage, "commit", failing)
            assert main(arguments(pipeline, bundle)) == 7
        assert fault in said(capsys)
        assert bundle_content(bundle) == before
        assert damage(bundle) == []
        assert main([*arguments(pipeline, bundle), "-q"]) == 0
    finally:
        vocabulary.write_text(old)
    assert damage(bundle) == []
    changed = {n for n, data in bundle_content(bundle).items() if before[n] != data}
    assert changed == {"bundle.json", "tokenizer/vocab.json"}
    assert started == []


@pytest.mark.slow
@pytest.mark.parametrize("where", ["move1", "move3"])
def test_killed_with_a_twin(
    pipeline: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    """Wherever the files of two models that share their weights were: nothing is built again."""
    monkeypatch.setattr(onnx, "SHARED_OVER", 0)  # tiny weights are shared, as big ones are
    only = arguments(pipeline, tmp_path / "b", "--component", "unet", "--dense-after", "0.7", "-q")
    process = start_hanging(where, only)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not (tmp_path / "b" / "bundle.json").exists()
    assert read_bundle(tmp_path / "b").components
    started = refuse_build(monkeypatch)
    assert main(only) == 0
    assert started == []
    assert damage(tmp_path / "b") == []
    assert sorted(p.name for p in (tmp_path / "b").glob("unet*.*")) == [
        "unet.dense.onnx", "unet.dense.onnx.json", "unet.onnx", "unet.onnx.data", "unet.onnx.json",
    ]  # fmt: skip


def test_two_processes(pipeline: Path, bundle: Path, capsys: Any) -> None:
    changed = arguments(pipeline, bundle, "--sampling", "average")
    process = start_hanging("unet", changed)
    try:
        before = content(bundle)
        assert main(arguments(pipeline, bundle, "--factors", "off")) == 7
        assert "Another process is building" in said(capsys)
        assert content(bundle) == before
    finally:
        process.kill()
        process.communicate()
    time.sleep(0.1)
    assert main([*arguments(pipeline, bundle), "-q"]) == 0  # the lock went with its process
    assert damage(bundle) == []


def test_loser_of_two_first_builds_leaves_the_folder(tmp_path: Path) -> None:
    """Both saw no folder; the second fails, and must not remove what the first has begun."""
    folder = tmp_path / "b"
    with only_one(folder):
        assert folder.is_dir()
        with pytest.raises(BundleError, match="Another process"), only_one(folder):
            pass
        assert folder.is_dir()
        (folder / "begun").write_text("x")
    assert folder.is_dir()
    with only_one(tmp_path / "c"):
        pass
    assert not (tmp_path / "c").exists()


def test_file_system_without_locks(
    pipeline: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_: int) -> bool:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(_locks, "_try_lock", refuse)
    assert main([*arguments(pipeline, tmp_path / "b"), "-q"]) == 0
    assert damage(tmp_path / "b") == []
    assert not [p.name for p in (tmp_path / "b").rglob(".*") if p.name != ".building"]


@pytest.mark.parametrize("name", [".parts", "tokenizer", "scheduler", ".parts/x.log", ".building"])
def test_links_in_a_bundle_of_others(
    pipeline: Path, bundle: Path, tmp_path: Path, name: str
) -> None:
    """Building into it must not write, make or remove anything elsewhere."""
    away = tmp_path / "away"
    away.mkdir()
    (away / "vocab.json").write_text("mine")
    link = bundle / name
    if link.is_dir():
        shutil.rmtree(link)
    link.unlink(missing_ok=True)
    link.parent.mkdir(exist_ok=True)
    inner = name in (".parts/x.log", ".building")
    link.symlink_to(away / "vocab.json" if inner else away)
    before = content(away)
    assert main(arguments(pipeline, bundle, "--sampling", "average", "-q")) == 7
    assert content(away) == before


def test_component_that_is_a_link_is_built_again(
    pipeline: Path, bundle: Path, tmp_path: Path
) -> None:
    away = tmp_path / "elsewhere.onnx"
    shutil.move(bundle / "unet.onnx", away)
    (bundle / "unet.onnx").symlink_to(away)
    before = away.read_bytes()
    assert main([*arguments(pipeline, bundle), "-q"]) == 0
    assert damage(bundle) == []
    assert not (bundle / "unet.onnx").is_symlink()
    assert away.read_bytes() == before
