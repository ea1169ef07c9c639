"""Options that cannot work, or would change nothing: said before the work."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from helpers import said
from safetensors.torch import save_file

from todo_compile import api
from todo_compile.build import compiler
from todo_compile.cli.app import main


@pytest.fixture(autouse=True)
def nothing_is_built(monkeypatch: pytest.MonkeyPatch) -> None:
    def built(*args: object, **kwargs: object) -> None:
        del args, kwargs
        raise AssertionError("work was begun")

    monkeypatch.setattr(compiler, "_rewritten", built)
    monkeypatch.setattr(api, "rewrite_graph", built, raising=False)
    monkeypatch.setattr("todo_compile.capture.trace.capture", built)


@pytest.mark.parametrize(
    "more",
    [
        ("--target", "sm89"),
        ("--library", "tensorrt"),
        ("--timing-cache", "t.cache"),
        ("--weight-streaming",),
    ],
)
@pytest.mark.parametrize("out", ["x.onnx", "b/"])
def test_engine_options_for_onnx(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], more: tuple[str, ...], out: str
) -> None:
    base = ["-m", str(model), "-r", "64", "-o", f"{tmp_path}/{out}", *more]
    assert main([*base, *(["--format", "onnx"] if out == "b/" else [])]) == 2
    assert f"{more[0]} is for TensorRT engines" in said(capsys)
    assert not list(tmp_path.iterdir())


def test_dump_and_plot(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    base = ["-m", str(model), "-r", "64"]
    dump = ["--dump", f"{tmp_path}/file/d"]
    for line in (["compile", *base, "-o", f"{tmp_path}/x.onnx", *dump], ["plan", *base, *dump]):
        assert main(line) == 2
        words = said(capsys)
        assert "cannot be made" in words
        assert "Give --dump a folder" in words
    assert main(["plan", *base, "--plot", f"{tmp_path}/none/p.png"]) == 2
    assert "its folder does not exist" in said(capsys)


def test_an_output_where_no_file_can_be(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if not Path("/proc").is_dir():
        pytest.skip("there is no /proc here")
    for out in ("/proc/x.onnx", "/proc/b/"):
        assert main(["-m", str(model), "-r", "64", "-o", out]) == 7
        assert "Cannot write in /proc" in said(capsys)


def foreign_lora(folder: Path) -> Path:
    """For another model: a layer that this one lacks."""
    layer = "unet.no.such.layer.lora_"
    path = folder / "l.safetensors"
    save_file({f"{layer}A.weight": torch.ones(1, 4), f"{layer}B.weight": torch.ones(4, 1)}, path)
    return path


def test_a_bundle_is_checked_before_its_first_component(
    pipeline: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "b"
    base = ["-m", str(pipeline), "-r", "32", "-o", f"{out}/", "--format", "onnx"]
    assert main([*base, "--vae-factors", "99"]) == 2
    assert "factor 99x99 (width×height) for level 1 exceeds its grid" in said(capsys)
    assert main([*base, "--lora", str(foreign_lora(tmp_path))]) == 2
    assert "that this unet lacks (no.such.layer)" in said(capsys)
    assert not out.exists()


def test_a_file_of_builds_is_checked_too(
    pipeline: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    file = tmp_path / "builds.yaml"
    file.write_text(
        f"""
defaults: {{model: '{pipeline}', res: 32, format: onnx}}
builds:
  - {{out: '{tmp_path}/a/', vae-factors: 99}}
  - {{out: '{tmp_path}/b/', lora: '{foreign_lora(tmp_path)}'}}
  - {{out: '{tmp_path}/c/', dump: '{tmp_path}/file/d'}}
"""
    )
    assert main(["build", str(file), "--dry-run"]) == 2
    words = said(capsys)
    for says in ("3 mistakes", "exceeds its grid", "that this unet lacks", "cannot be made"):
        assert says in words


def test_the_part_of_a_lora_that_is_not_compiled_is_told(
    model: Path, pipeline: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "half.safetensors"
    tensors: dict[str, torch.Tensor] = {"lora_unet_conv_in.diff": torch.ones(16, 4, 3, 3)}
    for name in ("q", "k", "v"):
        layer = f"lora_te_text_model_encoder_layers_0_self_attn_{name}_proj.lora_"
        tensors[f"{layer}down.weight"] = torch.ones(1, 24)
        tensors[f"{layer}up.weight"] = torch.ones(24, 1)
    save_file(tensors, path)
    out = tmp_path / "x.onnx"
    with pytest.raises(AssertionError, match="work was begun"):
        main(["-m", str(model), "-r", "64", "-o", str(out), "--lora", str(path)])
    assert "half.safetensors also has 3 layers for the text_encoder" in said(capsys)
    with pytest.raises(AssertionError, match="work was begun"):
        main(["-m", str(pipeline), "-r", "64", "-o", f"{tmp_path}/b/", "--lora", str(path)])
    assert "also has" not in said(capsys)
