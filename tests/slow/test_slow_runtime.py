"""SD1.5 at its real size in onnxruntime against torch; about 9 GB and some minutes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import todo_compile
from todo_compile import models
from todo_compile.build.verification import compare
from todo_compile.options import PlanOptions

pytestmark = [pytest.mark.slow, pytest.mark.timeout(2400)]


def torch_module(component: str) -> torch.nn.Module:
    """The component with the same seeded random weights."""
    source = models.resolve_component("sd15", component)
    weights = models.find_weights(source, models.WeightsChoice.parse("random"), dtype=torch.float32)
    return models.load(source, weights, dtype=torch.float32, hashed=False).module


@torch.no_grad()
def test_one_step_of_the_unet_at_512(tmp_path: Path) -> None:
    out = tmp_path / "unet.onnx"
    off = PlanOptions.create(factors="off")
    settings = {"weights": "random", "precision": "fp32", "batch": 1, "options": off}
    todo_compile.compile("sd15", res=512, out=out, **settings)
    noise = torch.Generator().manual_seed(0)
    sample = torch.randn(1, 4, 64, 64, generator=noise)
    text = torch.randn(1, 77, 768, generator=noise)
    unet = todo_compile.load(out, verify="size")
    found = unet(sample, torch.tensor(500), text).sample
    del unet
    expected = torch_module("unet")(sample, torch.tensor(500.0), text).sample
    assert compare(found, expected).relative_l2 < 1e-4


@torch.no_grad()
def test_the_decoder_at_512(tmp_path: Path) -> None:
    out = tmp_path / "vae_decoder.onnx"
    off = PlanOptions.create(factors="off")
    settings = {"weights": "random", "precision": "fp32", "batch": 1, "options": off}
    todo_compile.compile("sd15", res=512, out=out, component="vae_decoder", **settings)
    latents = torch.randn(1, 4, 64, 64, generator=torch.Generator().manual_seed(0))
    vae = todo_compile.load(out, verify="size")
    found = vae.decode(latents).sample
    assert found.shape == (1, 3, 512, 512)
    del vae
    expected = torch_module("vae_decoder").decode(latents).sample
    assert compare(found, expected).relative_l2 < 1e-4
