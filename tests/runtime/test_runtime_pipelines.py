"""Whole pipelines on compiled components against torch pipelines, picture by picture.

Pictures are in [0, 1]; the tolerance is fp32 rounding through three steps and a decoder. The
rewritten and the dense picture lie 500 times further apart, so that taking one for the other fails.
"""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import tiny_pipelines as tiny
import torch
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion_img2img import (
    StableDiffusionImg2ImgPipeline,
)
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion_inpaint import (
    StableDiffusionInpaintPipeline,
)
from diffusers.schedulers.scheduling_dpmsolver_multistep import DPMSolverMultistepScheduler
from diffusers.schedulers.scheduling_euler_discrete import EulerDiscreteScheduler
from PIL import Image
from tiny_bundles import compiled, with_oracle
from typer.testing import CliRunner

import todo_compile
from todo_compile.cli.app import app
from todo_compile.models import Resolution
from todo_compile.options import PlanOptions
from todo_compile.runtime.generate import generate

TOLERANCE = 5e-6


def distance(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).abs().max())


@pytest.mark.parametrize("scheduler", ["ddim", "euler", "dpm++"])
def test_text_to_image_equals_torch_on_the_oracle(
    bundle: Path, model: Path, scheduler: str
) -> None:
    classes = {
        "euler": EulerDiscreteScheduler,
        "dpm++": DPMSolverMultistepScheduler,
    }
    torch_pipe = with_oracle(tiny.sd())
    dense_pipe = tiny.sd()
    for pipe in (torch_pipe, dense_pipe):
        if scheduler in classes:
            pipe.scheduler = classes[scheduler].from_pretrained(model / "scheduler")
    expected = tiny.picture(torch_pipe)

    ours = todo_compile.load_pipeline(bundle, scheduler=scheduler)
    ours.set_progress_bar_config(disable=True)
    ours.unet = ours.unet.parts[0]  # the pair is tested below
    assert type(ours.scheduler) is type(torch_pipe.scheduler)
    found = tiny.picture(ours)
    assert distance(found, expected) < TOLERANCE
    assert distance(tiny.picture(dense_pipe), expected) > 500 * TOLERANCE


def test_a_compiled_unet_in_a_torch_pipeline(unet_file: Path) -> None:
    pipe = tiny.sd()
    pipe.unet = todo_compile.load(unet_file)
    oracle = tiny.sd()
    with_oracle(oracle).vae = pipe.vae  # the UNet alone
    assert distance(tiny.picture(pipe), tiny.picture(oracle)) < TOLERANCE


def test_image_to_image(bundle: Path) -> None:
    start = torch.rand(1, 3, tiny.PIXELS, tiny.PIXELS, generator=torch.Generator().manual_seed(1))
    oracle = with_oracle(tiny.sd())
    parts = {k: v for k, v in oracle.components.items() if k != "image_encoder"}
    expected = StableDiffusionImg2ImgPipeline(**parts, requires_safety_checker=False)
    ours = todo_compile.load_pipeline(
        bundle, pipeline_class="StableDiffusionImg2ImgPipeline", encoder=tiny.vae()
    )
    ours.unet = ours.unet.parts[0]
    pictures: list[Any] = [
        pipe(
            "a red cat",
            image=start,
            strength=0.7,
            num_inference_steps=4,
            generator=torch.Generator().manual_seed(1),
            output_type="pt",
        )[0]
        for pipe in (ours, expected)
    ]
    assert pictures[0].shape == (1, 3, tiny.PIXELS, tiny.PIXELS)
    assert distance(*pictures) < TOLERANCE


def test_inpainting(bundle: Path) -> None:
    source = torch.Generator().manual_seed(1)
    start = torch.rand(1, 3, tiny.PIXELS, tiny.PIXELS, generator=source)
    mask = torch.zeros(1, 1, tiny.PIXELS, tiny.PIXELS)
    mask[:, :, 8:24, 8:] = 1
    oracle = with_oracle(tiny.sd())
    expected = StableDiffusionInpaintPipeline(**oracle.components, requires_safety_checker=False)
    ours = todo_compile.load_pipeline(
        bundle, pipeline_class="StableDiffusionInpaintPipeline", encoder=tiny.vae()
    )
    ours.unet = ours.unet.parts[0]
    options = {"image": start, "mask_image": mask, "strength": 1.0}
    pictures = [tiny.picture(pipe, **options) for pipe in (ours, expected)]
    assert distance(*pictures) < TOLERANCE
    assert distance(pictures[0], tiny.picture(ours, **options, seed=6)) > 500 * TOLERANCE


def test_several_pictures_and_no_guidance_are_cut_and_filled_up(bundle: Path) -> None:
    ours = todo_compile.load_pipeline(bundle)
    ours.unet = ours.unet.parts[0]
    oracle = with_oracle(tiny.sd())
    options = {"prompt": ["a cat", "two dogs", "x"], "steps": 2}
    # Batch 6 on an engine of 2, a decoder and a text encoder of 1.
    assert distance(tiny.picture(ours, **options), tiny.picture(oracle, **options)) < TOLERANCE
    with pytest.warns(UserWarning, match="batch of 1, so 1 of 2 rows are computed for nothing"):
        alone = tiny.picture(ours, guidance_scale=0.0)
    assert distance(alone, tiny.picture(oracle, guidance_scale=0.0)) < TOLERANCE


def test_the_pair_switches_half_way(bundle: Path) -> None:
    """Half of four steps on the oracle, half dense, by hand."""
    ours = todo_compile.load_pipeline(bundle, scheduler="ddim")
    calls: list[str] = []
    for name, part in zip(("rewritten", "dense"), ours.unet.parts, strict=True):
        part.register_forward_hook(lambda *_, name=name: calls.append(name))
    found = tiny.picture(ours, steps=4)
    assert calls == ["rewritten", "rewritten", "dense", "dense"]

    oracle = with_oracle(tiny.sd())
    dense = tiny.unet()

    def go_dense(pipe, step, timestep, kwargs):
        del timestep
        if step == 1:  # the second of four is done
            pipe.unet = dense
        return kwargs

    expected = tiny.picture(oracle, steps=4, callback_on_step_end=go_dense)
    assert distance(found, expected) < TOLERANCE
    alone = todo_compile.load_pipeline(bundle, dense=True)
    assert distance(tiny.picture(alone, steps=4), found) > 100 * TOLERANCE


@pytest.fixture(scope="module")
def xl(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of the tiny SDXL."""
    folder = tmp_path_factory.mktemp("tiny")
    tiny.sdxl().save_pretrained(folder / "xl")
    todo_compile.compile_bundle(
        str(folder / "xl"),
        res=tiny.PIXELS,
        out=folder / "bundle",
        format="onnx",
        precision="fp32",
        vae_options=PlanOptions.create(kv_tokens=64),
    )
    return folder / "bundle"


def test_sdxl(xl: Path) -> None:
    ours, expected = todo_compile.load_pipeline(xl), with_oracle(tiny.sdxl())
    ours.set_progress_bar_config(disable=True)
    assert type(ours) is type(expected)
    options: dict[str, Any] = {"negative_prompt": "a blue dog", "steps": 2}
    found = tiny.picture(ours, **options)
    assert distance(found, tiny.picture(expected, **options)) < TOLERANCE
    assert distance(found, tiny.picture(tiny.sdxl(), **options)) > 500 * TOLERANCE


@pytest.mark.parametrize("kind", ["sd", "sdxl"])
def test_layers_of_the_text_encoder_are_skipped(kind: str, bundle: Path, xl: Path) -> None:
    """SD takes what is left after the last norm, SDXL without; two prompts, an engine for one."""
    ours: Any = todo_compile.load_pipeline(bundle if kind == "sd" else xl)
    expected: Any = getattr(tiny, kind)()
    if kind == "sd" and not hasattr(expected.text_encoder, "text_model"):
        # transformers 5 has no inner model any more, for which diffusers 0.42 still looks.
        norm = expected.text_encoder.final_layer_norm
        expected.text_encoder.text_model = SimpleNamespace(final_layer_norm=norm)
    call = {"num_images_per_prompt": 1, "do_classifier_free_guidance": True}
    plain = ours.encode_prompt(["a cat", "two dogs"], device="cpu", **call)[0]
    for skipped in (1, 2):
        found, wanted = (
            pipe.encode_prompt(["a cat", "two dogs"], device="cpu", clip_skip=skipped, **call)[0]
            for pipe in (ours, expected)
        )
        assert found.shape == wanted.shape
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)
        assert (found - plain).abs().max() > 0.1


def test_the_command_skips_layers_of_the_text_encoder(bundle: Path, tmp_path: Path) -> None:
    expected: Any = with_oracle(tiny.sd())
    if not hasattr(expected.text_encoder, "text_model"):  # as above
        norm = expected.text_encoder.final_layer_norm
        expected.text_encoder.text_model = SimpleNamespace(final_layer_norm=norm)
    size = Resolution(tiny.PIXELS, tiny.PIXELS)

    def truth(**options: Any) -> Any:
        return generate(expected, "a red cat", steps=2, resolution=size, **options).pixels

    out = tmp_path / "x.png"
    words = ["--prompt", "a red cat", "--steps", "2", "--clip-skip", "1", "--out", str(out)]
    done = CliRunner().invoke(app, ["generate", "--bundle", str(bundle), *words])
    assert done.exit_code == 0, done.output
    found = np.asarray(Image.open(out), dtype=np.float32) / 255
    assert np.abs(found - truth(clip_skip=1)).max() < 0.51 / 255
    assert np.abs(truth() - truth(clip_skip=1)).max() > 2 / 255


def test_sdxl_with_prompts_encoded_before(xl: Path) -> None:
    ours, expected = todo_compile.load_pipeline(xl), with_oracle(tiny.sdxl())
    names = ("prompt_embeds", "negative_prompt_embeds", "pooled_prompt_embeds")
    names = (*names, "negative_pooled_prompt_embeds")
    found: list[torch.Tensor] = []
    for pipe in (ours, expected):
        encoded = pipe.encode_prompt("a red cat", device="cpu", negative_prompt="a blue dog")
        order = (encoded[0], encoded[1], encoded[2], encoded[3])
        given = dict(zip(names, order, strict=True))
        found.append(tiny.picture(pipe, prompt=None, steps=2, **given))
    assert distance(*found) < TOLERANCE


def test_factors_off_equals_the_plain_pipeline(bundle: Path) -> None:
    pipe = tiny.sd()
    pipe.unet = todo_compile.load(bundle / "unet.dense.onnx")
    assert distance(tiny.picture(pipe), tiny.picture(tiny.sd())) < TOLERANCE


def test_half_precision_in_a_single_precision_pipeline(model: Path, tmp_path: Path) -> None:
    """A default (fp16) UNet runs on the CPU, and casts where it is asked to."""
    path = compiled(model, tmp_path / "u.onnx", precision="fp16")
    pipe = tiny.sd()
    pipe.unet = todo_compile.load(path, cast=True)
    expected = with_oracle(tiny.sd())
    expected.vae = pipe.vae
    assert pipe.unet.dtype == torch.float16
    assert distance(tiny.picture(pipe), tiny.picture(expected)) < 2e-2
