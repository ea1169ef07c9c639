"""A tiny UNet checkpoint, and outputs that are built once for all tests."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.schedulers.scheduling_ddim import DDIMScheduler

from todo_compile.cli.app import main


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pipeline's folder with a UNet trained at 4×4 latent cells: 16 key tokens."""
    folder = tmp_path_factory.mktemp("tiny") / "pipeline"
    torch.manual_seed(1)
    UNet2DConditionModel(
        sample_size=4,
        block_out_channels=(16, 32),
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        layers_per_block=1,
        cross_attention_dim=24,
        attention_head_dim=2,
        norm_num_groups=8,
    ).save_pretrained(folder / "unet")
    return folder


@pytest.fixture(scope="session")
def onnx_output(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """fp32 at 64 px (8×8 tokens), verified. Copy it before changing it."""
    out = tmp_path_factory.mktemp("onnx") / "x.onnx"
    arguments = ["-m", str(model), "-r", "64", "-o", str(out), "--precision", "fp32"]
    assert main([*arguments, "--verify"]) == 0
    return out


@pytest.fixture(scope="session")
def pipeline(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole tiny pipeline around that UNet: VAE of 4 pixels a cell trained at 16×16, CLIP."""
    from transformers import CLIPTextConfig, CLIPTextModel

    folder = tmp_path_factory.mktemp("whole") / "pipeline"
    shutil.copytree(model, folder)
    torch.manual_seed(2)
    AutoencoderKL(
        block_out_channels=(8, 16, 16),
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        norm_num_groups=4,
        sample_size=16,
    ).save_pretrained(folder / "vae")
    text = CLIPTextConfig(
        vocab_size=99,
        hidden_size=24,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        bos_token_id=97,
        eos_token_id=98,
        pad_token_id=98,
    )
    CLIPTextModel(text).save_pretrained(folder / "text_encoder")
    (folder / "tokenizer").mkdir()
    (folder / "tokenizer" / "vocab.json").write_text("{}")
    (folder / "tokenizer" / "weights.bin").write_text("not a light file")
    DDIMScheduler().save_pretrained(folder / "scheduler")
    return folder


@pytest.fixture(scope="session")
def onnx_bundle(pipeline: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """fp32 at 32 px (8×8 latent cells), verified. Copy it before changing it."""
    out = tmp_path_factory.mktemp("bundle") / "bundle"
    arguments = ["-m", str(pipeline), "-r", "32", "-o", f"{out}/", "--precision", "fp32"]
    assert main([*arguments, "--format", "onnx", "--verify", "-q"]) == 0
    return out


@pytest.fixture(autouse=True)
def no_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)


@pytest.fixture
def bundle(onnx_bundle: Path, tmp_path: Path) -> Path:
    """A copy of the built bundle."""
    return Path(shutil.copytree(onnx_bundle, tmp_path / "copy"))


@pytest.fixture
def output(onnx_output: Path, tmp_path: Path) -> Path:
    """A copy of the built output, in another folder."""
    folder = tmp_path / "moved"
    shutil.copytree(onnx_output.parent, folder)
    return folder / onnx_output.name
