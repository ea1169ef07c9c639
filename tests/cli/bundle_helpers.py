"""What the tests of bundles share: the command line, what lies in a folder, builds that fail."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
import torch

from todo_compile.build import compiler
from todo_compile.bundle.bundle import check_bundle, read_bundle
from todo_compile.errors import ExportError

COMPONENTS = ["unet", "vae_decoder", "text_encoder"]


def arguments(pipeline: Path, out: Path, *more: str) -> list[str]:
    base = ["-m", str(pipeline), "-r", "32", "-o", f"{out}/", "--precision", "fp32"]
    return [*base, "--format", "onnx", *more]


def content(folder: Path) -> dict[str, bytes]:
    return {
        p.relative_to(folder).as_posix(): p.read_bytes()
        for p in sorted(folder.rglob("*"))
        if p.is_file()
    }


def bundle_content(folder: Path) -> dict[str, bytes]:
    """What a reader of the bundle may come to see."""
    return {n: data for n, data in content(folder).items() if not n.startswith(".")}


def damage(folder: Path) -> list[str]:
    return check_bundle(read_bundle(folder), folder)


def refuse_build(monkeypatch: pytest.MonkeyPatch, *names: str) -> list[str]:
    """Let builds of `names` fail; returns the list of all that were started."""
    started: list[str] = []
    real = compiler._rewritten

    def rewritten(job: Any) -> Any:
        started.append(job.source.component)
        if job.source.component in names:
            raise ExportError(f"{job.source.component} cannot be built")
        return real(job)

    monkeypatch.setattr(compiler, "_rewritten", rewritten)
    return started


def run(path: Path, **feeds: torch.Tensor) -> list[torch.Tensor]:
    """An ONNX file's outputs."""
    session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    outputs: Any = session.run(None, {k: v.numpy() for k, v in feeds.items()})
    return [torch.from_numpy(np.asarray(o)) for o in outputs]
