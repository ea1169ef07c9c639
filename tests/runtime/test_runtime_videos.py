"""Videos: a bundle draws, from a text or a picture, the frames that the torch pipeline draws."""

from __future__ import annotations

import math
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import oracle
import pytest
import torch
from PIL import Image, ImageSequence
from typer.testing import CliRunner
from zoo_bundles import Pooled, command, made, zoo

import todo_compile
from todo_compile.bundle.bundle import read_bundle
from todo_compile.capture.recording.call import flatten, wrapper
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


# Frames, the video's grid in the attention that is pooled, keys of text before and after it.
TEXTS: dict[str, tuple[int, tuple[int, ...], int, int]] = {
    "ltx": (9, (5, 8, 12), 0, 0),
    "wan": (9, (3, 4, 6), 0, 0),
    "latte": (2, (4, 6), 0, 0),
    "hunyuan_video": (9, (3, 4, 6), 0, 256),
    "cogvideox": (9, (3, 4, 6), 226, 0),
}
SLOW = [name if name == "ltx" else pytest.param(name, marks=pytest.mark.slow) for name in TEXTS]


@contextmanager
def pooled_denoiser(pipeline: Any, segments: Any) -> Generator[list[int]]:
    """The oracle in a pipeline's denoiser alone; see `oracle.pooled_fused_attention`."""
    denoiser, seen = pipeline.transformer, []
    forward = denoiser.forward

    def run(*args: Any, **kwargs: Any) -> Any:
        with oracle.pooled_fused_attention(segments, "nearest") as some:
            found = forward(*args, **kwargs)
        seen.extend(some)
        return found

    denoiser.forward = run
    try:
        yield seen
    finally:
        del denoiser.forward


@pytest.mark.parametrize("name", SLOW)
def test_a_video_of_a_text_is_the_torch_pipelines(name: str, tmp_path: Path) -> None:
    frames, grid, ahead, behind = TEXTS[name]
    pipeline, bundle = made(name, tmp_path, "--frames", frames)
    call: dict[str, Any] = {"steps": 2, "resolution": Resolution(96, 64)}
    dense = generate(pipeline, "a b a", frames=frames, **call).pixels
    with pooled_denoiser(
        pipeline, {math.prod(grid) + ahead + behind: (ahead, grid, (2, 2))}
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


def test_masks_of_numbers_are_boolean_in_a_recorded_call() -> None:
    counts, added = torch.tensor([[1.0, 1.0, 0.0]]), torch.tensor([[0.0, 0.0, -1e4]])
    flat = flatten({"x": torch.ones(1, 3), "mask": counts, "bias_mask": torch.zeros(1, 3)})
    assert flat.by_name["mask"].dtype is torch.bool
    assert flat.masks == {"mask": torch.float32}
    seen: dict[str, torch.Tensor] = {}

    class Denoiser(torch.nn.Module):
        def forward(self, **given: torch.Tensor) -> torch.Tensor:
            seen.update(given)
            return given["x"]

    wrapper(flat, "unet", "Denoiser")(Denoiser())(*flat.tensors)
    assert torch.equal(seen["mask"], counts)
    assert seen["mask"].dtype is torch.float32
    assert flatten({"mask": added}).masks == {}
