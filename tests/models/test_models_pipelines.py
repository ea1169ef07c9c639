"""What a denoiser is called with, read off its pipeline: against the real pipelines, tiny."""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import Any

import pipeline_zoo as zoo
import pytest
import torch

import todo_compile
from todo_compile.capture.inputs import ExampleInputs, example_inputs, with_pipeline_defaults
from todo_compile.capture.recording.call import flatten
from todo_compile.capture.recording.words import prompt
from todo_compile.errors import ConfigError, ModelError
from todo_compile.models import LoadedModel, Resolution, load, resolve_component, with_text_tokens
from todo_compile.options import PlanOptions

QUICK = ["sd3", "flux", "flux2", "deepfloyd", "kandinsky22", "refiner", "qwen_image"]
SLOW = [
    "schnell", "kontext", "chroma", "z_image", "hunyuan_dit", "aura_flow", "lumina", "sana",
    "deepfloyd_2", "svd", "cascade", "kandinsky3", "animate_diff",
    "kolors",
]  # fmt: skip
SIDES = {"deepfloyd": (48, 32), "deepfloyd_2": (64, 32), "qwen_image": (96, 64)}
# Made by networks, which the recording has without weights.
RANDOM = {
    "encoder_hidden_states", "encoder_hidden_states_t5", "pooled_projections", "text_embeds",
    "cap_feats_0", "cap_feats_1", "image_embeds", "clip_text_pooled", "effnet",
}  # fmt: skip


class Stop(BaseException):
    pass


def size(name: str) -> Resolution:
    return Resolution(*SIDES.get(name, (192, 128)))


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Saved pipelines by family, made when first asked for."""
    root, made = tmp_path_factory.mktemp("zoo"), {}

    def folder(name: str) -> Path:
        if name not in made:
            made[name] = zoo.make(name)
            zoo.save(made[name], root / name)
        return root / name

    found: Any = folder
    found.pipelines = made
    return found


def intercepted(pipeline: Any, name: str, call: dict[str, Any]) -> dict[str, Any]:
    """Arguments of the first call of the pipeline's denoiser."""
    denoiser = next(
        part for key in ("unet", "transformer", "decoder")
        if (part := pipeline.components.get(key)) is not None
    )  # fmt: skip
    seen: dict[str, Any] = {}

    def hook(module: Any, args: Any, kwargs: Any) -> None:
        signature = inspect.signature(type(module).forward)
        seen.update(signature.bind(module, *args, **kwargs).arguments)
        raise Stop

    handle = denoiser.register_forward_pre_hook(hook, with_kwargs=True)
    try:
        pipeline(**call)
    except Stop:
        pass
    finally:
        handle.remove()
    del seen["self"]
    assert seen, f"{name} was not called"
    return seen


def ordinary_call(pipeline: Any, name: str) -> dict[str, Any]:
    """What a user would call the pipeline with for a picture of `size`."""
    from PIL import Image

    known = inspect.signature(type(pipeline).__call__).parameters
    wanted = size(name)
    call: dict[str, Any] = {
        "prompt": prompt(),
        "negative_prompt": prompt(),
        "height": wanted.height,
        "width": wanted.width,
        "image": Image.new("RGB", (wanted.width, wanted.height), (128, 128, 128)),
        "image_embeds": torch.ones(1, 32),
        "negative_image_embeds": torch.ones(1, 32),
        "image_embeddings": torch.ones(1, 16, 3, 5),
        "generator": torch.Generator().manual_seed(0),
        "max_area": wanted.height * wanted.width,
        "use_resolution_binning": False,
    }
    if name == "flux2":
        del call["image"]  # it would be edited
    return {key: value for key, value in call.items() if key in known}


def recorded(folder: Path, name: str, batch: int | None = None) -> ExampleInputs:
    source = with_pipeline_defaults(resolve_component(str(folder)))
    assert source.pipeline_defaults is not None
    model = LoadedModel(torch.nn.Identity(), source, torch.float32, None, None, 0)
    return example_inputs(model, size(name), batch=batch or source.pipeline_defaults.batch)


@pytest.mark.parametrize("name", [*QUICK, *(pytest.param(n, marks=pytest.mark.slow) for n in SLOW)])
def test_recorded_inputs_are_those_of_the_real_pipeline(folders: Any, name: str) -> None:
    if name == "kolors":
        pytest.importorskip("sentencepiece")  # diffusers has this pipeline beside it alone
    found = recorded(folders(name), name)
    pipeline = folders.pipelines[name]
    real = flatten(intercepted(pipeline, name, ordinary_call(pipeline, name)))
    added = {"qwen_image": "encoder_hidden_states_mask"}.get(name)  # shorter texts are filled up
    own = [spec for spec in found.specs if spec.name != added]
    assert added is None or added in found.input_names
    assert tuple(spec.name for spec in own) == real.names
    assert [tuple(s.shape) for s in own] == [tuple(t.shape) for t in real.tensors]
    assert [s.dtype for s in own] == [t.dtype for t in real.tensors]
    # Noise, positions, times, sizes and masks are made by the pipeline's code in both. An encoded
    # picture lies beside the noise in some.
    mixed = name in ("refiner", "kontext", "svd", "deepfloyd_2")
    image = {*found.image_axes, "hidden_states"} if mixed else set()
    mine = dict(zip(found.input_names, found.args, strict=True))
    for key, other in zip(real.names, real.tensors, strict=True):
        if key not in RANDOM | image:
            assert torch.equal(mine[key], other), key


def test_the_image_is_found_by_where_its_noise_is(folders: Any) -> None:
    assert recorded(folders("sd3"), "sd3").image_axes == {"hidden_states": (2, 3)}
    flux = recorded(folders("flux"), "flux")
    assert flux.image_axes == {}
    assert flux.token_grids == {96: (8, 12)}  # 128×192 pixels, 8 a cell, 2×2 cells a token


def test_several_pictures_in_one_sequence_each_have_their_grid(folders: Any) -> None:
    found = recorded(folders("kontext"), "kontext")
    # Kontext scales a picture of 3:2 that it is to look at to 1248×832: 78×52 tokens of 16 pixels.
    assert found.token_grids == {96 + 4056: ((8, 12), (52, 78))}
    assert found.image_axes == {}
    ids = found.args[found.input_names.index("img_ids")]
    for part, number, grid in ((ids[:96], 0, (8, 12)), (ids[96:], 1, (52, 78))):
        places = torch.cartesian_prod(torch.arange(grid[0]), torch.arange(grid[1])).float()
        assert torch.equal(part[:, 1:], places), "the tables of positions say the same"
        assert part[:, 0].eq(number).all()


@pytest.mark.parametrize("batch", [1, 3])
def test_other_batches_are_rows_of_more_pictures(folders: Any, batch: int) -> None:
    found = recorded(folders("sd3"), "sd3", batch)
    shapes = dict(zip(found.input_names, (s.shape for s in found.specs), strict=True))
    assert {n: shape[0] for n, shape in shapes.items()} == dict.fromkeys(shapes, batch)


def test_defaults_are_the_pipelines_own(folders: Any) -> None:
    sd3 = with_pipeline_defaults(resolve_component(str(folders("sd3")))).pipeline_defaults
    flux = with_pipeline_defaults(resolve_component(str(folders("flux")))).pipeline_defaults
    assert sd3 is not None
    assert (sd3.batch, sd3.native.latent, sd3.native.kv_tokens) == (2, (16, 16), 64)
    assert flux is not None
    assert (flux.batch, flux.native.kv_tokens) == (1, 64 * 64)  # FLUX draws 1024 pixels by itself


@pytest.mark.parametrize("name", ["sd3", "flux"])
def test_text_of_another_length(folders: Any, name: str) -> None:
    folder = str(folders(name))
    source = with_pipeline_defaults(with_text_tokens(resolve_component(folder), 177))
    model = LoadedModel(torch.nn.Identity(), source, torch.float32, None, None, 0)
    found = example_inputs(model, size(name), batch=2)
    text = found.specs[found.input_names.index("encoder_hidden_states")]
    assert text.shape[1] == 177  # of SD3 CLIP's 77 and 100 of T5


def test_a_pipeline_without_text_has_no_length_of_it(folders: Any) -> None:
    with pytest.raises(ConfigError, match="passes no text"):
        todo_compile.plan(str(folders("kandinsky22")), res=64, text_tokens=77)


def test_pixel_space_is_planned_in_pixels(folders: Any) -> None:
    report = todo_compile.plan(str(folders("deepfloyd")), res=64, precision="fp32")
    grids = {row.grid for row in report.sites if row.action == "rewritten"}
    assert grids == {(32, 32)}  # 64 pixels, halved once


def test_a_size_that_would_be_drawn_at_another_is_refused(folders: Any) -> None:
    with pytest.raises(ConfigError, match="multiples of 16") as refused:
        todo_compile.plan(str(folders("flux")), res=120, precision="fp32")
    assert "112x112 or 128x128" in str(refused.value)


def test_all_attention_of_the_model_is_in_the_report(folders: Any) -> None:
    """Counted independently: in the real denoiser's eager run."""
    folder = folders("sd3")
    model = folders.pipelines["sd3"].transformer
    source = with_pipeline_defaults(resolve_component(str(folder)))
    found = example_inputs(
        LoadedModel(model, source, torch.float32, None, None, 0), size("sd3"), batch=2
    )
    calls = 0
    original = torch.nn.functional.scaled_dot_product_attention

    def counted(*args: Any, **kwargs: Any) -> torch.Tensor:
        nonlocal calls
        calls += 1
        return original(*args, **kwargs)

    torch.nn.functional.scaled_dot_product_attention = counted
    try:
        found.wrapper(*found.args)
    finally:
        torch.nn.functional.scaled_dot_product_attention = original
    report = todo_compile.plan(
        str(folder), res=str(size("sd3")), precision="fp32", options=PlanOptions.create(factors="2")
    )
    assert len(report.sites) == calls == report.rewritten


@pytest.mark.parametrize(
    "name",
    [
        "flux",
        *(
            pytest.param(n, marks=pytest.mark.slow)
            for n in (
                "sd3",
                "pixart",
                "deepfloyd",
                "kandinsky22",
                "refiner",
                "hunyuan_dit",
                "z_image",
            )
        ),
    ],
)
def test_onnx_of_a_pipelines_denoiser(folders: Any, tmp_path: Path, name: str) -> None:
    """On the saved weights: onnxruntime against torch, and every site against its definition."""
    result: Any = todo_compile.compile(
        str(folders(name)), res=str(size(name)), out=tmp_path / "x.onnx", precision="fp32",
        options=PlanOptions.create(kv_tokens=16), verify=True,
    )  # fmt: skip
    assert result.report is not None
    assert result.report.rewritten >= 2
    assert result.manifest.verification is not None
    assert result.manifest.verification["max_abs"] < 1e-4


def test_what_keeps_a_pipeline_from_being_run_is_said(tmp_path: Path) -> None:
    folder = zoo.save(zoo.make("refiner"), tmp_path / "broken")
    path = folder / "model_index.json"
    path.write_text(
        json.dumps({**json.loads(path.read_text()), "requires_aesthetics_score": False})
    )
    with pytest.raises(ModelError, match=r"stopped.* in pipeline_\S+_img2img.py, line \d+: Model"):
        todo_compile.plan(str(folder), res=128, precision="fp32")


def test_a_denoiser_alone_of_an_unknown_pipeline_is_refused(tmp_path: Path) -> None:
    zoo.make("sd3").transformer.save_pretrained(tmp_path / "transformer")
    with pytest.raises(ModelError, match="nothing says which that is"):
        todo_compile.plan(str(tmp_path / "transformer"), res=128)


def test_a_class_that_is_no_network_is_refused(tmp_path: Path) -> None:
    folder = zoo.save(zoo.make("sd3"), tmp_path / "odd")
    path = folder / "transformer" / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps({**config, "_class_name": "DDIMScheduler"}))
    with pytest.raises(ModelError, match="no network of that name"):
        load(resolve_component(str(folder)), dtype=torch.float32, fake=True)
