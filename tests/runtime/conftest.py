"""A tiny pipeline on disk, its components compiled once, and a bundle of them."""

from __future__ import annotations

from pathlib import Path

import pytest
import tiny_pipelines as tiny
from tiny_bundles import compiled, entry, make_bundle

from todo_compile.config import PlanOptions


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny Stable Diffusion, saved."""
    folder = tmp_path_factory.mktemp("tiny") / "sd"
    tiny.sd().save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def bundle(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All components, and a dense twin that takes over after half of the steps. Not to change."""
    folder = tmp_path_factory.mktemp("bundle")
    files = {
        name: compiled(model, folder / f"{name}.onnx", name)
        for name in ("unet", "vae_decoder", "text_encoder")
    }
    off = PlanOptions.create(factors="off")
    dense = compiled(model, folder / "unet.dense.onnx", options=off)
    return make_bundle(folder, model, files, dense={"unet": entry(dense)}, dense_after=0.5)


@pytest.fixture
def unet_file(bundle: Path) -> Path:
    return bundle / "unet.onnx"
