"""Stable Video Diffusion: a bundle draws from a picture what the torch pipeline draws."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageSequence
from typer.testing import CliRunner
from zoo_bundles import Pooled, command, made

import todo_compile
from todo_compile.bundle.bundle import read_bundle
from todo_compile.cli.app import app
from todo_compile.errors import ConfigError
from todo_compile.models import Resolution
from todo_compile.models.torch_parts import is_needed
from todo_compile.runtime.generate import generate


def test_parts_that_a_pipeline_draws_from_are_kept() -> None:
    assert is_needed("StableVideoDiffusionPipeline", "image_encoder")
    assert is_needed("StableVideoDiffusionPipeline", "feature_extractor")
    assert not is_needed("StableDiffusionPipeline", "image_encoder")
    assert not is_needed("StableDiffusionPipeline", "feature_extractor")  # of the safety checker
    assert not is_needed("FluxPipeline", "image_encoder")


@pytest.mark.slow
def test_a_video_is_the_torch_pipelines(tmp_path: Path) -> None:
    pipeline, bundle = made("svd", tmp_path)
    described = read_bundle(bundle)
    assert {"image_encoder", "vae"} <= set(described.torch)
    noise = np.random.default_rng(0).integers(0, 255, (128, 192, 3), dtype=np.uint8)
    start = Image.fromarray(noise)
    call: dict[str, Any] = {"steps": 2, "resolution": Resolution(192, 128), "image": start}
    dense = generate(pipeline, "", **call).pixels
    with Pooled(pipeline, "svd") as pooled:
        truth = generate(pipeline, "", **call).pixels
    assert pooled.sites
    found = generate(todo_compile.load_pipeline(bundle), "", **call).pixels
    assert found.shape == (2, 128, 192, 3)
    assert np.abs(truth - dense).max() > 1e-3
    assert np.abs(found - truth).max() < 0.1 * np.abs(truth - dense).max()

    start.save(tmp_path / "start.png")
    words = ["--bundle", bundle, "--prompt", "", "--steps", "2", "--image", tmp_path / "start.png"]
    command("generate", *words, "--out", tmp_path / "x.webp")
    frames = ImageSequence.all_frames(Image.open(tmp_path / "x.webp"))
    drawn = np.stack([np.asarray(one.convert("RGB"), dtype=np.float32) / 255 for one in frames])
    assert np.abs(drawn - found).max() < 0.51 / 255
    for given, says in (
        ([*words, "--out", tmp_path / "x.png"], "would hold one picture"),
        ([*words, "--compare", "--out", tmp_path / "y.webp"], "--compare is for pictures"),
        ([*words[:-2], "--out", tmp_path / "y.webp"], "draws from a picture"),
    ):
        done = CliRunner().invoke(app, ["generate", *map(str, given)])
        assert isinstance(done.exception, ConfigError)
        assert says in str(done.exception)
    assert not (tmp_path / "x.png").exists()
