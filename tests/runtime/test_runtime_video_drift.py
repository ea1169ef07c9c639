"""Drift of videos: measured on the graph that is compiled, though its positions are written."""

from __future__ import annotations

import json
from pathlib import Path

import oracle
import pytest
import torch
from typer.testing import CliRunner
from zoo_bundles import zoo

from todo_compile.capture.inputs import example_inputs, with_pipeline_defaults
from todo_compile.cli.app import app
from todo_compile.drift.recorded import recorded_probes
from todo_compile.models import (
    Resolution,
    WeightsChoice,
    find_weights,
    load,
    resolve_component,
    with_frames,
)

SIZE, FRAMES = "96x64", 9
CLIPS = {"wan": (72, 0), "cogvideox": (226 + 72, 226)}
"""Model → (tokens, of the text before those of 3 × 4 × 6 patches)."""


@pytest.mark.parametrize("name", CLIPS)
def test_drift_is_that_of_the_oracle(name: str, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    zoo.FAMILIES[name]().save_pretrained(folder)
    source = with_pipeline_defaults(with_frames(resolve_component(str(folder)), FRAMES))
    weights = find_weights(source, WeightsChoice.parse("auto"), dtype=torch.float32)
    model = load(source, weights, dtype=torch.float32)
    size = Resolution.parse(SIZE)
    assert source.pipeline_defaults is not None
    example = example_inputs(model, size, batch=source.pipeline_defaults.batch)
    (probe,) = recorded_probes(model, example, size, steps=1, seeds=1)
    said = CliRunner().invoke(
        app, ["drift", "--model", str(folder), "--res", SIZE, "--frames", str(FRAMES), "--factors",
              "2", "--steps", "1", "--seeds", "1", "--json", "--quiet"],
    )  # fmt: skip
    assert said.exit_code == 0, said.output
    found = json.loads(said.stdout)
    assert len(found["sites"]) == 1
    tokens, ahead = CLIPS[name]
    with torch.no_grad():
        dense = example.wrapper(*probe.args)
        with oracle.pooled_fused_attention({tokens: (ahead, (3, 4, 6), (2, 2))}, "nearest"):
            pooled = example.wrapper(*probe.args)
    expected = float((pooled - dense).norm() / dense.norm())
    assert expected > 1e-4
    assert found["total"] == [pytest.approx(expected, rel=1e-2)]
