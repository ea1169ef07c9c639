"""AOTInductor packages of a denoiser and of a whole pipeline, in several precisions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import (
    StableDiffusionPipeline,
)
from helpers import said
from tiny_pipeline import make_unet

import todo_compile
from todo_compile import models
from todo_compile.build.verification import compare
from todo_compile.bundle.bundle import check_bundle, read_bundle
from todo_compile.cli.app import main
from todo_compile.models import Resolution
from todo_compile.runtime.generate import generate

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


def test_a_bundle_of_the_demo(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Built, inspected, drawn as torch draws; kept, refused when it is damaged, and mended."""
    out = tmp_path / "bundle"
    base = ["-m", "demo", "-r", "128", "--precision", "fp32", "--factors", "off"]
    build = [*base, "--format", "pt2", "-o", f"{out}/"]
    assert main(build) == 0
    bundle = read_bundle(out)
    assert bundle.kind == "pt2"
    names = {entry.file for entry in bundle.components.values()}
    assert names == {"unet.pt2", "vae_decoder.pt2", "text_encoder.pt2"}
    assert check_bundle(bundle, out) == []
    assert main(["inspect", str(out)]) == 0
    assert "intact         yes" in capsys.readouterr().out

    demo = Path(models.__file__).parent / "demo"
    torch_pipe = StableDiffusionPipeline.from_pretrained(demo, local_files_only=True)
    expected = generate(torch_pipe, "stripes", steps=3, resolution=Resolution(128, 128)).pixels
    found = generate(todo_compile.load_pipeline(out), "stripes", steps=3).pixels
    assert expected.std() > 0.01
    assert abs(found - expected).max() < 1e-3

    draw = ["generate", "-b", str(out), "-p", "stripes", "--steps", "2"]
    picture = ["-o", str(tmp_path / "drawn.png")]
    assert main([*draw, *picture]) == 0
    assert main([*draw, *picture, "--device", "cuda"]) == 6
    assert "was compiled for the CPU" in said(capsys)

    assert main(build) == 0
    assert "is up to date" in said(capsys)
    assert main(["export-triton", str(out), "--out", str(tmp_path / "models")]) != 0
    assert "AOTInductor package, which Triton has no backend for" in said(capsys)

    unet, text = out / "unet.pt2", out / "text_encoder.pt2"
    good = unet.read_bytes()
    unet.write_bytes(b"x" * len(good))
    assert main([*draw, *picture, "--verify", "size"]) == 6
    assert "torch cannot load unet.pt2" in said(capsys)
    assert main([*draw, *picture]) == 7
    assert "unet.pt2 was changed" in said(capsys)
    unet.write_bytes(text.read_bytes())
    assert main([*draw, *picture, "--verify", "size"]) == 7
    assert "unet.pt2 has" in said(capsys)
    unet.write_bytes(good)
    text.unlink()
    assert main([*draw, *picture]) == 7
    assert "text_encoder.pt2 is missing" in said(capsys)

    # Built again: what is missing alone; then as ONNX, in the place of the packages.
    before = unet.stat().st_mtime_ns
    assert main(build) == 0
    assert check_bundle(read_bundle(out), out) == []
    assert unet.stat().st_mtime_ns == before
    assert main([*base, "--format", "onnx", "-o", f"{out}/"]) == 0
    assert check_bundle(read_bundle(out), out) == []
    assert not list(out.glob("*.pt2*"))
