"""Tiny checkpoints in diffusers' own on-disk format."""

from __future__ import annotations

from pathlib import Path

import pytest
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from tiny_models import make_unet


@pytest.fixture
def unet() -> UNet2DConditionModel:
    return make_unet()


@pytest.fixture
def pipeline(tmp_path: Path, unet: UNet2DConditionModel) -> Path:
    """A pipeline's folder as far as we read it: the UNet and the VAE's configuration."""
    folder = tmp_path / "pipeline"
    unet.save_pretrained(folder / "unet")
    (folder / "vae").mkdir()
    (folder / "vae" / "config.json").write_text('{"block_out_channels": [8, 8, 8]}')
    return folder


@pytest.fixture(autouse=True)
def empty_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No hub: an empty cache of its own, and no network."""
    from huggingface_hub import constants

    cache = tmp_path / "hub"
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return cache
