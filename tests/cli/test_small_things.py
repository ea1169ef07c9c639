"""Small mistakes of a newcomer, each with its own words before anything heavy is loaded."""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers import said

from todo_compile.cli.app import main

CASES = [
    # (words, exit status, what is said)
    (["-m", "sd15", "-r", "512", "-o", "u.onnx", "--lora", "no.safetensors"], 2,
     ["The LoRA no.safetensors does not exist", "--lora FILE.safetensors[:SCALE]"]),
    (["-m", "sd15", "-r", "512", "-o", "u.onnx", "--lora", "no.safetensors:0.5"], 2,
     ["The LoRA no.safetensors does not exist"]),
    (["plan", "-m", "sd15", "-r", "1023"], 2, ["1016x1016 or 1024x1024"]),
    (["plan", "-m", "sd15", "-r", "1023x770"], 2, ["1016x768 or 1024x776"]),
    (["plan", "-m", "sd15", "-r", "512", "--component", "all"], 2,
     ["Choose one of unet, vae-decoder, text-encoder, text-encoder-2"]),
    (["inspect", "none.plan"], 7, ["none.plan does not exist"]),
    (["inspect", "bare.onnx"], 7, ["bare.onnx has no manifest beside it: bare.onnx.json"]),
    (["inspect", "empty"], 7, ["empty is a folder"]),
    (["export-triton", "none", "--out", "r"], 7, ["none does not exist"]),
    (["export-triton", "bare.onnx", "--out", "r"], 7, ["bare.onnx has no manifest beside it"]),
    (["-m", "sd15", "-r", "512", "-o", "X.ONX"], 2, ["says nothing about the format", ".onnx"]),
    (["-m", "sd15", "-r", "512", "-o", "X.ONNX", "--weights", "no.safetensors"], 2,
     ["There are no weights at no.safetensors"]),  # the suffix is taken, then
]  # fmt: skip


@pytest.mark.parametrize(("words", "status", "told"), CASES, ids=[" ".join(c[0]) for c in CASES])
def test_what_is_said(
    words: list[str],
    status: int,
    told: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bare.onnx").write_bytes(b"\x08")
    (tmp_path / "empty").mkdir()
    assert main(words) == status
    text = said(capsys)
    for one in told:
        assert one in text
    assert sorted(p.name for p in tmp_path.iterdir()) == ["bare.onnx", "empty"]
