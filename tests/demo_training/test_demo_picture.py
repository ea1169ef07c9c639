"""`make demo`'s script: compiles, draws twice from equal seeds, writes one picture."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from examples import demo
from todo_compile.runtime.generate import GAIN


def test_difference_is_shown_eightfold() -> None:
    dense = demo.Drawn(np.full((1, 8, 8, 3), 0.5, np.float32), 2.0)
    small = demo.Drawn(np.full((1, 8, 8, 3), 0.45, np.float32), 1.0)
    sheet = np.asarray(demo.compose(dense, small, ["x"], "half", cell=64))

    assert sheet[32, 32, 0] == 128
    assert sheet[32, 64 + 10 + 32, 0] == 115
    assert sheet[32, 2 * (64 + 10) + 32, 0] == pytest.approx(0.05 * GAIN * 255, abs=1)


def test_writes_the_picture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "demo.png"
    arguments = ["--res", "64", "--steps", "2", "--factors", "2", "--prompts", "a strawberry"]
    monkeypatch.setattr(sys, "argv", ["demo.py", *arguments, "--threads", "1", "--out", str(out)])
    demo.main()

    with Image.open(out) as image:
        assert image.width == 3 * 320 + 20
    printed = capsys.readouterr().out
    # Two different networks drew: a drift of exactly zero would mean that one was used twice.
    assert "MSE 0.00e+00" not in printed
    assert (tmp_path / "demo-64-dense.onnx").is_file()
    assert (tmp_path / "demo-64-downsampled.onnx").is_file()
