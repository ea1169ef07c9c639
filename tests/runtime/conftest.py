"""A tiny pipeline on disk, its components compiled once, and a bundle of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tiny_pipelines as tiny
from zoo_bundles import made

import todo_compile
from todo_compile.options import PlanOptions


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny Stable Diffusion, saved."""
    folder = tmp_path_factory.mktemp("tiny") / "sd"
    tiny.sd().save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def bundle(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All components, and a dense twin that takes over after half of the steps. Not to change."""
    folder = tmp_path_factory.mktemp("bundle") / "sd"
    todo_compile.compile_bundle(
        str(model),
        res=tiny.PIXELS,
        out=folder,
        format="onnx",
        precision="fp32",
        dense_after=0.5,
        # Trained at 256 tokens, so by default the decoder would stay dense.
        vae_options=PlanOptions.create(kv_tokens=64),
    )
    return folder


@pytest.fixture(scope="session")
def sd3(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    """The tiny Stable Diffusion 3 in torch, and a bundle of it beside its folder ``model``."""
    return made("sd3", tmp_path_factory.mktemp("sd3"))


@pytest.fixture
def unet_file(bundle: Path) -> Path:
    return bundle / "unet.onnx"
