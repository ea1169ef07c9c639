"""Bundles of pipelines beyond Stable Diffusion: `generate` draws what the torch pipeline draws."""

from __future__ import annotations

import inspect
import sys
from pathlib import Path
from typing import Any

import numpy as np
import oracle
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch.overrides import TorchFunctionMode
from typer.testing import CliRunner

import todo_compile
from todo_compile.bundle.bundle import read_bundle
from todo_compile.errors import BundleError, ConfigError, InputError, ModelError
from todo_compile.models import Resolution
from todo_compile.runtime.generate import generate

sys.path.append(str(Path(__file__).parents[1] / "models"))

import pipeline_zoo as zoo

GRID = (8, 12)  # patches of 2×2 cells of 8×8 pixels
SIZES = {"deepfloyd": "48x32"}
# (grid, text first) where a factor of 2 is asked for; keys are the picture's tokens and text.
PLACES = {
    "sd3": (GRID, False),
    "flux": (GRID, True),
    "pixart": (GRID, None),
    "deepfloyd": ((16, 24), True),
    "kandinsky22": (GRID, True),
    "refiner": ((16, 24), None),
}
SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in PLACES if name != "sd3"]


class Pooled(TorchFunctionMode):
    """A torch denoiser's attention over the picture, its keys and values subsampled by 2."""

    def __init__(self, pipeline: Any, name: str) -> None:
        super().__init__()
        self.grid, self.text_first = PLACES[name]
        self.sites, self.inside = 0, False
        denoiser = getattr(pipeline, "unet", None) or pipeline.transformer
        denoiser.register_forward_pre_hook(lambda *_: setattr(self, "inside", True))
        denoiser.register_forward_hook(lambda *_: setattr(self, "inside", False))

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func is F.scaled_dot_product_attention and self.inside:
            given = {**dict(zip(("query", "key", "value"), args, strict=False)), **(kwargs or {})}
            query, key, value = (given.pop(name) for name in ("query", "key", "value"))
            tokens, keys = self.grid[0] * self.grid[1], key.shape[-2]
            text = keys - tokens
            if query.shape[-2] in (keys, tokens) and (
                text == 0 if self.text_first is None else text > 0
            ):
                self.sites += 1
                offset = text if self.text_first else 0
                key, value = (
                    oracle.stand_ins(t, t.dim() - 2, self.grid, (2, 2), "nearest", offset)
                    for t in (key, value)
                )
            args, kwargs = (query, key, value), given
        return func(*args, **(kwargs or {}))


def call(pipeline: Any, name: str) -> dict[str, Any]:
    size = Resolution.parse(SIZES.get(name, "192x128"))
    known = inspect.signature(type(pipeline).__call__).parameters
    more: dict[str, Any] = {
        "image": Image.new("RGB", (size.width, size.height), (128, 90, 30)),
        "image_embeds": torch.ones(1, 32),
        "negative_image_embeds": torch.zeros(1, 32),
    }
    given = {key: value for key, value in more.items() if key in known}
    return {"prompt": "a b a", "steps": 8 if "image" in given else 3, "resolution": size, **given}


@pytest.fixture(scope="module")
def sd3(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    return made("sd3", tmp_path_factory.mktemp("sd3"))


def made(name: str, root: Path) -> tuple[Any, Path]:
    """The torch pipeline, and a bundle of it with factor 2 (the decoder dense)."""
    pipeline = zoo.make(name)
    for module in pipeline.components.values():
        for key, weight in module.named_parameters() if isinstance(module, torch.nn.Module) else ():
            if key.endswith(("to_q.weight", "to_k.weight")):
                weight.data *= 3  # attention far from uniform
    todo_compile.compile_bundle(
        str(zoo.save(pipeline, root / "model")), res=SIZES.get(name, "192x128"),
        out=root / "bundle", format="onnx", precision="fp32", factors="2", vae_factors="off",
    )  # fmt: skip
    return pipeline, root / "bundle"


def check(name: str, pipeline: Any, bundle: Path) -> None:
    loaded = todo_compile.load_pipeline(bundle)
    dense = generate(pipeline, **call(pipeline, name)).pixels
    with Pooled(pipeline, name) as pooled:
        expected = generate(pipeline, **call(pipeline, name)).pixels
    assert pooled.sites >= 2
    found = generate(loaded, **call(loaded, name))
    assert found.steps == (2 if name == "refiner" else 3)  # it starts from a picture
    assert np.abs(expected - dense).max() > 1e-3, "pooling must matter here"
    assert np.abs(found.pixels - expected).max() < 0.1 * np.abs(expected - dense).max()


def test_the_picture_is_the_torch_pipelines(sd3: tuple[Any, Path]) -> None:
    check("sd3", *sd3)


@pytest.mark.parametrize("name", SLOW)
def test_the_picture_is_the_torch_pipelines_of(name: str, tmp_path: Path) -> None:
    check(name, *made(name, tmp_path))


def test_what_stays_in_torch_is_in_the_bundle_and_said(sd3: tuple[Any, Path]) -> None:
    bundle = read_bundle(sd3[1])
    assert set(bundle.components) == {
        "transformer", "vae_decoder", "text_encoder", "text_encoder_2",
    }  # fmt: skip
    assert bundle.torch["text_encoder_3"].class_name == "T5EncoderModel"
    assert "in torch       text_encoder_3 (T5EncoderModel)" in bundle.summary()
    assert "tokenizer_3/tokenizer.json" in {extra.name for extra in bundle.extras}


def test_weights_in_torch_are_checked_too(sd3: tuple[Any, Path]) -> None:
    file = sd3[1] / read_bundle(sd3[1]).torch["text_encoder_3"].files[0].name
    before = file.read_bytes()
    try:
        file.write_bytes(before[:-1] + bytes([before[-1] ^ 1]))
        with pytest.raises(BundleError, match=r"text_encoder_3/model\.safetensors was changed"):
            todo_compile.load_pipeline(sd3[1])
        file.unlink()
        with pytest.raises(BundleError, match=r"text_encoder_3/model\.safetensors is missing"):
            todo_compile.load_pipeline(sd3[1], verify="size")
    finally:
        file.write_bytes(before)


def test_an_equal_request_keeps_the_bundle(sd3: tuple[Any, Path]) -> None:
    found = todo_compile.compile_bundle(
        str(sd3[1].parent / "model"), res="192x128", out=sd3[1], format="onnx", precision="fp32",
        factors="2", vae_factors="off",
    )  # fmt: skip
    assert found.reused


def test_the_command_draws(sd3: tuple[Any, Path], tmp_path: Path) -> None:
    from todo_compile.cli.app import app

    out = tmp_path / "picture.png"
    words = ["generate", "--bundle", str(sd3[1]), "--prompt", "a b a", "--steps", "3"]
    found = CliRunner().invoke(app, [*words, "--out", str(out)])
    assert found.exit_code == 0, found.output
    with Pooled(sd3[0], "sd3"):
        expected = generate(sd3[0], **call(sd3[0], "sd3")).pixels
    drawn = np.asarray(Image.open(out), dtype=np.float32) / 255
    assert np.abs(drawn - expected).max() < 0.01
    start = tmp_path / "start.png"
    Image.new("RGB", (8, 8)).save(start)
    refused = CliRunner().invoke(app, [*words, "--image", str(start), "--out", str(out)])
    assert isinstance(refused.exception, ConfigError) or "no picture" in refused.output


def test_other_constants_are_refused(sd3: tuple[Any, Path]) -> None:
    pipeline = todo_compile.load_pipeline(sd3[1])
    given: dict[str, Any] = {
        "hidden_states": torch.zeros(2, 4, 16, 24),
        "timestep": torch.zeros(2),
        "encoder_hidden_states": torch.zeros(2, 154, 32),
        "pooled_projections": torch.zeros(2, 64),
        "return_dict": False,
    }
    with pytest.raises(InputError, match="skip_layers_0 = 1 instead of nothing"):
        pipeline.transformer(**given, skip_layers=[1])
    del given["pooled_projections"]
    with pytest.raises(InputError, match="no pooled_projections"):
        pipeline.transformer(**given)


def test_stages_are_refused(tmp_path: Path) -> None:
    folder = zoo.save(zoo.make("karlo"), tmp_path / "karlo")
    with pytest.raises(ModelError, match="UnCLIPPipeline is not possible yet: it draws in several"):
        todo_compile.compile_bundle(str(folder), res=64, out=tmp_path / "bundle")
