"""``todo-compile build`` for real, on tiny models: all of a file, again, interrupted, killed."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from todo_compile.build.request import BuildRequest
from todo_compile.bundle.bundle import check_bundle, read_bundle
from todo_compile.bundle.manifest import check_files, read
from todo_compile.cli.app import main
from todo_compile.errors import MissingPackageError


@pytest.fixture
def written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """Write a build file; the command runs beside it."""
    monkeypatch.chdir(tmp_path)

    def write(text: str) -> Path:
        path = tmp_path / "builds.yaml"
        path.write_text(text, encoding="utf-8")
        return path

    return write


def statuses(capsys: pytest.CaptureFixture[str]) -> dict[str, str]:
    return {b["out"]: b["status"] for b in json.loads(capsys.readouterr().out)["builds"]}


@pytest.mark.slow
def test_one_fails_and_the_rest_is_built_kept_and_mended(
    written: Callable[[str], Path],
    pipeline: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Three outputs and a checkpoint that ends early, which only its build finds out."""
    shutil.copytree(pipeline, tmp_path / "broken")
    weights = tmp_path / "broken" / "unet" / "diffusion_pytorch_model.safetensors"
    os.truncate(weights, weights.stat().st_size - 100)
    file = written(
        f"""
jobs: 1
defaults: {{model: '{pipeline}', precision: fp32, res: 32}}
builds:
  - model: broken
    out: out/{{model}}.onnx
  - batch: [1, 2]
    out: out/unet-{{batch}}.onnx
  - out: out/bundle/
    component: vae-decoder
    format: onnx
"""
    )
    assert main(["build", str(file), "--json"]) == 1
    captured = capsys.readouterr()
    found = json.loads(captured.out)
    assert [(b["out"], b["status"]) for b in found["builds"]] == [
        ("out/broken.onnx", "failed"),
        ("out/unet-1.onnx", "built"),
        ("out/unet-2.onnx", "built"),
        ("out/bundle/", "built"),
    ]
    assert found["failed"] == 1
    broken, unet = found["builds"][:2]
    assert "is truncated or damaged" in broken["error"]
    assert "Download or copy" in Path(broken["log"]).read_text()
    assert not Path("out/broken.onnx").exists()
    manifest = read(Path("out/unet-1.onnx"))
    assert check_files(manifest, Path("out")) == []
    assert manifest.request["batch"] == 1
    sizes = sum(f.bytes for f in manifest.files) + Path("out/unet-1.onnx.json").stat().st_size
    assert unet["bytes"] == sizes
    assert unet["peak_rss_bytes"] > 100e6
    assert check_bundle(read_bundle(Path("out/bundle")), Path("out/bundle")) == []

    # Again, with the checkpoint mended and an output gone: the rest is kept.
    shutil.copy(pipeline / "unet" / weights.name, weights)
    Path("out/unet-2.onnx").unlink()
    assert main(["build", str(file)]) == 0
    captured = capsys.readouterr()
    shown = [line.split()[:2] for line in captured.out.splitlines()[1:] if line.strip()]
    assert shown == [
        ["out/broken.onnx", "built"],
        ["out/unet-1.onnx", "kept"],
        ["out/unet-2.onnx", "built"],
        ["out/bundle/", "kept"],
    ]
    assert "kept     out/unet-1.onnx" in captured.err


def test_list_looks_at_the_file_alone(
    written: Callable[[str], Path],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """On the machine that hands out the tasks of an array nothing else need be."""

    def resolve(*_: object, **__: object) -> None:
        raise AssertionError("a model was looked for")

    monkeypatch.setattr(BuildRequest, "resolve", resolve)
    file = written("builds: [{model: ./not-here, res: [512, 1024], out: 'x-{res}.onnx'}]")
    assert main(["build", str(file), "--list"]) == 0
    assert capsys.readouterr().out == "1\tx-512.onnx\n2\tx-1024.onnx\n"
    assert main(["build", str(file), "--list", "--json", "--only", "2"]) == 0
    (found,) = json.loads(capsys.readouterr().out)["builds"]
    assert (found["id"], found["out"], found["options"]["res"]) == (2, "x-1024.onnx", ["1024"])
    file.write_text("builds: [{model: sd15, res: [512, 1024], out: x.onnx}]", encoding="utf-8")
    assert main(["build", str(file), "--list"]) == 2
    assert "several of its builds go to x.onnx" in capsys.readouterr().err


def test_only_one(
    written: Callable[[str], Path], model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The others are not even looked at."""
    file = written(
        f"""
        builds:
          - {{model: ./not-here, res: 64, out: first.onnx}}
          - {{model: '{model}', res: 64, out: second.onnx}}
        """
    )
    assert main(["build", str(file), "--only", "2", "--dry-run", "--json"]) == 0
    assert [b["id"] for b in json.loads(capsys.readouterr().out)["builds"]] == [2]
    assert main(["build", str(file), "--only", "first.onnx", "--dry-run"]) == 2
    assert "not-here" in capsys.readouterr().err
    assert main(["build", str(file), "--only", "0"]) == 2
    assert "no build 0" in capsys.readouterr().err


def test_dry_run(
    written: Callable[[str], Path], model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = written(
        f"""
memory: 3GB
defaults: {{model: '{model}', res: [64, 72], target: sm89}}
builds:
  - out: deep/er/{{res}}.plan
  - {{res: 64, out: x.onnx, verify: true}}
"""
    )
    assert main(["build", str(file), "--dry-run", "--json", "--jobs", "3"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [b["out"] for b in found["builds"]] == ["deep/er/64.plan", "deep/er/72.plan", "x.onnx"]
    assert found["builds"][1]["options"] == {
        "model": str(model),
        "res": ["72"],
        "out": "deep/er/72.plan",
        "target": "sm89",
    }
    assert found["builds"][0]["memory_bytes"] > 1e9
    assert found["builds"][2]["memory_bytes"] is None
    assert (found["memory_bytes"], found["jobs"]) == (3e9, 3)
    assert main(["build", str(file), "--dry-run", "--memory", "2GB"]) == 0
    text = capsys.readouterr().out
    assert "deep/er/72.plan" in text
    assert "3 builds" in text
    assert "2.00 GB; nothing was built" in text
    assert sorted(os.listdir()) == ["builds.yaml"]


def test_all_mistakes_at_once(
    written: Callable[[str], Path], model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("file").touch()
    file = written(
        f"""jobs: none
defaults: {{model: '{model}', res: 64, target: sm89}}
builds:
  - out: x-{{res}}.plan
    res: [64, 1001, 2000x1001]
  - {{out: x.trt}}
  - {{out: y.plan, batch: 0}}
  - {{out: y.plan, colour: red}}
  - {{out: z.onnx, controlnet: true, component: vae-decoder}}
  - {{out: z.onnx, model: sd99}}
  - {{out: b/, format: coreml}}
  - {{out: file/x.plan}}
  - {{out: k.plan, kv-tokens: 4, factors: 2}}
  - {{out: l.plan, lora: absent.safetensors}}
  - {{out: v.plan, vae-factors: 2}}
"""
    )
    assert main(["build", str(file)]) == 2
    text = capsys.readouterr().err
    flat = " ".join(text.split())
    for says in (
        "has 14 mistakes; nothing was built.",
        "line 1: jobs: 'none' is not a number of builds.",
        "line 4: build 1: This model cannot make 1001x1001 pixels",
        "line 4: build 1: This model cannot make 2000x1001 pixels",
        "line 6: build 2: The suffix of 'x.trt' says nothing about the format.",
        "line 7: build 3: A batch of 0 is not possible.",
        "line 8: build 4: unknown option 'colour'.",
        "line 9: build 5: ",
        "line 10: build 6: Unknown model 'sd99'.",
        "line 10: build 6: z.onnx is where build 5 (line 9) goes too.",
        "line 11: build 7: Unknown format 'coreml'.",
        "line 12: build 8: file is not a folder.",
        "line 13: build 9: kv_tokens and factors both say how far to downsample.",
        "line 14: build 10: ",
        "line 15: build 11: --vae-factors is for bundles, and v.plan is a file.",
    ):
        assert says in flat
    assert "Traceback" not in text
    assert sorted(os.listdir()) == ["builds.yaml", "file"]


def test_a_missing_package_is_no_mistake_of_the_file(
    written: Callable[[str], Path], model: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    def absent(*_: Any, **__: Any) -> None:
        raise MissingPackageError("A model needs x.", remedy='pip install "todo-compile[models]"')

    monkeypatch.setattr(BuildRequest, "resolve", absent)
    path = written(f"builds: [{{model: {model}, res: 64, out: a.onnx}}]")
    assert main(["build", str(path)]) == 9
    assert "todo-compile[models]" in capsys.readouterr().err


@pytest.mark.parametrize("verify", ["false", "true"])
@pytest.mark.parametrize("place", ["file", "command"])
def test_less_memory_than_a_build_needs(
    written: Callable[[str], Path],
    model: Path,
    capsys: pytest.CaptureFixture[str],
    verify: str,
    place: str,
) -> None:
    """Refused before any work, also of a build that runs alone."""
    line = f"{{model: '{model}', res: 64, out: x.onnx, verify: {verify}}}"
    file = written(f"{'memory: 1KB' if place == 'file' else ''}\nbuilds: [{line}]")
    more = ["--memory", "1KB"] if place == "command" else []
    assert main(["build", str(file), *more]) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert "it needs about" in said
    assert "more than the memory of 1.0 kB" in said
    assert sorted(os.listdir()) == ["builds.yaml"]


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (["--memory", "much"], "is not a size of memory"),
        (["--jobs", "0"], "Invalid value for '--jobs'"),
        (["--logs", "builds.yaml/x"], "Name another for logs"),
    ],
)
def test_options(
    written: Callable[[str], Path],
    model: Path,
    capsys: pytest.CaptureFixture[str],
    more: list[str],
    says: str,
) -> None:
    file = written(f"builds: [{{model: '{model}', res: 64, out: x.onnx}}]")
    assert main(["build", str(file), *more]) == 2
    assert says in " ".join(capsys.readouterr().err.split())
    assert sorted(os.listdir()) == ["builds.yaml"]


def test_the_example_is_right(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: Any) -> None:
    example = Path(__file__).parents[2] / "examples" / "builds.yaml"
    monkeypatch.chdir(tmp_path)
    assert main(["build", str(example), "--dry-run", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert len(found["builds"]) == 6
    assert os.listdir() == []


def started(file: Path) -> tuple[subprocess.Popen[str], list[psutil.Process]]:
    """The command in a process of its own, in the middle of its first build: the stage is there."""
    process = subprocess.Popen(
        [sys.executable, "-m", "todo_compile.cli.app", "build", str(file), "--jobs", "1"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=file.parent,
    )
    deadline = time.monotonic() + 120
    while not list((file.parent / "out").glob(".a.onnx.tmp-*/*")):
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return process, psutil.Process(process.pid).children(recursive=True)


TWO = """
defaults: {{model: '{model}', precision: fp32, res: 64}}
builds:
  - out: out/a.onnx
  - out: out/b.onnx
"""


@pytest.mark.skipif(sys.platform == "win32", reason="no such signals")
@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_ended(
    written: Callable[[str], Path], model: Path, number: signal.Signals, status: int
) -> None:
    """By Ctrl-C, which is for the command alone; by a scheduler, which ends all processes."""
    process, children = started(written(TWO.format(model=model)))
    for one in children if number == signal.SIGTERM else ():
        one.send_signal(number)
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert process.returncode == status
    assert [line.split()[:2] for line in out.splitlines()[1:]] == [
        ["out/a.onnx", "stopped"],
        ["out/b.onnx", "stopped"],
    ]
    assert "what is finished is kept" in err
    assert psutil.wait_procs(children, timeout=5)[1] == []
    assert os.listdir("out") == []


def test_killed(written: Callable[[str], Path], model: Path) -> None:
    """kill -9 of the command: the build that ran ends too, and leaves nothing."""
    process, children = started(written(TWO.format(model=model)))
    assert len(children) == 1
    process.kill()
    process.communicate()
    assert psutil.wait_procs(children, timeout=40)[1] == []
    assert os.listdir("out") == []
