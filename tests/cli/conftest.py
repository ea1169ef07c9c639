"""A tiny UNet checkpoint, and outputs that are built once for all tests."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from tiny_pipeline import make_rest, make_unet

from todo_compile.cli.app import main


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pipeline's folder with a UNet trained at 4×4 latent cells: 16 key tokens."""
    folder = tmp_path_factory.mktemp("tiny") / "pipeline"
    make_unet(folder)
    return folder


@pytest.fixture(scope="session")
def onnx_output(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """fp32 at 64 px (8×8 tokens), verified. Copy it before changing it."""
    out = tmp_path_factory.mktemp("onnx") / "x.onnx"
    arguments = ["-m", str(model), "-r", "64", "-o", str(out), "--precision", "fp32"]
    assert main([*arguments, "--verify"]) == 0
    return out


@pytest.fixture(scope="session")
def pipeline(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole tiny pipeline around that UNet: VAE of 4 pixels a cell trained at 16×16, CLIP."""
    folder = tmp_path_factory.mktemp("whole") / "pipeline"
    shutil.copytree(model, folder)
    make_rest(folder)
    return folder


@pytest.fixture(scope="session")
def onnx_bundle(pipeline: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """fp32 at 32 px (8×8 latent cells), verified. Copy it before changing it."""
    out = tmp_path_factory.mktemp("bundle") / "bundle"
    arguments = ["-m", str(pipeline), "-r", "32", "-o", f"{out}/", "--precision", "fp32"]
    assert main([*arguments, "--format", "onnx", "--verify", "-q"]) == 0
    return out


@pytest.fixture(autouse=True)
def no_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)


@pytest.fixture
def bundle(onnx_bundle: Path, tmp_path: Path) -> Path:
    """A copy of the built bundle."""
    return Path(shutil.copytree(onnx_bundle, tmp_path / "copy"))


@pytest.fixture
def output(onnx_output: Path, tmp_path: Path) -> Path:
    """A copy of the built output, in another folder."""
    folder = tmp_path / "moved"
    shutil.copytree(onnx_output.parent, folder)
    return folder / onnx_output.name
