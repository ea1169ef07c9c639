"""AOTInductor packages of a denoiser: in a pipeline, in several precisions; C++ is compiled."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_pipeline import make_unet

import todo_compile
from todo_compile import models
from todo_compile.build.verification import compare

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]


@pytest.mark.parametrize(("precision", "least"), [("fp32", 1e-5), ("bf16", 2e-2)])
@torch.no_grad()
def test_a_unet(tmp_path: Path, precision: str, least: float) -> None:
    """Verified, and called as the module that it stands for."""
    folder, out = tmp_path / "pipeline", tmp_path / "unet.pt2"
    make_unet(folder)
    result: Any = todo_compile.compile(
        folder, res=64, out=out, precision=precision, factors="off", batch=2, verify=True
    )
    assert result.manifest.verification["relative_l2"] < least
    unet = todo_compile.load(out)
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[precision]
    source = models.resolve_component(str(folder), "unet")
    weights = models.find_weights(source, models.WeightsChoice.parse("auto"), dtype=dtype)
    module = models.load(source, weights, dtype=dtype).module
    noise = torch.Generator().manual_seed(0)
    sample = torch.randn(3, 4, 8, 8, generator=noise).to(dtype)
    width = unet.config["cross_attention_dim"]
    text = torch.randn(3, 77, width, generator=noise).to(dtype)
    with pytest.warns(UserWarning, match="batch of 3"):  # cut into the package's two
        found = unet(sample, torch.tensor(500), text).sample
    expected = module(sample, torch.tensor(500), text).sample
    assert compare(found, expected).relative_l2 < least
