"""Networks and children shared by the tests of the export."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from todo_compile.bundle.files import staged
from todo_compile.export.library import Library
from todo_compile.export.targets import Targets
from todo_compile.export.tensorrt import EngineOptions, build_engine
from todo_compile.progress import SilentProgress

ADA = Targets(("sm89",), current=False, reason="test")


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


class TinyNet(nn.Module):
    """Convolution, norm, and attention with a scale of its own: what a UNet is made of."""

    def __init__(self, channels: int = 32, scale: float | None = 0.3) -> None:
        super().__init__()
        self.enter = nn.Conv2d(4, channels, 3, padding=1)
        self.norm = nn.GroupNorm(4, channels)
        self.qkv = nn.Linear(channels, 3 * channels)
        self.leave = nn.Linear(channels, 4)
        self.scale = scale

    def forward(self, x: Tensor) -> Tensor:
        h = functional.silu(self.norm(self.enter(x)))
        batch, channels, height, width = h.shape
        tokens = h.permute(0, 2, 3, 1).reshape(batch, height * width, channels)
        q, k, v = (
            part.view(batch, -1, 2, channels // 2).transpose(1, 2)
            for part in self.qkv(tokens).chunk(3, dim=-1)
        )
        out = functional.scaled_dot_product_attention(q, k, v, scale=self.scale)
        out = self.leave(out.transpose(1, 2).reshape(batch, -1, channels))
        return out.view(batch, height, width, 4).permute(0, 3, 1, 2) / 1.0


class Huge(nn.Module):
    """Attention too wide for TensorRT to fuse: its scores alone are 137 GB."""

    def forward(self, x: Tensor) -> Tensor:
        return functional.scaled_dot_product_attention(x, x, x)


def start_python(code: str, *args: object, env: dict[str, str] | None = None, **kwargs: object):
    """A child that runs `code`; what it prints can be waited for."""
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, args)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **(env or {})},
        **kwargs,  # type: ignore[arg-type]
    )


def wait_until(condition: Callable[[], bool], seconds: float = 60) -> None:
    """Wait for `condition`; a failure after `seconds`."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)


def litter(folder: Path) -> list[str]:
    """Hidden files and folders: what a stage leaves."""
    return sorted(path.name for path in folder.iterdir() if path.name.startswith("."))


def random_input(dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(1)).to(dtype)


def build(onnx: Path, out: Path, library: Library, progress: SilentProgress, **options):
    """Build `onnx` to `out` in a stage, as the compiler does."""
    targets = options.pop("targets", ADA)
    with staged(out) as stage:
        return build_engine(
            onnx,
            stage.publish(out.name),
            library=library,
            targets=targets,
            log=out.with_name(f"{out.name}.log"),
            progress=progress,
            options=EngineOptions(**options),
        )
