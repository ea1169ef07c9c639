"""The packaged demo model: complete, small, found by name, and it draws."""

from __future__ import annotations

import json
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import (
    StableDiffusionPipeline,
)
from safetensors import safe_open

from todo_compile.capture.inputs import TEXT_TOKENS, example_inputs
from todo_compile.errors import ModelError
from todo_compile.models import REGISTRY, Resolution, WeightsChoice, find_weights, load, resolve
from todo_compile.models.registry import DEMO

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def pipe() -> Any:
    made = StableDiffusionPipeline.from_pretrained(DEMO, torch_dtype=torch.float32)
    made.set_progress_bar_config(disable=True)
    return made


def _draw(pipe: Any, prompt: str, *, seed: int = 0, height: int = 64, width: int = 64) -> Any:
    return pipe(
        prompt,
        height=height,
        width=width,
        num_inference_steps=3,
        generator=torch.Generator().manual_seed(seed),
        output_type="np",
    ).images[0]


def test_name_resolves_to_the_packaged_folder_and_its_weights() -> None:
    source = resolve("demo")
    weights = find_weights(source, WeightsChoice.parse("auto"))

    assert (source.kind, source.identifier, source.hub_ids) == ("registry", "demo", ())
    assert source.folder == DEMO / "unet"
    assert weights.origin == "folder"
    assert [path.parent for path in weights.files] == [DEMO / "unet"]


def test_a_folder_given_as_weights_wins_over_the_packaged_ones(tmp_path: Path) -> None:
    with pytest.raises(ModelError):
        find_weights(resolve("demo"), WeightsChoice.parse(str(tmp_path)))


def test_loads_with_its_weights_and_runs() -> None:
    source = resolve("demo")
    weights = find_weights(source, WeightsChoice.parse("auto"))
    model = load(source, weights, dtype=torch.float32)
    example = example_inputs(model, Resolution.parse("128x64"))

    assert model.parameters == REGISTRY["demo"].parameters
    with torch.no_grad():
        out = example.wrapper(*example.args)
    assert out.shape == (2, source.config["in_channels"], 8, 16)
    assert out.isfinite().all()


def test_scale_and_grid_are_those_of_the_files() -> None:
    entry = REGISTRY["demo"]
    vae = json.loads((DEMO / "vae" / "config.json").read_text())

    assert entry.vae_scale == 2 ** (len(vae["block_out_channels"]) - 1)
    assert entry.native.attention_stride == 1
    assert entry.native_pixels == (128, 128)
    assert entry.native_kv_tokens == 256


def test_small_enough_and_in_half_precision() -> None:
    files = [path for path in DEMO.rglob("*") if path.is_file()]
    tensors = [path for path in files if path.suffix == ".safetensors"]

    assert sum(path.stat().st_size for path in files) <= 20e6
    assert {path.parent.name for path in tensors} == {"unet", "vae", "text_encoder"}
    for path in tensors:
        with safe_open(path, "pt") as file:
            dtypes = {file.get_tensor(name).dtype for name in file.keys()}  # noqa: SIM118
        assert torch.float16 in dtypes
        assert torch.float32 not in dtypes


def test_card_has_the_licences_and_every_prompt() -> None:
    from training.subjects import SUBJECTS

    card = " ".join((DEMO / "README.md").read_text(encoding="utf-8").split())
    assert card.count("Permission is hereby granted, free of charge") >= 1
    assert "Microsoft Corporation" in card
    assert [s.one for s in SUBJECTS if s.one not in card] == []
    assert len(SUBJECTS) >= 24


def test_prompts_are_as_long_as_the_compiler_expects(pipe: Any) -> None:
    assert pipe.tokenizer.model_max_length == TEXT_TOKENS
    assert pipe.text_encoder.config.max_position_embeddings == TEXT_TOKENS


def test_words_of_the_prompts_are_single_tokens_and_others_are_spelled(pipe: Any) -> None:
    def tokens(text: str) -> list[str]:
        return pipe.tokenizer.convert_ids_to_tokens(pipe.tokenizer(text).input_ids)[1:-1]

    assert tokens("A Strawberry pattern") == ["a</w>", "strawberry</w>", "pattern</w>"]
    assert len(tokens("zebra")) > 1
    assert pipe.tokenizer.unk_token_id not in pipe.tokenizer("ß zebra").input_ids[1:-1]


def test_equal_seeds_draw_equal_pictures_and_prompts_matter(pipe: Any) -> None:
    first = _draw(pipe, "a strawberry")

    assert first.shape == (64, 64, 3)
    assert (_draw(pipe, "a strawberry") == first).all()
    assert abs(_draw(pipe, "a panda on a blue background") - first).mean() > 0.01
    assert abs(_draw(pipe, "a strawberry", seed=1) - first).mean() > 0.001


def test_sides_may_differ(pipe: Any) -> None:
    assert _draw(pipe, "a cat pattern", height=64, width=96).shape == (64, 96, 3)


def test_scheduler_ends_in_pure_noise(pipe: Any) -> None:
    # v-prediction with zero terminal SNR needs trailing timesteps, which begin at the last one.
    pipe.scheduler.set_timesteps(10)
    assert pipe.scheduler.alphas_cumprod[-1] == 0
    assert pipe.scheduler.timesteps[0] == 999
    assert pipe.scheduler.config.prediction_type == "v_prediction"


def test_autoencoder_restores_a_smooth_picture(pipe: Any) -> None:
    rows = torch.linspace(-0.8, 0.8, 64)
    picture = torch.stack([rows[:, None].expand(64, 64), rows[None].expand(64, 64)])
    picture = torch.cat([picture, picture[:1] * 0])[None]
    with torch.no_grad():
        latent = pipe.vae.encode(picture).latent_dist
        restored = pipe.vae.decode(latent.mean).sample
    assert latent.std.max() < 0.01
    assert (restored - picture).abs().mean() < 0.25


def test_built_wheel_holds_the_model(tmp_path: Path) -> None:
    pytest.importorskip("hatchling")
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)],
        cwd=ROOT,
        check=True,
        capture_output=True,
    )
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = {n.removeprefix("todo_compile/models/demo/") for n in archive.namelist()}
    expected = {path.relative_to(DEMO).as_posix() for path in DEMO.rglob("*") if path.is_file()}
    sheet = {"samples-128.png"}  # for the eye, in the repository
    assert expected & names == expected - sheet
    assert "unet/diffusion_pytorch_model.safetensors" in expected


def test_loads_in_one_dtype_without_being_told() -> None:
    made: Any = StableDiffusionPipeline.from_pretrained(DEMO)
    assert made.text_encoder.dtype == made.unet.dtype == made.vae.dtype == torch.float32
