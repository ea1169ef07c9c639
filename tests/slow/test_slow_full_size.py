"""Real architectures at real sizes; minutes, so behind the marker."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from todo_compile.cli.app import main

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]


def test_sd15_at_2048_builds_an_engine(tmp_path: Path) -> None:
    out = tmp_path / "engine.plan"
    status = main(
        ["--model", "sd15", "--weights", "random", "--res", "2048", "--out", str(out), "-q"]
    )
    assert status == 0
    manifest = json.loads(out.with_name("engine.plan.json").read_text(encoding="utf-8"))
    factors = {(s["level"], *s["factor"]) for s in manifest["sites"] if s["action"] == "rewritten"}
    assert factors == {(1, 4, 4), (2, 2, 2)}
    assert manifest["model"]["random_weights"] is True
    assert manifest["memory"]["activation"] > 0
    assert out.stat().st_size == manifest["files"][0]["bytes"] > 1.6e9
    assert [p.name for p in sorted(tmp_path.iterdir())] == [
        "engine.plan",
        "engine.plan.json",
        "engine.plan.onnx",
    ]


def test_sd15_at_512_in_onnxruntime_equals_the_graph(tmp_path: Path) -> None:
    out = tmp_path / "unet.onnx"
    arguments = ["--model", "sd15", "--weights", "random", "--res", "512", "--out", str(out)]
    status = main(
        [*arguments, "--kv-tokens", "1024", "--precision", "fp32", "--batch", "1", "--verify", "-q"]
    )
    assert status == 0
    manifest = json.loads(out.with_name("unet.onnx.json").read_text(encoding="utf-8"))
    assert manifest["verification"]["resolution"] == "512x512"
    assert manifest["verification"]["relative_l2"] < 1e-4
