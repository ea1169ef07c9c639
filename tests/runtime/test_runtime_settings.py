"""Settings of ``generate`` that cannot work: a sentence before anything is loaded, no traceback."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import tiny_pipelines as tiny
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion_img2img import (
    StableDiffusionImg2ImgPipeline,
)
from helpers import said

import todo_compile
from todo_compile.cli.app import main
from todo_compile.errors import InputError
from todo_compile.runtime.generate import generate
from todo_compile.runtime.schedulers import SCHEDULERS, check_steps, make_scheduler


def draw(*arguments: object, out: Path) -> int:
    return main(["generate", "-p", "a cat", "-o", str(out), "-q", *map(str, arguments)])


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--steps", 0), "draw nothing"),
        (("--steps", 5000), "more than the 1000"),
        (("--scheduler", "pndm", "--steps", 2), "PNDMScheduler cannot make 2 steps"),
        (("--scheduler", "lcm", "--steps", 60), "LCMScheduler cannot make 60 steps"),
        (("--scheduler", "SchedulerMixin"), "Unknown scheduler"),
        (("--scheduler", "FlowMatchEulerDiscreteScheduler"), "is for another kind of model"),
        (("--scheduler", "ScoreSdeVeScheduler"), "cannot make 30 steps"),
        (("--scheduler", "RePaintScheduler"), "cannot make 30 steps"),
        (("--scheduler", "VQDiffusionScheduler"), "is for another kind of model"),
        (("--scheduler", "DDIMInverseScheduler"), "from the picture to the noise"),
        (("--seed", "9" * 23), "is not a seed"),
        (("--guidance", "nan"), "is not possible"),
        (("--guidance", "inf"), "is not possible"),
        (("--device", "foo"), "Unknown device 'foo'"),
        (("--device", "cuda:x"), "Unknown device 'cuda:x'"),
        (("--device", "cuda:99"), "no"),
    ],
)
def test_refused_before_loading(
    bundle: Path,
    model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: tuple[object, ...],
    says: str,
) -> None:
    from todo_compile.runtime import torch_pipelines

    def loaded(*args: Any, **kwargs: Any) -> None:
        del args, kwargs
        raise AssertionError("loaded before the settings were checked")

    monkeypatch.setattr(todo_compile, "load_pipeline", loaded)
    monkeypatch.setattr(torch_pipelines, "torch_pipeline", loaded)
    for source in (("-b", bundle), ("-m", model, "-r", tiny.PIXELS)):
        assert draw(*source, *arguments, out=tmp_path / "x.png") in (2, 6)
        assert says in said(capsys)


@pytest.mark.parametrize("name", SCHEDULERS)
def test_known_schedulers_work(model: Path, name: str) -> None:
    for steps in (4, 30):
        check_steps(make_scheduler(name, model / "scheduler"), steps)


def test_learned_variances_work() -> None:
    """As DiT and PixArt have them: twice as many channels come out."""
    from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
    from diffusers.schedulers.scheduling_dpmsolver_multistep import DPMSolverMultistepScheduler

    for made in (DDPMScheduler, DPMSolverMultistepScheduler):
        check_steps(made(variance_type="learned_range"), 5)


def test_a_pipeline_that_needs_more(bundle: Path) -> None:
    pipe = todo_compile.load_pipeline(bundle, pipeline_class=StableDiffusionImg2ImgPipeline)
    with pytest.raises(InputError, match="Img2ImgPipeline cannot draw this") as caught:
        generate(pipe, "a cat", steps=3)
    assert "3 steps of DDIMScheduler, guidance 7.5" in str(caught.value.remedy)
    assert isinstance(caught.value.__cause__, (TypeError, ValueError, AttributeError))


def test_a_unet_that_needs_more() -> None:
    pipe = tiny.sd()
    pipe.unet = tiny.unet(in_channels=9)
    with pytest.raises(InputError, match="cannot draw this"):
        generate(pipe, "a cat", steps=1)


def test_what_is_dense_is_said(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "x.png"
    arguments = ["generate", "-b", bundle, "-p", "a", "--steps", 1, "-o", out, "--compare"]
    assert main([*map(str, arguments)]) == 0
    assert "the decoder is the bundle's in both" in said(capsys)
    assert main(["generate", "--help"]) == 0
    words = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "decoded by the bundle's decoder" in words


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("scheduler/scheduler_config.json", '{"num_train_timesteps": 100000000000}', "damaged"),
        (
            "scheduler/scheduler_config.json",
            '{"_class_name": "DDIMScheduler", "beta_schedule": "foo"}',
            "DDIMScheduler cannot be made",
        ),
        ("scheduler/scheduler_config.json", '{"a":' * 100_000, "damaged"),
        ("tokenizer/tokenizer.json", "{}", "tokenizer cannot be read"),
        ("model_index.json", "[" * 100_000, "nested too deeply"),
        ("unet.onnx.json", "config list", "no table"),
    ],
)
def test_crafted_bundles(bundle: Path, tmp_path: Path, name: str, content: str, says: str) -> None:
    """Every hash right, the content from elsewhere."""
    import json

    from todo_compile.bundle.entries import file_sha256
    from todo_compile.errors import BundleError

    folder = Path(shutil.copytree(bundle, tmp_path / "crafted"))
    path = folder / name
    values = json.loads((folder / "bundle.json").read_text())
    if name == "unet.onnx.json":
        manifest = json.loads(path.read_text())
        manifest["model"]["config"] = [1, 2]
        content = json.dumps(manifest)
    path.write_text(content)
    for one in values["light_files"]:
        if one["name"] == name:
            one.update(bytes=path.stat().st_size, sha256=file_sha256(path))
    for entry in values["components"].values():
        entry["manifest_sha256"] = file_sha256(folder / f"{entry['file']}.json")
    (folder / "bundle.json").write_text(json.dumps(values))
    with pytest.raises(BundleError, match=says) as caught:
        todo_compile.load_pipeline(folder)
    assert caught.value.remedy
