"""Bundles of pipelines beyond Stable Diffusion: `generate` draws what the torch pipeline draws."""

from __future__ import annotations

import inspect
import json
import os
import shutil
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
from todo_compile.build import verification
from todo_compile.build.gate import beyond_memory
from todo_compile.bundle.bundle import read_bundle
from todo_compile.capture.inputs import example_inputs, with_habits
from todo_compile.cli.app import app
from todo_compile.drift.recorded import recorded_probes
from todo_compile.errors import BundleError, ConfigError, InputError, ModelError, TodoError
from todo_compile.models import Resolution, WeightsChoice, find_weights, load, resolve_component
from todo_compile.options import PlanOptions
from todo_compile.runtime.generate import generate
from todo_compile.runtime.metrics import mse
from todo_compile.tuning.prompts import GENERAL, split
from todo_compile.tuning.studio import Pair, Sampling, call_pipeline, drawn_from_prompts

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


def test_without_a_bundle(sd3: tuple[Any, Path], tmp_path: Path) -> None:
    """`generate --model`: the denoiser rewritten in torch, in its own pipeline."""
    from todo_compile.cli.generate import _parts
    from todo_compile.runtime.in_process import rewrite_pipeline

    pipeline, bundle = sd3
    source = with_habits(resolve_component(str(bundle.parent / "model")))
    ours = type(pipeline)(**_parts(pipeline))
    report = rewrite_pipeline(
        ours, source, Resolution.parse("192x128"), batch=2, options=PlanOptions.create(factors="2")
    )
    assert report.rewritten == 2
    dense = generate(pipeline, **call(pipeline, "sd3")).pixels
    with Pooled(pipeline, "sd3"):
        expected = generate(pipeline, **call(pipeline, "sd3")).pixels
    found = generate(ours, **call(ours, "sd3")).pixels
    assert np.abs(found - expected).max() < 0.05 * np.abs(expected - dense).max()
    out = tmp_path / "both.png"
    words = ["generate", "--model", str(bundle.parent / "model"), "--res", "192x128", "--prompt"]
    drawn = CliRunner().invoke(app, [*words, "a b", "--steps", "2", "--compare", "--out", str(out)])
    assert drawn.exit_code == 0, drawn.output
    assert out.is_file()


def test_drift_along_the_pipelines_own_loop(sd3: tuple[Any, Path]) -> None:
    """Both steps' inputs and errors against the real transformer in diffusers' loop."""
    pipeline, bundle = sd3
    folder, size = bundle.parent / "model", Resolution.parse("192x128")
    source = with_habits(resolve_component(str(folder)))
    weights = find_weights(source, WeightsChoice.parse("auto"), dtype=torch.float32)
    model = load(source, weights, dtype=torch.float32)
    example = example_inputs(model, size, batch=2)
    probes = recorded_probes(model, example, size, steps=2, seeds=1)
    pipeline.scheduler.set_timesteps(2)
    times = pipeline.scheduler.timesteps
    assert [probe.timestep for probe in probes] == times.tolist()
    place = example.input_names.index("hidden_states")
    first, second = (probe.args[place] for probe in probes)
    with torch.no_grad():
        outputs = [example.wrapper(*probe.args) for probe in probes]
        empty, text = outputs[0].chunk(2)
        guided = empty + 7.0 * (text - empty)  # the pipeline's default
    moved = pipeline.scheduler.step(guided, times[0], first[:1], return_dict=False)[0]
    torch.testing.assert_close(second, torch.cat([moved, moved]))
    answer = CliRunner().invoke(
        app, ["drift", "--model", str(folder), "--res", "192x128", "--factors", "2", "--steps",
              "2", "--seeds", "1", "--json", "--quiet"],
    )  # fmt: skip
    assert answer.exit_code == 0, answer.output
    said = json.loads(answer.stdout)
    assert (said["batch"], said["timesteps"], len(said["sites"])) == (2, times.tolist(), 2)
    with torch.no_grad(), Pooled(pipeline, "sd3") as pooled:
        pooled.inside = True
        for total, probe, dense in zip(said["total"], probes, outputs, strict=True):
            got = example.wrapper(*probe.args)
            expected = float((got - dense).norm() / dense.norm())
            assert expected > 1e-4
            assert total == pytest.approx(expected, rel=1e-2)


def test_what_cannot_be_measured_or_drawn_is_refused_before_weights_are_read(
    sd3: tuple[Any, Path], tmp_path: Path
) -> None:
    model = tmp_path / "model"
    shutil.copytree(sd3[1].parent / "model", model)
    for path in model.rglob("*.safetensors"):
        path.write_bytes(b"")
    words = ["--model", str(model), "--res", "192x128"]

    def refused(*more: str) -> str:
        found = CliRunner().invoke(app, [*more, *words])
        assert isinstance(found.exception, TodoError), found.output
        return str(found.exception)

    plan = str(tmp_path / "plan.json")
    assert "A tuned plan of a StableDiffusion3Pipeline is not possible yet" in refused(
        "tune", "--budget", "drift=1e-3", "--out", plan
    )
    assert "calls its denoiser with 2 rows" in refused("drift", "--batch", "3")
    karlo = zoo.save(zoo.make("karlo"), tmp_path / "karlo")
    words[1] = str(karlo)
    assert "UnCLIPPipeline draws in several stages" in refused(
        "generate", "--prompt", "a", "--out", str(tmp_path / "x.png")
    )


def test_the_command_draws(sd3: tuple[Any, Path], tmp_path: Path) -> None:
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
    with pytest.raises(ModelError, match="UnCLIPPipeline draws in several stages"):
        todo_compile.compile_bundle(str(folder), res=64, out=tmp_path / "bundle")


GATE = "drift=0.5,pairs=1,steps=2"


@pytest.fixture(scope="module")
def drift(sd3: tuple[Any, Path]) -> float:
    """What the gate has to measure."""
    pair = Pair(split(list(GENERAL))[1][0], 20_000)
    size, sampling = Resolution.parse("192x128"), Sampling(2, 3.0)
    ((found,), (dense,)) = (
        call_pipeline(pipe, [pair], sampling, size)
        for pipe in (todo_compile.load_pipeline(sd3[1]), sd3[0])
    )
    assert mse(found, dense) > 0
    return mse(found, dense)


def test_a_gate_draws_with_the_bundles_files(sd3: tuple[Any, Path], drift: float) -> None:
    folder = sd3[1]
    given = {"out": f"{folder}/", "format": "onnx", "vae_factors": "off"}
    made: Any = todo_compile.compile(gate=GATE, **options(folder.parent / "model", **given))
    (verdict,) = read_bundle(folder).gates
    assert verdict.runner == "onnxruntime"
    assert all(one.reused for one in made.results.values()), "nothing is built again for a gate"
    assert verdict.measured.drift.mean == pytest.approx(drift, rel=1e-2)


def test_a_gate_that_torch_judges(
    sd3: tuple[Any, Path], drift: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As of engines, which do not run here: the rewritten graph draws in the torch pipeline."""
    monkeypatch.setattr(verification, "available_bytes", lambda: 0)
    made: Any = todo_compile.compile(
        gate=GATE, **options(sd3[1].parent / "model", out=tmp_path / "x.onnx")
    )
    verdict = made.manifest.gate
    assert (verdict.runner, verdict.why) == ("torch", beyond_memory([made.manifest]))
    assert verdict.measured.drift.mean == pytest.approx(drift, rel=1e-2)


def test_which_pipelines_draw_from_prompts_alone() -> None:
    able = ("StableDiffusion3Pipeline", "FluxPipeline", "PixArtSigmaPipeline", "Flux2KleinPipeline")
    assert all(map(drawn_from_prompts, able))
    for name in ("StableDiffusionXLImg2ImgPipeline", "IFSuperResolutionPipeline", "DiTPipeline",
                 "AnimateDiffPipeline", "FluxKontextPipeline", "NoPipeline"):  # fmt: skip
        assert not drawn_from_prompts(name)


def test_a_size_is_drawn_as_it_is() -> None:
    """PixArt's pipelines would draw the nearest size that they know."""
    pipeline = zoo.make("pixart")
    size = Resolution.parse("192x128")
    (picture,) = call_pipeline(pipeline, [Pair("a b", 0)], Sampling(1, 3.0), size)
    assert picture.shape == (128, 192, 3)


def options(model: Path, **more: Any) -> dict[str, Any]:
    return {"model": str(model), "res": "192x128", "precision": "fp32", "factors": "2", **more}
