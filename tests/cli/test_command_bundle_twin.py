"""Dense twins in a bundle: they share the weights and go with them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from bundle_helpers import (
    arguments,
    damage,
    refuse_build,
    run,
)
from helpers import said, weights_outside

from todo_compile.bundle.bundle import read_bundle
from todo_compile.cli.app import main


@pytest.fixture
def all_external(monkeypatch: pytest.MonkeyPatch) -> None:
    weights_outside(monkeypatch)


@pytest.mark.usefixtures("all_external")
def test_dense_twin_shares_the_weights(
    pipeline: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "b"
    only = ["--component", "unet", "-q"]
    assert main(arguments(pipeline, out, *only)) == 0  # the twin comes later
    assert main(arguments(pipeline, out, *only, "--dense-after", "0.7")) == 0
    found = read_bundle(out)
    assert [(p.start, p.file) for p in found.phases] == [(0.7, "unet.dense.onnx")]
    assert sorted(p.name for p in out.iterdir() if p.suffix == ".data") == ["unet.onnx.data"]
    assert damage(out) == []
    feeds = {
        "sample": torch.randn(2, 4, 8, 8),
        "timestep": torch.tensor([200.0]),
        "encoder_hidden_states": torch.randn(2, 77, 24),
    }
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

    unet = UNet2DConditionModel.from_pretrained(pipeline / "unet").eval()
    with torch.no_grad():
        expected = unet(*feeds.values(), return_dict=False)[0]
    (dense,) = run(out / "unet.dense.onnx", **feeds)
    (rewritten,) = run(out / "unet.onnx", **feeds)
    torch.testing.assert_close(dense, expected, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(rewritten, expected, rtol=1e-4, atol=1e-5)

    started = refuse_build(monkeypatch)
    assert main(arguments(pipeline, out, *only, "--dense-after", "0.8")) == 0
    assert started == []  # when to switch is no reason to build
    assert [p.start for p in read_bundle(out).phases] == [0.8]
    # Other weights: the twin that shares them must go with them.
    assert main(arguments(pipeline, out, *only, "--dense-after", "0.8", "--weights", "random")) == 0
    assert started == ["unet", "unet"]
    assert damage(out) == []
    assert main(arguments(pipeline, out, *only)) == 0  # and without
    assert sorted(p.name for p in out.glob("unet*")) == [
        "unet", "unet.onnx", "unet.onnx.data", "unet.onnx.json",
    ]  # fmt: skip
    data = out / "unet.onnx.data"
    data.write_bytes(data.read_bytes()[:-1] + b"?")
    assert damage(out) == ["unet.onnx.data was changed (its hash differs)"]


@pytest.mark.parametrize("after", ["0", "1", "-1", "70", "nan"])
def test_share_of_the_steps(pipeline: Path, tmp_path: Path, capsys: Any, after: str) -> None:
    out = tmp_path / "b"
    assert main(arguments(pipeline, out, "--dense-after", after)) == 2
    assert "is not a share of the steps" in said(capsys)
    assert not out.exists()
