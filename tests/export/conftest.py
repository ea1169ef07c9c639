"""A network small enough to build in a second, and what it is built with."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from export_helpers import TinyNet
from todo_compile.export.library import Library, choose_library
from todo_compile.export.onnx import OnnxInfo, export_onnx
from todo_compile.progress import SilentProgress

MakeOnnx = Callable[..., OnnxInfo]


class Recorder(SilentProgress):
    """Keeps what it is told."""

    def __init__(self) -> None:
        super().__init__()
        self.infos: list[str] = []
        self.warnings: list[str] = []
        self.fractions: list[float] = []
        self.details: list[str] = []

    @contextmanager
    def step(self, name: str):
        with super().step(name):
            yield self

    def update(self, done: float, total: float, detail: str = "") -> None:
        self.fractions.append(done / total)
        self.details.append(detail)

    def note(self, text: str) -> None:
        del text

    def info(self, text: str) -> None:
        self.infos.append(text)

    def warn(self, text: str) -> None:
        self.warnings.append(text)


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
