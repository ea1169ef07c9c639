"""A checkpoint of one file through every command: the packaged model as it would have come."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import original_names
import pytest
from helpers import said
from PIL import Image
from safetensors.torch import load_file, save_file

from todo_compile import models
from todo_compile.cli.app import main
from todo_compile.models import single_file
from todo_compile.models.registry import DEMO
from todo_compile.models.single_file import Family
from todo_compile.models.source import read_config
from todo_compile.runtime.torch_pipelines import torch_pipeline

HUB_ID = "someone/model"


@pytest.fixture
def checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file, its family known, its tokenizer in the hub's cache."""
    from huggingface_hub import constants

    parts = {
        name: load_file(DEMO / place)
        for name, place in (
            ("unet", "unet/diffusion_pytorch_model.safetensors"),
            ("vae", "vae/diffusion_pytorch_model.safetensors"),
            ("clip", "text_encoder/model.safetensors"),
        )
    }
    path = tmp_path / "demo.safetensors"
    save_file(
        {
            **original_names.unet(parts["unet"], layers=1),
            **original_names.vae(parts["vae"]),
            **original_names.clip(parts["clip"]),
        },
        path,
    )
    family = Family(
        "the demo",
        models.REGISTRY["demo"].config,
        {
            "vae_decoder": read_config(DEMO / "vae" / "config.json", DEMO),
            "text_encoder": read_config(DEMO / "text_encoder" / "config.json", DEMO),
        },
        read_config(DEMO / "scheduler" / "scheduler_config.json", DEMO),
        {16: "StableDiffusionPipeline"},
        16,
        (HUB_ID,),
    )
    monkeypatch.setattr(single_file, "FAMILIES", (family,))
    cache = tmp_path / "hub"
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    repo = cache / f"models--{HUB_ID.replace('/', '--')}"
    (repo / "refs").mkdir(parents=True)
    (repo / "refs" / "main").write_text("0" * 40)
    shutil.copytree(DEMO / "tokenizer", repo / "snapshots" / ("0" * 40) / "tokenizer")
    return path


def pixels(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path)).astype(int)


def test_plan_and_compile(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = str(checkpoint)
    assert main(["plan", "-m", file, "-r", "256", "--json"]) == 0
    assert "rewritten" in [s["action"] for s in json.loads(capsys.readouterr().out)["sites"]]
    line = ["-m", file, "-r", "64", "-o", str(tmp_path / "text.onnx"), "--precision", "fp32"]
    assert main([*line, "--component", "text-encoder", "--verify"]) == 0
    assert f"file: {file}" in said(capsys)
    assert main([*line, "--component", "text-encoder"]) == 0
    assert "is up to date" in said(capsys)


def test_a_registered_model_is_drawn(tmp_path: Path) -> None:
    out = tmp_path / "x.png"
    line = ["generate", "-m", "demo", "-p", "a red heart", "--steps", "1", "-q", "-r", "64"]
    assert main([*line, "-o", str(out)]) == 0
    assert pixels(out).std() > 5


@pytest.mark.slow
def test_a_bundle(checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Draws what the same model drew that did not come as one file."""
    bundle = tmp_path / "b"
    line = ["-m", str(checkpoint), "-r", "64", "-o", f"{bundle}/", "--format", "onnx"]
    assert main([*line, "--precision", "fp32"]) == 0
    assert "demo.safetensors is the demo" in said(capsys)
    base = ["generate", "-p", "a red heart", "--steps", "1", "-q", "-r", "64"]
    for name, more in (("file", ["-b", str(bundle)]), ("demo", ["-m", "demo"])):
        assert main([*base, *more, "-o", str(tmp_path / f"{name}.png")]) == 0
    difference = pixels(tmp_path / "file.png") - pixels(tmp_path / "demo.png")
    assert np.abs(difference).max() <= 1


def test_the_pipeline_in_torch(checkpoint: Path) -> None:
    found = torch_pipeline(models.resolve_component(str(checkpoint)), precision="fp32")
    expected = torch_pipeline(models.resolve_component("demo"), precision="fp32")
    assert type(found) is type(expected)
    assert found.scheduler.config == expected.scheduler.config
    for name in ("unet", "vae", "text_encoder"):
        ours, theirs = (getattr(pipe, name).state_dict() for pipe in (found, expected))
        assert ours.keys() == theirs.keys()
        assert all(ours[key].equal(theirs[key]) for key in theirs)
    assert found.tokenizer("a red heart").input_ids == expected.tokenizer("a red heart").input_ids


def test_without_a_tokenizer(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.rmtree(tmp_path / "hub")
    out = tmp_path / "x.png"
    base = ["generate", "-m", str(checkpoint), "-p", "a", "-r", "128", "-o", str(out)]
    assert main(base) == 2
    assert f"{HUB_ID} is not in the local hub cache" in said(capsys)
    assert not out.exists()
