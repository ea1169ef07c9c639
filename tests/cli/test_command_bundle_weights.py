"""Small weights, which lie in the model file: where several models have them, apart and once."""

from __future__ import annotations

from pathlib import Path

import pytest
from bundle_helpers import arguments, damage, refuse_build

from todo_compile.bundle.bundle import read_bundle
from todo_compile.cli.app import main


@pytest.fixture(autouse=True)
def worth_sharing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tiny weights are worth a file, as those of a megabyte are."""
    from todo_compile.export import onnx

    monkeypatch.setattr(onnx, "SHARED_OVER", 1024)


def data_files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("*.data"))


def test_twins_share_small_weights(
    pipeline: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "b"
    unet = arguments(pipeline, out, "--component", "unet", "-q")
    pair = [*unet, "--dense-after", "0.7"]
    assert main(unet) == 0
    assert data_files(out) == []  # alone it is one file
    with monkeypatch.context() as patch:
        started = refuse_build(patch)
        assert main(pair) == 0
    assert started == ["unet", "unet"]  # what held its weights itself too
    assert data_files(out) == ["unet.onnx.data"]
    assert damage(out) == []
    largest = (out / "unet.onnx.data").stat().st_size
    assert (out / "unet.dense.onnx").stat().st_size < largest
    started = refuse_build(monkeypatch)
    assert main(pair) == 0
    assert main(unet) == 0  # weights that lie apart are no reason to build
    assert started == []
    assert data_files(out) == ["unet.onnx.data"]
    assert damage(out) == []


@pytest.mark.slow
def test_only_shared_weights_lie_apart(pipeline: Path, tmp_path: Path) -> None:
    out = tmp_path / "b"
    assert main(arguments(pipeline, out, "-q", "-r", "48x32")) == 0
    assert read_bundle(out).resolutions == ["32x32", "48x32"]
    assert data_files(out) == ["unet.onnx.data", "vae_decoder.onnx.data"]
