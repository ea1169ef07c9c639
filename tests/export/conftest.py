"""A network small enough to build in a second, and what it is built with."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from export_helpers import Recorder, TinyNet, build

from todo_compile.export.library import Library, choose_library
from todo_compile.export.onnx import export_onnx
from todo_compile.export.tensorrt import EngineInfo
from todo_compile.progress import SilentProgress


@pytest.fixture
def progress() -> Recorder:
    return Recorder()


@pytest.fixture(scope="session")
def library() -> Library:
    return choose_library("tensorrt_rtx")


@pytest.fixture(scope="session")
def tiny_onnx(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny network in fp16 at opset 23, weights in their own file."""
    torch.manual_seed(0)
    module = TinyNet().eval().half()
    program = torch.export.export(module, (torch.randn(1, 4, 16, 16).half(),))
    path = tmp_path_factory.mktemp("tiny") / "tiny.onnx"
    export_onnx(
        program,
        path,
        opset=23,
        input_names=["x"],
        output_names=["y"],
        progress=SilentProgress(),
        external_over=0,
    )
    return path


@pytest.fixture(scope="session")
def built(library: Library, tiny_onnx: Path) -> EngineInfo:
    """An engine of the tiny network; not to be changed."""
    out = tiny_onnx.parent / "out" / "e.plan"
    out.parent.mkdir()
    info = build(tiny_onnx, out, library, SilentProgress())
    return replace(info, path=out)
