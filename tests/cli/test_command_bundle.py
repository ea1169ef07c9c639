"""Bundles through the command: whole, right, and refused before anything is built."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from bundle_helpers import (
    COMPONENTS,
    arguments,
    damage,
    run,
)
from helpers import said

import todo_compile
from todo_compile.build import bundle_job
from todo_compile.bundle.bundle import read_bundle
from todo_compile.cli.app import main
from todo_compile.errors import ExportError


def test_whole(onnx_bundle: Path, pipeline: Path) -> None:
    found = read_bundle(onnx_bundle)
    assert damage(onnx_bundle) == []
    assert list(found.components) == COMPONENTS
    assert found.pipeline_class == "StableDiffusionPipeline"
    assert (found.kind, found.resolution, found.batch, found.precision) == (
        "onnx", "32x32", 2, "fp32",
    )  # fmt: skip
    names = [e.name for e in found.light_files]
    assert names == [
        "model_index.json",
        "scheduler/scheduler_config.json",
        "text_encoder/config.json",
        "tokenizer/chat_template.jinja",
        "tokenizer/vocab.json",
        "unet/config.json",
        "vae/config.json",
    ]
    index = json.loads((onnx_bundle / "model_index.json").read_text())
    assert index["scheduler"] == ["diffusers", "DDIMScheduler"]
    assert index["vae"] == ["diffusers", "AutoencoderKL"]
    assert index["tokenizer"] == ["transformers", "CLIPTokenizer"]
    for name in ("unet", "vae_decoder", "text_encoder"):
        manifest = json.loads((onnx_bundle / f"{name}.onnx.json").read_text())
        assert manifest["model"]["component"] == name
        assert manifest["verification"]["relative_l2"] < 1e-5
    vae = json.loads((onnx_bundle / "vae_decoder.onnx.json").read_text())
    assert vae["model"]["config"]["scaling_factor"] == 0.18215
    assert [(t["name"], t["shape"]) for t in vae["inputs"]] == [("latent_sample", [1, 4, 8, 8])]
    assert [(t["name"], t["shape"]) for t in vae["outputs"]] == [("sample", [1, 3, 32, 32])]
    text = json.loads((onnx_bundle / "text_encoder.onnx.json").read_text())
    assert [(t["name"], t["shape"], t["dtype"]) for t in text["inputs"]] == [
        ("input_ids", [1, 77], "int64")
    ]
    assert [(t["name"], t["shape"]) for t in text["outputs"]] == [
        ("last_hidden_state", [1, 77, 24]),
        ("pooler_output", [1, 24]),
        ("hidden_states", [1, 3, 77, 24]),
        ("normed_states", [1, 3, 77, 24]),
    ]
    # Each output's manifest has its own time, not that of the outputs before it.
    assert text["seconds"]["capture"] != vae["seconds"]["capture"]
    assert not (onnx_bundle / ".parts").exists()
    assert not list(pipeline.rglob("*.onnx"))


def test_inspect(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(bundle)]) == 0
    text = capsys.readouterr().out
    assert "unet.onnx, vae_decoder.onnx, text_encoder.onnx" in text
    assert "intact         yes" in text
    (bundle / "unet.onnx").write_bytes(b"short")
    assert main(["inspect", str(bundle / "bundle.json"), "--json"]) == 7
    found = json.loads(capsys.readouterr().out)
    assert found["damage"][0].startswith("unet.onnx has 5 bytes instead of")
    assert list(found["bundle"]["components"]) == COMPONENTS


def test_decoder_equals_the_rewritten_autoencoder(onnx_bundle: Path, pipeline: Path) -> None:
    """Against eager attention on strided keys: 16 of 64 tokens, the native 4×4 cells."""
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

    vae = AutoencoderKL.from_pretrained(pipeline / "vae").eval()
    torch.manual_seed(4)
    latents = torch.randn(1, 4, 8, 8)
    with torch.no_grad():
        dense = vae.decode(latents, return_dict=False)[0]
        attention: Any = vae.decoder.get_submodule("mid_block.attentions.0")

        def strided(hidden: torch.Tensor, **_: Any) -> torch.Tensor:
            b, c, h, w = hidden.shape
            x = attention.group_norm(hidden.flatten(2)).transpose(1, 2)
            kept = x.transpose(1, 2).reshape(b, c, h, w)[:, :, ::2, ::2].flatten(2).transpose(1, 2)
            q, k, v = attention.to_q(x), attention.to_k(kept), attention.to_v(kept)
            y = torch.softmax(q @ k.transpose(1, 2) / c**0.5, -1) @ v
            y = attention.to_out[0](y).transpose(1, 2).reshape(b, c, h, w)
            return y + hidden

        attention.forward = strided
        expected = vae.decode(latents, return_dict=False)[0]
    (actual,) = run(onnx_bundle / "vae_decoder.onnx", latent_sample=latents)
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(actual, dense, rtol=1e-4, atol=1e-5)


def test_text_encoder_equals_transformers(onnx_bundle: Path, pipeline: Path) -> None:
    from transformers import CLIPTextModel

    text = CLIPTextModel.from_pretrained(pipeline / "text_encoder").eval()
    ids = torch.randint(0, 97, (1, 77))
    ids[0, 20:] = 98
    with torch.no_grad():
        expected = text(ids)
    hidden, pooled, *_ = run(onnx_bundle / "text_encoder.onnx", input_ids=ids)
    torch.testing.assert_close(hidden, expected.last_hidden_state, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(pooled, expected.pooler_output, rtol=1e-4, atol=1e-5)


def test_engines(pipeline: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "b"
    base = ["-m", str(pipeline), "-r", "32", "-o", f"{out}/", "--target", "sm89", "--json"]
    assert main(base) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["reused"] is False
    assert printed["bundle"]["kind"] == "tensorrt"
    assert damage(out) == []
    assert sorted(p.name for p in out.glob("*.plan")) == [
        "text_encoder.plan", "unet.plan", "vae_decoder.plan",
    ]  # fmt: skip
    assert main(base) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["reused"] is True
    assert all(c["reused"] for c in printed["components"].values())


def test_foreign_folder_is_refused(pipeline: Path, tmp_path: Path, capsys: Any) -> None:
    (tmp_path / "photo.jpg").touch()
    assert main(arguments(pipeline, tmp_path)) == 7
    assert "holds other files" in said(capsys)
    assert [p.name for p in tmp_path.iterdir() if p.is_file()] == ["photo.jpg"]


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (("--format", "coreml"), "Unknown format 'coreml'"),
        (("--format", "pt2", "--opset", "20"), "unet.pt2 is an AOTInductor package"),
        (("--format", "pt2", "--target", "sm89"), "--target is for TensorRT engines"),
        (("--component", "ears"), "Unknown component 'ears'"),
        (("--vae-precision", "int8"), "Unknown precision 'int8'"),
        (("--component", "text-encoder-2"), "has no text_encoder_2/config.json"),
        (("-o", "x.onnx"), "--format is for bundles"),
        (("-r", "33"), "cannot make 33x33 pixels"),
        (("--component", "vae-decoder", "--controlnet"), "--controlnet is for UNets"),
    ],
)
def test_mistakes(
    pipeline: Path, tmp_path: Path, capsys: Any, more: tuple[str, ...], says: str
) -> None:
    assert main(arguments(pipeline, tmp_path / "new", *more)) == 2
    assert says in said(capsys)
    assert not (tmp_path / "new").exists()


def test_all_into_a_file(pipeline: Path, tmp_path: Path, capsys: Any) -> None:
    out = str(tmp_path / "x.onnx")
    assert main(["-m", str(pipeline), "-r", "32", "-o", out, "--component", "all"]) == 2
    assert "--out bundle/" in said(capsys)


def test_registry_needs_no_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """SDXL's parts are known: names, batches, and precisions, before anything is built."""
    from todo_compile.build.job import Job

    jobs: dict[str, Job] = {}

    def run(self: Any) -> Any:
        jobs.update(self.jobs)
        raise ExportError("stop")

    monkeypatch.setattr(bundle_job.BundleJob, "run", run)
    with pytest.raises(ExportError, match="stop"):
        todo_compile.compile_bundle(
            "sdxl", res=2048, out=tmp_path / "b", format="onnx", weights="random", batch=4
        )
    assert {n: (j.batch, j.precision) for n, j in jobs.items()} == {
        "unet": (4, "fp16"),
        "vae_decoder": (2, "fp32"),
        "text_encoder": (1, "fp16"),
        "text_encoder_2": (1, "fp16"),
    }
    assert not (tmp_path / "b").exists()
