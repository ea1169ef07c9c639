"""A build that is killed or interrupted leaves the old output, or none."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from compile_helpers import fp32
from helpers import weights_outside

from todo_compile.build import compiler
from todo_compile.cli.app import main
from todo_compile.errors import INTERRUPTED, ExportError

# What a build looks like while it runs: a stage with half a file, and then nothing for a minute.
_HANGING = """
import sys, time
from pathlib import Path
from todo_compile.build import compiler
from todo_compile.cli.app import main
def hang(job):
    stage = next(job.out.parent.glob(".x.onnx.tmp-*"))
    (stage / "x.onnx").write_bytes(b"half")
    print("ready", flush=True)
    time.sleep(120)
compiler._rewritten = hang
sys.exit(main(sys.argv[1:]))
"""


def interrupted(arguments: list[str], number: signal.Signals) -> tuple[int, str]:
    process = subprocess.Popen(
        [sys.executable, "-c", _HANGING, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(number)
        _, err = process.communicate(timeout=60)
    finally:
        process.kill()
        process.wait()
    return process.returncode, " ".join(err.split())


def content(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in folder.iterdir() if p.is_file()}


def litter(folder: Path) -> list[str]:
    return [p.name for p in folder.iterdir() if p.is_dir()]


def test_killed_build_leaves_the_old_output(
    model: Path, output: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = content(output.parent)
    code, _ = interrupted(fp32(model, output, "--batch", "1"), signal.SIGKILL)
    assert code == -signal.SIGKILL
    assert content(output.parent) == before
    assert len(litter(output.parent)) == 1

    def refuse(job: object) -> object:
        del job
        raise ExportError("stop")

    monkeypatch.setattr(compiler, "_rewritten", refuse)
    assert main(fp32(model, output, "--batch", "1")) == 5
    assert litter(output.parent) == []
    assert content(output.parent) == before


def test_reuse_sweeps_litter_too(model: Path, output: Path) -> None:
    code, _ = interrupted(fp32(model, output, "--force"), signal.SIGKILL)
    assert code == -signal.SIGKILL
    assert len(litter(output.parent)) == 1
    assert main(fp32(model, output)) == 0  # kept: everything is equal
    assert litter(output.parent) == []


def test_ctrl_c(model: Path, output: Path) -> None:
    before = content(output.parent)
    code, text = interrupted(fp32(model, output, "--force"), signal.SIGINT)
    assert code == 130
    assert INTERRUPTED in text
    assert "Traceback" not in text
    assert litter(output.parent) == []
    assert content(output.parent) == before


@pytest.mark.skipif(sys.platform == "win32", reason="no such signals")
@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_ended_by_a_scheduler(
    model: Path, output: Path, number: signal.Signals, status: int
) -> None:
    """As by Ctrl-C: nothing is left, and the status says what it was."""
    before = content(output.parent)
    code, text = interrupted(fp32(model, output, "--force"), number)
    assert code == status
    assert INTERRUPTED in text
    assert "Traceback" not in text
    assert litter(output.parent) == []
    assert content(output.parent) == before


@pytest.mark.parametrize("gone", [["x.onnx"], ["x.onnx.data"]])
def test_files_that_disappear_before_the_manifest(
    model: Path, output: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any, gone: list[str]
) -> None:
    """Found by the fault matrix: the manifest would have described what is left, or nothing."""
    before = content(output.parent)
    translate = compiler.translate

    def losing(job: Any, program: Any, file: Path, *rest: Any, **more: Any) -> Any:
        found = translate(job, program, file, *rest, **more)
        for name in gone:
            file.with_name(name).unlink()
        return found

    monkeypatch.setattr(compiler, "translate", losing)
    weights_outside(monkeypatch)
    assert main(fp32(model, output, "--force")) == 7
    assert f"{min(gone)} has disappeared" in " ".join(capsys.readouterr().err.split())
    assert content(output.parent) == before
    assert litter(output.parent) == []
