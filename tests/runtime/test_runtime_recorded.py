"""Pipelines beyond Stable Diffusion in torch: drawn rewritten, drift along their loops, gates."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner
from zoo_bundles import Pooled, call, zoo

import todo_compile
from todo_compile.build import verification
from todo_compile.build.gate import beyond_memory
from todo_compile.bundle.bundle import read_bundle
from todo_compile.capture.inputs import example_inputs, with_pipeline_defaults
from todo_compile.cli.app import app
from todo_compile.drift.recorded import recorded_probes
from todo_compile.errors import TodoError
from todo_compile.models import Resolution, WeightsChoice, find_weights, load, resolve_component
from todo_compile.options import PlanOptions
from todo_compile.runtime.generate import generate
from todo_compile.runtime.metrics import mse
from todo_compile.tuning.drawing import Pair, Sampling, call_pipeline, drawn_from_prompts
from todo_compile.tuning.prompts import GENERAL, split


def test_without_a_bundle(sd3: tuple[Any, Path], tmp_path: Path) -> None:
    """`generate --model`: the denoiser rewritten in torch, in its own pipeline."""
    from todo_compile.cli.generate import _parts
    from todo_compile.runtime.in_process import rewrite_pipeline

    pipeline, bundle = sd3
    source = with_pipeline_defaults(resolve_component(str(bundle.parent / "model")))
    ours = type(pipeline)(**_parts(pipeline))
    report = rewrite_pipeline(
        ours, source, Resolution.parse("192x128"), batch=2, options=PlanOptions.create(factors="2")
    )
    assert report.rewritten == 2
    dense = generate(pipeline, **call(pipeline, "sd3")).pixels
    with Pooled(pipeline, "sd3"):
        expected = generate(pipeline, **call(pipeline, "sd3")).pixels
    found = generate(ours, **call(ours, "sd3")).pixels
    assert np.abs(found - expected).max() < 0.05 * np.abs(expected - dense).max()
    out = tmp_path / "both.png"
    words = ["generate", "--model", str(bundle.parent / "model"), "--res", "192x128", "--prompt"]
    drawn = CliRunner().invoke(app, [*words, "a b", "--steps", "2", "--compare", "--out", str(out)])
    assert drawn.exit_code == 0, drawn.output
    assert out.is_file()


def test_drift_along_the_pipelines_own_loop(sd3: tuple[Any, Path]) -> None:
    """Both steps' inputs and errors against the real transformer in diffusers' loop."""
    pipeline, bundle = sd3
    folder, size = bundle.parent / "model", Resolution.parse("192x128")
    source = with_pipeline_defaults(resolve_component(str(folder)))
    weights = find_weights(source, WeightsChoice.parse("auto"), dtype=torch.float32)
    model = load(source, weights, dtype=torch.float32)
    example = example_inputs(model, size, batch=2)
    probes = recorded_probes(model, example, size, steps=2, seeds=1)
    pipeline.scheduler.set_timesteps(2)
    times = pipeline.scheduler.timesteps
    assert [probe.timestep for probe in probes] == times.tolist()
    place = example.input_names.index("hidden_states")
    first, second = (probe.args[place] for probe in probes)
    with torch.no_grad():
        outputs = [example.wrapper(*probe.args) for probe in probes]
        empty, text = outputs[0].chunk(2)
        guided = empty + 7.0 * (text - empty)  # the pipeline's default
    moved = pipeline.scheduler.step(guided, times[0], first[:1], return_dict=False)[0]
    torch.testing.assert_close(second, torch.cat([moved, moved]))
    answer = CliRunner().invoke(
        app, ["drift", "--model", str(folder), "--res", "192x128", "--factors", "2", "--steps",
              "2", "--seeds", "1", "--json", "--quiet"],
    )  # fmt: skip
    assert answer.exit_code == 0, answer.output
    said = json.loads(answer.stdout)
    assert (said["batch"], said["timesteps"], len(said["sites"])) == (2, times.tolist(), 2)
    with torch.no_grad(), Pooled(pipeline, "sd3") as pooled:
        pooled.inside = True
        for total, probe, dense in zip(said["total"], probes, outputs, strict=True):
            got = example.wrapper(*probe.args)
            expected = float((got - dense).norm() / dense.norm())
            assert expected > 1e-4
            assert total == pytest.approx(expected, rel=1e-2)


def test_what_cannot_be_measured_or_drawn_is_refused_before_weights_are_read(
    sd3: tuple[Any, Path], tmp_path: Path
) -> None:
    model = tmp_path / "model"
    shutil.copytree(sd3[1].parent / "model", model)
    for path in model.rglob("*.safetensors"):
        path.write_bytes(b"")
    words = ["--model", str(model), "--res", "192x128"]

    def refused(*more: str) -> str:
        found = CliRunner().invoke(app, [*more, *words])
        assert isinstance(found.exception, TodoError), found.output
        return str(found.exception)

    assert "calls its denoiser with 2 rows" in refused("drift", "--batch", "3")
    karlo = zoo.save(zoo.make("karlo"), tmp_path / "karlo")
    words[1] = str(karlo)
    assert "UnCLIPPipeline draws in several stages" in refused(
        "generate", "--prompt", "a", "--out", str(tmp_path / "x.png")
    )
    plan = str(tmp_path / "plan.json")
    assert "UnCLIPPipeline draws in several stages" in refused(
        "tune", "--budget", "drift=1e-3", "--out", plan
    )


GATE = "drift=0.5,pairs=1,steps=2"


@pytest.fixture(scope="module")
def drift(sd3: tuple[Any, Path]) -> float:
    """What the gate has to measure."""
    pair = Pair(split(list(GENERAL))[1][0], 20_000)
    size, sampling = Resolution.parse("192x128"), Sampling(2, 3.0)
    ((found,), (dense,)) = (
        call_pipeline(pipe, [pair], sampling, size)
        for pipe in (todo_compile.load_pipeline(sd3[1]), sd3[0])
    )
    assert mse(found, dense) > 0
    return mse(found, dense)


def test_a_gate_draws_with_the_bundles_files(sd3: tuple[Any, Path], drift: float) -> None:
    folder = sd3[1]
    given = {"out": f"{folder}/", "format": "onnx", "vae_factors": "off"}
    made: Any = todo_compile.compile(gate=GATE, **options(folder.parent / "model", **given))
    (verdict,) = read_bundle(folder).gates
    assert verdict.runner == "onnxruntime"
    assert all(one.reused for one in made.results.values()), "nothing is built again for a gate"
    assert verdict.measured.drift.mean == pytest.approx(drift, rel=1e-2)


def test_a_gate_that_torch_judges(
    sd3: tuple[Any, Path], drift: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As of engines, which do not run here: the rewritten graph draws in the torch pipeline."""
    monkeypatch.setattr(verification, "available_bytes", lambda: 0)
    made: Any = todo_compile.compile(
        gate=GATE, **options(sd3[1].parent / "model", out=tmp_path / "x.onnx")
    )
    verdict = made.manifest.gate
    assert (verdict.runner, verdict.why) == ("torch", beyond_memory([made.manifest]))
    assert verdict.measured.drift.mean == pytest.approx(drift, rel=1e-2)


def test_which_pipelines_draw_from_prompts_alone() -> None:
    able = ("StableDiffusion3Pipeline", "FluxPipeline", "PixArtSigmaPipeline", "Flux2KleinPipeline")
    assert all(map(drawn_from_prompts, able))
    for name in ("StableDiffusionXLImg2ImgPipeline", "IFSuperResolutionPipeline", "DiTPipeline",
                 "AnimateDiffPipeline", "FluxKontextPipeline", "NoPipeline"):  # fmt: skip
        assert not drawn_from_prompts(name)


def test_a_size_is_drawn_as_it_is() -> None:
    """PixArt's pipelines would draw the nearest size that they know."""
    pipeline = zoo.make("pixart")
    size = Resolution.parse("192x128")
    (picture,) = call_pipeline(pipeline, [Pair("a b", 0)], Sampling(1, 3.0), size)
    assert picture.shape == (128, 192, 3)


def options(model: Path, **more: Any) -> dict[str, Any]:
    return {"model": str(model), "res": "192x128", "precision": "fp32", "factors": "2", **more}
