"""Videos: a bundle draws, from a text or a picture, the frames that the torch pipeline draws."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import oracle
import pytest
from PIL import Image, ImageSequence
from typer.testing import CliRunner
from zoo_bundles import Pooled, command, made, zoo

import todo_compile
from todo_compile.bundle.bundle import read_bundle
from todo_compile.cli.app import app
from todo_compile.errors import ConfigError, InputError
from todo_compile.models import Resolution
from todo_compile.models.torch_parts import is_needed
from todo_compile.runtime.generate import generate


def test_parts_that_a_pipeline_draws_from_are_kept() -> None:
    assert is_needed("StableVideoDiffusionPipeline", "image_encoder")
    assert is_needed("StableVideoDiffusionPipeline", "feature_extractor")
    assert not is_needed("StableDiffusionPipeline", "image_encoder")
    assert not is_needed("StableDiffusionPipeline", "feature_extractor")  # of the safety checker
    assert not is_needed("FluxPipeline", "image_encoder")


# Frames, (keys before the video's, its grid) of the attention that is pooled.
TEXTS: dict[str, tuple[int, int, tuple[int, ...]]] = {
    "ltx": (9, 0, (5, 8, 12)),
    "wan": (9, 0, (3, 4, 6)),
    "latte": (2, 0, (4, 6)),
}
SLOW = [name if name == "ltx" else pytest.param(name, marks=pytest.mark.slow) for name in TEXTS]


@pytest.mark.parametrize("name", SLOW)
def test_a_video_of_a_text_is_the_torch_pipelines(name: str, tmp_path: Path) -> None:
    frames, before, grid = TEXTS[name]
    pipeline, bundle = made(name, tmp_path, "--frames", frames)
    call: dict[str, Any] = {"steps": 2, "resolution": Resolution(96, 64)}
    dense = generate(pipeline, "a b a", frames=frames, **call).pixels
    with oracle.pooled_fused_attention(
        {before + math.prod(grid): (before, grid, (2, 2))}, "nearest"
    ) as pooled:
        truth = generate(pipeline, "a b a", frames=frames, **call).pixels
    assert pooled
    loaded = todo_compile.load_pipeline(bundle)
    found = generate(loaded, "a b a", **call).pixels
    assert found.shape == (frames, 64, 96, 3)
    assert np.abs(truth - dense).max() > 1e-3, "pooling must matter here"
    assert np.abs(found - truth).max() < 0.1 * np.abs(truth - dense).max()
    if name != "ltx":
        return
    command(
        "generate", "--bundle", bundle, "--prompt", "a b a", "--steps", 2, "--out",
        tmp_path / "x.webp",
    )  # fmt: skip
    drawn = ImageSequence.all_frames(Image.open(tmp_path / "x.webp"))
    assert len(drawn) == frames
    assert np.abs(np.asarray(drawn[-1], dtype=np.float32) / 255 - found[-1]).max() < 0.51 / 255
    with pytest.raises(ConfigError, match="built for 9 frames, not for 17") as caught:
        generate(loaded, "a", frames=17, **call)
    assert "--frames 17" in str(caught.value.remedy)
    with pytest.raises(InputError, match="96x64 px, batch 2, 9 frames"):  # by diffusers' own way
        loaded("a", num_frames=17, height=64, width=96, num_inference_steps=1)


def test_frames_of_pictures_are_refused(tmp_path: Path) -> None:
    folder = zoo.save(zoo.make("sd3"), tmp_path / "model")
    with pytest.raises(ConfigError, match="StableDiffusion3Pipeline draws no video"):
        todo_compile.plan(str(folder), res="192x128", frames=9)
    with pytest.raises(ConfigError, match="StableDiffusionPipeline draws no video"):
        todo_compile.plan("sd15", res=512, frames=9)
    with pytest.raises(ConfigError, match="A video of 0 frames is not possible"):
        todo_compile.plan(str(folder), res="192x128", frames=0)


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
