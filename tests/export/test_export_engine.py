"""Engines built for real with TensorRT for RTX, and everything that can go wrong on the way."""

from __future__ import annotations

import signal
import sys
from pathlib import Path

import pytest
import torch
from export_helpers import (
    ADA,
    Huge,
    Recorder,
    TinyNet,
    build,
    litter,
    random_input,
    start_python,
    wait_until,
)  # fmt: skip
from torch import nn

from todo_compile.bundle.files import staged
from todo_compile.errors import BundleError, EngineError
from todo_compile.export._child import Outcome, run_worker
from todo_compile.export.library import Library
from todo_compile.export.onnx import export_onnx
from todo_compile.export.targets import Targets
from todo_compile.export.tensorrt import (
    LOG_HEADER,
    EngineInfo,
    TensorSpec,
    _failure,
    build_engine,
    forget_log,
)
from todo_compile.progress import SilentProgress

psutil = pytest.importorskip("psutil")

# A library that never finishes loading: a build that can be interrupted at leisure.
_SLOW = "import time; print('loading', flush=True); time.sleep(600)"
_PARENT = """
import sys
from pathlib import Path
from todo_compile.bundle.files import staged
from todo_compile.export.library import Library
from todo_compile.export.targets import Targets
from todo_compile.export.tensorrt import build_engine
from todo_compile.progress import SilentProgress
out = Path(sys.argv[1])
with staged(out) as stage:
    build_engine(
        stage.folder / "none.onnx", stage.publish(out.name), library=Library("slow_trt", "1", ()),
        targets=Targets(("sm89",), False, ""), log=out.with_name("log"), progress=SilentProgress())
"""


def onnx_of(module: nn.Module, x: torch.Tensor, path: Path, opset: int = 23) -> Path:
    program = torch.export.export(module.eval(), (x,))
    export_onnx(
        program, path, opset=opset, input_names=["x"], output_names=["y"], progress=SilentProgress()
    )
    return path


@pytest.mark.parametrize(
    ("dtype", "opset"),
    [(torch.float16, 18), (torch.float16, 23), (torch.float32, 23), (torch.bfloat16, 23)],
    ids=str,
)
def test_builds(
    tmp_path: Path, library: Library, progress: Recorder, dtype: torch.dtype, opset: int
):
    onnx = onnx_of(TinyNet().to(dtype), random_input(dtype), tmp_path / "m.onnx", opset)
    out = tmp_path / "e.plan"
    info = build(onnx, out, library, progress)
    name = str(dtype).removeprefix("torch.")
    assert info.inputs == (TensorSpec("x", (1, 4, 16, 16), name),)
    assert info.outputs == (TensorSpec("y", (1, 4, 16, 16), name),)
    assert info.bytes == out.stat().st_size > 10_000
    assert (info.library, info.version, info.targets) == (library.name, library.version, ("sm89",))
    assert info.memory.weights is not None
    assert info.memory.weights > 0
    assert info.memory.activation is not None
    assert info.memory.activation > 0
    assert info.seconds.keys() == {"parse", "build"}
    assert progress.fractions == sorted(progress.fractions)
    assert progress.fractions[-1] <= 1
    assert "Building engine" in progress.details
    # The engine alone: no log, no stage.
    assert sorted(p.name for p in tmp_path.iterdir()) == ["e.plan", "m.onnx"]


@pytest.mark.skipif(sys.platform != "linux", reason="rusage elsewhere starts anew")
def test_peak_memory_is_the_workers_own():
    # Linux's rusage would report this process's peak, torch included: it survives exec.
    code = "from todo_compile.export._tensorrt_worker import _peak_rss; print(_peak_rss())"
    out, err = start_python(code).communicate()
    assert out.strip().isdigit(), err
    assert 5e6 < int(out) < psutil.Process().memory_info().rss / 2


def test_two_targets_make_a_larger_engine(
    tmp_path: Path, library: Library, tiny_onnx: Path, built: EngineInfo
):
    both = Targets(("sm89", "sm120"), current=False, reason="")
    two = build(tiny_onnx, tmp_path / "2.plan", library, SilentProgress(), targets=both)
    assert two.bytes > built.bytes
    assert two.targets == ("sm89", "sm120")


def test_same_request_gives_the_same_bytes_and_the_log_stays_on_request(
    tmp_path: Path, library: Library, tiny_onnx: Path, built: EngineInfo, progress: Recorder
):
    out, cache = tmp_path / "e.plan", tmp_path / "timing"
    build(tiny_onnx, out, library, progress, keep_log=True, timing_cache=cache)
    assert out.read_bytes() == built.path.read_bytes()
    # TensorRT for RTX has no timing cache: said, not pretended.
    assert any("--timing-cache has no effect" in text for text in progress.warnings)
    assert not cache.exists()
    log = out.with_name("e.plan.log").read_text()
    assert log.startswith(LOG_HEADER)
    assert "Total Weights Memory" in log


def test_options_reach_the_builder(
    tmp_path: Path, library: Library, tiny_onnx: Path, built: EngineInfo
):
    out = tmp_path / "e.plan"
    build(tiny_onnx, out, library, SilentProgress(), weight_streaming=True, workspace_bytes=1 << 30)
    assert out.read_bytes() != built.path.read_bytes()


def test_scores_too_large(tmp_path: Path, library: Library):
    x = torch.empty(1, 1, 262_144, 512, dtype=torch.float16, device="meta")
    onnx = onnx_of(Huge(), x, tmp_path / "m.onnx", opset=18)
    out = tmp_path / "e.plan"
    out.write_text("old")
    with pytest.raises(EngineError) as caught:
        build(onnx, out, library, SilentProgress())
    assert "OutOfMemory (Requested size was" in caught.value.message
    assert caught.value.remedy is not None
    assert "fewer --kv-tokens" in caught.value.remedy
    log = tmp_path / "e.plan.log"
    assert str(log) in caught.value.remedy
    assert log.read_text().startswith(LOG_HEADER)
    assert out.read_text() == "old"
    assert litter(tmp_path) == []


def test_log_of_a_failure_goes_with_the_next_success(
    tmp_path: Path, library: Library, tiny_onnx: Path
):
    out = tmp_path / "e.plan"
    with pytest.raises(EngineError):
        build(tmp_path / "none.onnx", out, library, SilentProgress())
    assert (tmp_path / "e.plan.log").exists()
    build(tiny_onnx, out, library, SilentProgress())
    assert [p.name for p in tmp_path.iterdir()] == ["e.plan"]


def test_foreign_log_stays(tmp_path: Path):
    log = tmp_path / "e.plan.log"
    log.write_text("my notes")
    forget_log(log)
    assert log.read_text() == "my notes"
    log.write_text(LOG_HEADER)
    forget_log(log)
    assert not log.exists()


def test_onnx_that_is_none(tmp_path: Path, library: Library):
    onnx = tmp_path / "m.onnx"
    onnx.write_bytes(b"not a protobuf at all")
    with pytest.raises(EngineError, match=r"could not build the engine: .+\n.*e.plan.log"):
        build(onnx, tmp_path / "e.plan", library, SilentProgress())


def test_missing_weights(tmp_path: Path, library: Library, tiny_onnx: Path):
    lonely = tmp_path / "tiny.onnx"
    lonely.write_bytes(tiny_onnx.read_bytes())
    with pytest.raises(EngineError, match=r"tiny\.onnx\.data"):
        build(lonely, tmp_path / "e.plan", library, SilentProgress())


def test_mixed_precision_is_refused_with_advice(tmp_path: Path, library: Library):
    import onnx
    from onnx import TensorProto, helper

    sides = [1, 4]
    model = helper.make_model(
        helper.make_graph(
            [helper.make_node("Concat", ["a", "b"], ["y"], axis=0)],
            "mixed",
            [
                helper.make_tensor_value_info("a", TensorProto.FLOAT16, sides),
                helper.make_tensor_value_info("b", TensorProto.FLOAT, sides),
            ],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, [2, 4])],
        ),
        opset_imports=[helper.make_opsetid("", 18)],
        ir_version=10,
    )
    onnx.save(model, tmp_path / "m.onnx")
    with pytest.raises(EngineError, match="mixes precisions"):
        build(tmp_path / "m.onnx", tmp_path / "e.plan", library, SilentProgress())


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_disk_full_while_the_engine_is_written(tmp_path: Path, library: Library, tiny_onnx: Path):
    out = tmp_path / "e.plan"

    def build_to_full_disk() -> None:
        with staged(out) as stage:
            plan = stage.publish(out.name)
            plan.symlink_to("/dev/full")
            build_engine(
                tiny_onnx,
                plan,
                library=library,
                targets=ADA,
                log=tmp_path / "log",
                progress=SilentProgress(),
            )

    with pytest.raises(BundleError, match="Disk full"):
        build_to_full_disk()
    assert litter(tmp_path) == []


def test_killed_for_memory_is_explained(tmp_path: Path):
    error = _failure(Outcome(returncode=-9), [], tmp_path / "e.plan", tmp_path / "log")
    assert isinstance(error, EngineError)
    assert "memory ran out" in error.message


def test_crash_without_words(tmp_path: Path):
    lines = [LOG_HEADER, "Segmentation fault", ""]
    error = _failure(Outcome(returncode=-11), lines, tmp_path / "e.plan", tmp_path / "log")
    assert "status -11: Segmentation fault" in str(error)


def test_library_that_prints_does_not_disturb_the_events(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "loud.py").write_text(
        "import os\nprint('hello')\nos.write(1, b'{native}\\n')\n__version__ = '1.2'\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    outcome = run_worker({"do": "probe", "library": "loud"})
    assert outcome.result["version"] == "1.2"
    assert outcome.result["targets"] == []


def start_slow_build(folder: Path, out: Path):
    (folder / "slow_trt.py").write_text(_SLOW)
    child = start_python(_PARENT, out, env={"PYTHONPATH": str(folder)})
    process = psutil.Process(child.pid)
    wait_until(lambda: bool(process.children()) or child.poll() is not None)
    assert child.poll() is None, child.communicate()
    worker = process.children()[0]
    stage = next(out.parent.glob(f".{out.name}.tmp-*"))
    wait_until(lambda: "loading" in (stage / f"{out.name}.log").read_text())
    return child, worker


def is_gone(process) -> bool:
    return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE


@pytest.mark.skipif(sys.platform == "win32", reason="no SIGINT to a single process")
def test_ctrl_c_ends_the_worker_and_leaves_nothing(tmp_path: Path):
    (tmp_path / "lib").mkdir()
    (tmp_path / "out").mkdir()
    out = tmp_path / "out" / "e.plan"
    out.write_text("old")
    child, worker = start_slow_build(tmp_path / "lib", out)
    worker.send_signal(signal.SIGINT)  # a terminal sends it to both
    child.send_signal(signal.SIGINT)
    _, err = child.communicate(timeout=60)
    assert "KeyboardInterrupt" in err
    assert is_gone(worker)
    assert [p.name for p in out.parent.iterdir()] == ["e.plan"]
    assert out.read_text() == "old"


def test_kill_of_the_parent_takes_the_worker_along(
    tmp_path: Path, library: Library, tiny_onnx: Path
):
    (tmp_path / "lib").mkdir()
    (tmp_path / "out").mkdir()
    out = tmp_path / "out" / "e.plan"
    out.write_text("old")
    child, worker = start_slow_build(tmp_path / "lib", out)
    child.kill()
    child.communicate(timeout=60)
    wait_until(lambda: is_gone(worker))
    assert out.read_text() == "old"
    assert len(litter(out.parent)) == 1
    info = build(tiny_onnx, out, library, SilentProgress())
    assert out.stat().st_size == info.bytes
    assert [p.name for p in out.parent.iterdir()] == ["e.plan"]


def test_kill_of_the_worker_is_an_error_here(tmp_path: Path):
    (tmp_path / "lib").mkdir()
    (tmp_path / "out").mkdir()
    out = tmp_path / "out" / "e.plan"
    out.write_text("old")
    child, worker = start_slow_build(tmp_path / "lib", out)
    worker.kill()
    _, err = child.communicate(timeout=60)
    assert "EngineError" in err
    assert out.read_text() == "old"
    assert sorted(p.name for p in out.parent.iterdir()) == ["e.plan", "log"]


def test_layers_need_a_driver_and_say_so(library: Library, built: EngineInfo):
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    from todo_compile.export.layers import engine_layers

    with pytest.raises(EngineError, match="driver"):
        engine_layers(built.path, f"{library.name} {library.version}")
