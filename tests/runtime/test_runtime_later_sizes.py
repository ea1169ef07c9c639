"""The second size of a bundle is opened at its first call: it must still be what was loaded."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import tiny_pipelines as tiny
import torch

import todo_compile
from todo_compile.errors import BundleError


@pytest.fixture(scope="module")
def two_sizes(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A UNet for 32×32 and 48×16 px. Not to change."""
    folder = tmp_path_factory.mktemp("two") / "b"
    todo_compile.compile_bundle(
        str(model), res=[tiny.PIXELS, "48x16"], out=folder, format="onnx", precision="fp32",
        component="unet",
    )  # fmt: skip
    return folder


def second(unet: Any) -> Any:
    text = torch.randn(2, 77, 24)
    return unet(torch.randn(2, 4, 8, 24), torch.tensor([500.0]), text)


def truncate(folder: Path) -> None:
    path = folder / "unet.48x16.onnx"
    path.write_bytes(path.read_bytes()[:-1])


def flip(folder: Path) -> None:
    path = folder / "unet.48x16.onnx"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def rebuild(folder: Path) -> None:
    """Another build, in itself right."""
    manifest = folder / "unet.48x16.onnx.json"
    values = json.loads(manifest.read_text())
    manifest.write_text(json.dumps({**values, "created": "2001-01-01T00:00:00+00:00"}))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (truncate, "bytes instead of"),
        (flip, "its hash differs"),
        (rebuild, "built anew"),
        (shutil.rmtree, "does not exist"),
    ],
)
def test_changed_since_it_was_loaded(
    two_sizes: Path, tmp_path: Path, change: Any, says: str
) -> None:
    folder = Path(shutil.copytree(two_sizes, tmp_path / "copy"))
    unet = todo_compile.load(folder)
    change(folder)
    with pytest.raises(BundleError, match=says) as caught:
        second(unet)
    assert caught.value.remedy


def test_sizes_alone_if_asked_for(two_sizes: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(two_sizes, tmp_path / "copy"))
    unet = todo_compile.load(folder, verify="size")
    truncate(folder)
    with pytest.raises(BundleError, match="bytes instead of"):
        second(unet)


def test_unchanged_it_runs(two_sizes: Path) -> None:
    assert second(todo_compile.load(two_sizes)).sample.shape == (2, 4, 8, 24)
