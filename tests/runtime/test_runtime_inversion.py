"""Textual inversion: tokenizer and embeddings travel with the bundle."""

from __future__ import annotations

from pathlib import Path

import pytest
import tiny_pipelines as tiny
import torch
from tiny_bundles import with_oracle

import todo_compile
from todo_compile.options import PlanOptions


@pytest.mark.slow
def test_a_learned_word_draws(tmp_path: Path) -> None:
    """Of two vectors: the pipeline writes it as two tokens, which the encoder knows."""
    pipe = tiny.sd()
    learned = 3 * torch.randn(2, tiny.TEXT, generator=torch.Generator().manual_seed(7))
    pipe.load_textual_inversion({"<cat>": learned})
    pipe.save_pretrained(tmp_path / "model")
    todo_compile.compile_bundle(
        str(tmp_path / "model"), res=tiny.PIXELS, out=tmp_path / "bundle", format="onnx",
        precision="fp32", vae_options=PlanOptions.create(kv_tokens=64),
    )  # fmt: skip
    loaded = todo_compile.load_pipeline(tmp_path / "bundle")
    expected = tiny.picture(with_oracle(pipe), prompt="a <cat>")
    found = tiny.picture(loaded, prompt="a <cat>")
    assert (found - expected).abs().max() < 1e-3
    assert (tiny.picture(loaded, prompt="a <dog>") - found).abs().max() > 1e-2
