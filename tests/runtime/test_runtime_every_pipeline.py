"""Bundles of pipelines beyond Stable Diffusion: `generate` draws what the torch pipeline draws."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from typer.testing import CliRunner
from zoo_bundles import PLACES, Pooled, call, command, made, zoo

import todo_compile
from todo_compile.bundle.bundle import read_bundle
from todo_compile.cli.app import app
from todo_compile.errors import BundleError, ConfigError, InputError, ModelError
from todo_compile.progress import SilentProgress
from todo_compile.runtime.generate import generate

ELSEWHERE = ("sd3", "qwen_image", "kandinsky3", "svd")  # here, _texts and _videos
SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in PLACES if name not in ELSEWHERE]


def drawn(name: str, pipeline: Any, bundle: Path, out: Path) -> Any:
    """By the command, as `call` says."""
    given = call(pipeline, name)
    words: list[object] = ["--prompt", given["prompt"], "--steps", given["steps"]]
    if "image" in given:
        given["image"].save(out.with_suffix(".start.png"))
        words += ["--image", out.with_suffix(".start.png")]
    if tensors := {key: value for key, value in given.items() if isinstance(value, torch.Tensor)}:
        save_file(tensors, out.with_suffix(".safetensors"))
        words += ["--tensors", out.with_suffix(".safetensors")]
    command("generate", "--bundle", bundle, *words, "--out", out)
    return np.asarray(Image.open(out), dtype=np.float32) / 255


def check(name: str, pipeline: Any, bundle: Path, out: Path) -> None:
    dense = generate(pipeline, **call(pipeline, name)).pixels
    with Pooled(pipeline, name) as pooled:
        expected = generate(pipeline, **call(pipeline, name)).pixels
    assert pooled.sites >= 2
    found = generate(todo_compile.load_pipeline(bundle), **call(pipeline, name))
    # The refiner starts from a picture.
    assert found.steps == (2 if name == "refiner" else call(pipeline, name)["steps"])
    assert np.abs(expected - dense).max() > 1e-3, "pooling must matter here"
    assert np.abs(found.pixels - expected).max() < 0.1 * np.abs(expected - dense).max()
    assert np.abs(drawn(name, pipeline, bundle, out) - found.pixels).max() < 0.51 / 255


def test_the_picture_is_the_torch_pipelines(sd3: tuple[Any, Path], tmp_path: Path) -> None:
    check("sd3", *sd3, tmp_path / "picture.png")


@pytest.mark.parametrize("name", SLOW)
def test_the_picture_is_the_torch_pipelines_of(name: str, tmp_path: Path) -> None:
    check(name, *made(name, tmp_path), tmp_path / "picture.png")


@pytest.mark.slow
def test_a_picture_to_look_at_of_another_shape(tmp_path: Path) -> None:
    pipeline, bundle = made("kontext", tmp_path)
    given = call(pipeline, "kontext")
    ours = todo_compile.load_pipeline(bundle)
    with pytest.raises(InputError, match=r"4192 tokens of pictures.*with 12×8 \+ 78×52"):
        generate(ours, **{**given, "image": Image.new("RGB", (128, 128))})
    del given["image"]
    with pytest.raises(InputError, match="96 tokens of pictures") as refused:
        generate(ours, **given)
    assert "as many pictures to look at" in str(refused.value)


def test_what_stays_in_torch_is_in_the_bundle_and_said(sd3: tuple[Any, Path]) -> None:
    bundle = read_bundle(sd3[1])
    assert set(bundle.components) == {
        "transformer", "vae_decoder", "text_encoder", "text_encoder_2",
    }  # fmt: skip
    assert bundle.torch["text_encoder_3"].class_name == "T5EncoderModel"
    assert "in torch       text_encoder_3 (T5EncoderModel)" in bundle.summary()
    assert "tokenizer_3/tokenizer.json" in {one.name for one in bundle.light_files}


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


def test_weights_are_copied_while_the_old_bundle_stands(
    sd3: tuple[Any, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Renewed with other weights of T5: from the old bundle to the new one files are renamed."""
    shutil.copytree(sd3[1].parent, tmp_path / "here", copy_function=os.link)
    folder, model = tmp_path / "here" / "bundle", tmp_path / "here" / "model"
    t5 = zoo.make("sd3").text_encoder_3
    t5.shared.weight.data += 1
    shutil.rmtree(model / "text_encoder_3")
    t5.save_pretrained(model / "text_encoder_3")
    copy, copied = shutil.copyfile, []

    def seen(origin: Path, goal: Path) -> None:
        copied.append((Path(origin).name, (folder / "bundle.json").is_file()))
        copy(origin, goal)

    monkeypatch.setattr(shutil, "copyfile", seen)

    def renew() -> todo_compile.BundleResult:
        return todo_compile.compile_bundle(
            str(model), res="192x128", out=folder, format="onnx", precision="fp32", factors="2",
            vae_factors="off",
        )  # fmt: skip

    assert not renew().reused
    assert copied == [("model.safetensors", True)]
    loaded = todo_compile.load_pipeline(folder)
    assert torch.equal(loaded.text_encoder_3.shared.weight, t5.shared.weight)
    assert not (folder / ".parts").exists()
    assert renew().reused
    assert len(copied) == 1


def test_what_the_pipeline_does_not_take_is_refused(sd3: tuple[Any, Path], tmp_path: Path) -> None:
    words = ["generate", "--bundle", str(sd3[1]), "--prompt", "a", "--out", str(tmp_path / "x.png")]
    start, more = tmp_path / "start.png", tmp_path / "more.safetensors"
    Image.new("RGB", (8, 8)).save(start)
    save_file({"image_embeds": torch.zeros(1, 8)}, more)
    for option, place, message in (
        ("--image", start, "StableDiffusion3Pipeline starts from no picture"),
        ("--tensors", more, "StableDiffusion3Pipeline takes no image_embeds"),
    ):
        found = CliRunner().invoke(app, [*words, option, str(place)])
        assert isinstance(found.exception, ConfigError)
        assert message in str(found.exception)


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
    short = {**given, "encoder_hidden_states": torch.zeros(2, 100, 32)}
    with pytest.raises(InputError, match=r"passes 100 tokens of text; .* with 333\.") as caught:
        pipeline.transformer(**short)
    assert "--text-tokens 100" in str(caught.value.remedy)
    del given["pooled_projections"]
    with pytest.raises(InputError, match="no pooled_projections"):
        pipeline.transformer(**given)


def test_stages_are_refused(tmp_path: Path) -> None:
    folder = zoo.save(zoo.make("karlo"), tmp_path / "karlo")
    with pytest.raises(ModelError, match="UnCLIPPipeline draws in several stages"):
        todo_compile.compile_bundle(str(folder), res=64, out=tmp_path / "bundle")


def test_t2i_adapters_are_refused_before_any_work(tmp_path: Path) -> None:
    folder = zoo.save(zoo.make("sd15"), tmp_path / "model")
    index = json.loads((folder / "model_index.json").read_text())
    index["_class_name"] = "StableDiffusionAdapterPipeline"
    (folder / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(ModelError, match="hands its UNet what a T2I-Adapter makes"):
        todo_compile.compile_bundle(str(folder), res=64, out=tmp_path / "bundle")
    assert not (tmp_path / "bundle").exists()


@pytest.mark.parametrize("given", [False, True])
def test_a_controlnet_that_the_unet_cannot_hear_is_told_before_any_work(
    tmp_path: Path, given: bool
) -> None:
    folder = zoo.save(zoo.make("controlled"), tmp_path / "model")
    said: list[str] = []
    progress = SilentProgress()
    progress.warn = said.append  # type: ignore[method-assign]
    out = f"{tmp_path}/bundle/"
    todo_compile.BuildRequest(
        model=str(folder), res=("64",), out=out, format="onnx", controlnet=given
    ).resolve(progress)  # fmt: skip
    assert any("--controlnet" in line for line in said) is not given
