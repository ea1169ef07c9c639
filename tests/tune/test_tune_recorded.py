"""Plans for pipelines whose inputs are recorded: their own loops score, draw and switch phases."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

import todo_compile
from todo_compile.bundle.plan import TunedPlan
from todo_compile.capture.inputs import recorder_of, with_pipeline_defaults
from todo_compile.capture.recording.recorded import Recorder
from todo_compile.capture.recording.times import Times, line
from todo_compile.cli.app import app
from todo_compile.errors import ConfigError, ModelError
from todo_compile.models import Resolution, resolve_component
from todo_compile.runtime.generate import generate
from todo_compile.runtime.in_process import plan_pipeline
from todo_compile.runtime.metrics import mse
from todo_compile.runtime.switching import PhasedDenoiser
from todo_compile.runtime.torch_pipelines import torch_pipeline
from todo_compile.runtime.variants import CapturedComponent
from todo_compile.tuning import run

sys.path.append(str(Path(__file__).parents[1] / "models"))

import pipeline_zoo as zoo

SIZE = Resolution.parse("192x128")
PROMPTS = ("a b", "a a b b", "b", "b a")
STEPS = 4


def saved(name: str, root: Path) -> Path:
    """A tiny pipeline whose attention is far from uniform."""
    pipeline = zoo.make(name)
    denoiser: Any = getattr(pipeline, "unet", None) or pipeline.transformer
    for key, weight in denoiser.named_parameters():
        if key.endswith(("to_q.weight", "to_k.weight")):
            weight.data *= 3
    return zoo.save(pipeline, root / name)


@pytest.fixture(scope="module")
def sd3(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved("sd3", tmp_path_factory.mktemp("recorded"))


@pytest.fixture(scope="module")
def tuned(sd3: Path) -> TunedPlan:
    """The fastest that keeps a drift which forbids factors in some part of the schedule."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run, "QUICK", run.Effort(fit=1, pairs=2, parts=2, curve=2, rounds=3))
        return todo_compile.tune(
            str(sd3), res=str(SIZE), budget=f"drift={DRIFT}", candidates="nearest:2,4", phases=2,
            prompts=PROMPTS, steps=STEPS, quick=True, scores=sd3.parent / "scores.json",
        )  # fmt: skip


DRIFT = 1e-5


def switched(plan: TunedPlan, folder: Path) -> Any:
    """The pipeline under the plan."""
    source = with_pipeline_defaults(resolve_component(str(folder)))
    pipeline = torch_pipeline(source, precision="fp32")
    plan_pipeline(pipeline, source, SIZE, batch=2, plan=plan)
    return pipeline


def drawn(pipeline: Any, prompt: str, seed: int) -> Any:
    return generate(pipeline, prompt, steps=STEPS, guidance=3.0, seed=seed, resolution=SIZE).pixels


def test_its_budget_is_held_on_pictures_drawn_by_hand(tuned: TunedPlan, sd3: Path) -> None:
    """diffusers' own pipeline, dense, against the plan's denoisers in it."""
    found = tuned.chosen.measured
    assert found is not None
    assert (tuned.component, found.pairs) == ("transformer", 2)
    assert tuned.speedup > 1
    assert found.drift.high <= DRIFT
    assert len(tuned.phases) == 2, "both phases are alike: the budget tells nothing apart"
    dense = zoo_pipeline(sd3)
    ours = switched(tuned, sd3)
    held = [(PROMPTS[1], 10_000), (PROMPTS[3], 10_001)]
    errors = [mse(drawn(ours, *pair), drawn(dense, *pair)) for pair in held]
    assert sum(errors) / 2 == pytest.approx(found.drift.mean, rel=1e-2)


def zoo_pipeline(folder: Path) -> Any:
    return torch_pipeline(resolve_component(str(folder)), precision="fp32")


def test_scores_are_of_every_call_of_the_loop(tuned: TunedPlan, sd3: Path) -> None:
    scores = json.loads((sd3.parent / "scores.json").read_text())
    assert scores["steps"] == [0, 0.25, 0.5, 0.75]
    assert scores["done"] == STEPS
    assert set(scores["local"]) == {site.name for site in tuned.sites}
    assert all(min(row) > 0 for rows in scores["local"].values() for row in rows.values())


def test_accelerate_takes_it(tuned: TunedPlan, sd3: Path) -> None:
    """The same factors in each phase, and the same picture, by torch.compile."""
    expected = drawn(switched(tuned, sd3), "a b", 5)
    pipeline = zoo_pipeline(sd3)
    todo_compile.clear_reports()
    todo_compile.accelerate(pipeline, plan=tuned, res=str(SIZE), vae=False, inner="eager")
    moved = np.abs(expected - drawn(zoo_pipeline(sd3), "a b", 5)).max()
    error = np.abs(drawn(pipeline, "a b", 5) - expected).max()
    assert error < 1e-5
    assert moved > 1e-3
    rewritten = [
        {site.module: site.factor[0] for site in report.sites if site.action == "rewritten"}
        for report in todo_compile.reports()
    ]
    assert rewritten == [
        {site: int(choice.removeprefix("nearest:")) for site, choice in phase.sites.items()}
        for phase in tuned.phases
    ]


def test_a_bundle_and_generate_take_it(tuned: TunedPlan, sd3: Path, tmp_path: Path) -> None:
    plan = tuned.save(tmp_path / "plan.json")
    ours = drawn(switched(tuned, sd3), "a b", 5)
    made: Any = todo_compile.compile(
        str(sd3), res=str(SIZE), out=f"{tmp_path}/bundle/", format="onnx", precision="fp32",
        component="unet", plan=plan,
    )  # fmt: skip
    assert {one.manifest.plan.digest for one in made.results.values()} == {tuned.digest}
    assert len(made.results) == 2
    pipeline = zoo_pipeline(sd3)
    pipeline.transformer = todo_compile.load(tmp_path / "bundle", component="transformer")
    pipeline.transformer.follow(pipeline)
    built = drawn(pipeline, "a b", 5)
    dense = drawn(zoo_pipeline(sd3), "a b", 5)
    assert np.abs(built - ours).max() < 0.05 * np.abs(ours - dense).max()
    words = ["generate", "--model", str(sd3), "--res", str(SIZE), "--plan", str(plan)]
    words += ["--prompt", "a b", "--seed", "5", "--steps", "4", "--guidance", "3"]
    answer = CliRunner().invoke(app, [*words, "--out", str(tmp_path / "a.png")])
    assert answer.exit_code == 0, answer.output


def test_which_phase_runs_whatever_the_denoiser_is_told_of_the_time(tmp_path: Path) -> None:
    """FLUX divides its times by 1000."""
    source = with_pipeline_defaults(resolve_component(str(saved("flux", tmp_path))))
    pipeline = torch_pipeline(source, precision="fp32")
    captured = CapturedComponent(pipeline, source, SIZE, batch=1)
    parts: list[Any] = [captured.variant(None)[0] for _ in range(2)]
    ran = heard(parts)
    pipeline.transformer = PhasedDenoiser(parts, [0.0, 0.7])
    pipeline.transformer.follow(pipeline)
    drawn(pipeline, "a b", 0)
    assert ran == [0, 0, 0, 1]


def heard(parts: Sequence[Any]) -> list[int]:
    """Which part was called, call by call."""
    ran: list[int] = []
    for number, part in enumerate(parts):
        part.register_forward_hook(lambda *_, number=number: ran.append(number))
    return ran


@pytest.mark.slow
def test_a_dense_end_of_a_bundle(tmp_path: Path) -> None:
    """`--dense-after`, of a pipeline that divides its time by 1000: which part runs, and its
    picture."""
    folder = saved("flux", tmp_path)
    todo_compile.compile(
        str(folder), res=str(SIZE), out=f"{tmp_path}/bundle/", format="onnx", precision="fp32",
        component="unet", factors="2", dense_after=0.7,
    )  # fmt: skip
    pipeline = zoo_pipeline(folder)
    dense = drawn(pipeline, "a b", 1)
    phased = todo_compile.load(tmp_path / "bundle", component="transformer")
    phased.follow(pipeline)
    ran = heard(phased.parts)
    pictures: list[Any] = []
    for denoiser in (phased, *phased.parts):
        pipeline.transformer = denoiser
        pictures.append(drawn(pipeline, "a b", 1))
    assert ran[:STEPS] == [0, 0, 0, 1]
    mixed, downsampled, last = (mse(picture, dense) for picture in pictures)
    assert last < mixed / 50
    assert mse(pictures[0], pictures[1]) > 0
    assert downsampled > 0


@pytest.mark.parametrize(
    ("name", "scale", "offset"), [("lumina", -1e-3, 1.0), ("flux2", 1e-3, 0.0), ("sana", 1, 0)]
)
def test_times_are_read_off_the_loop(
    name: str, scale: float, offset: float, tmp_path: Path
) -> None:
    """Of denoisers that look at values, and where what follows the loop does so, too."""
    source = resolve_component(str(saved(name, tmp_path)))
    found = recorder_of(source).times(SIZE)
    assert found is not None
    assert (found.scale, found.offset) == pytest.approx((scale, offset), abs=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(
    "times", [Times("t", 1.0, 0.0), Times("t", 1e-3, 0.0), Times("t", -1e-3, 1.0)]
)
def test_times_come_back_through_every_precision(times: Times, dtype: torch.dtype) -> None:
    for t in (1000.0, 985.3, 500.25, 26.4):
        told = torch.tensor([times.scale * t + times.offset] * 2).to(dtype)
        back, slack = times.scheduled(told)
        assert abs(back - t) <= max(slack, 1e-3)
        assert slack < 10
    assert Times.of(times.plain) == times


@pytest.mark.parametrize(
    ("seen", "schedule", "late", "found"),
    [
        ([1.0, 0.6, 0.1], [1000, 600, 100], False, Times("t", 1e-3, 0.0)),
        ([0.0, 0.4, 0.9], [1000, 600, 100], False, Times("t", -1e-3, 1.0)),
        ([1.0, 1.0, 0.6, 0.6, 0.1, 0.1], [1000, 600, 100], False, Times("t", 1e-3, 0.0)),
        ([300, 200, 100], [500, 400, 300, 200, 100], True, Times("t", 1.0, 0.0)),
        ([500, 400, 300], [500, 400, 300, 200, 100], False, None),  # it stopped half-way
        ([1.0, 0.7, 0.1], [1000, 600, 100], False, None),
        ([1.0, 0.1], [1000, 100], False, None),
        ([3, 3, 3], [1000, 600, 100], False, None),
    ],
)  # fmt: skip
def test_a_straight_line_or_nothing(
    seen: Sequence[float], schedule: Sequence[float], late: bool, found: Times | None
) -> None:
    got = line("t", seen, schedule, late=late)
    if found is None or got is None:
        assert got is found
    else:
        assert (got.scale, got.offset) == pytest.approx((found.scale, found.offset), abs=1e-9)


@pytest.mark.parametrize(
    "value",
    [
        None,
        {},
        {"name": "t", "scale": 0, "offset": 0},
        {"name": "x", "scale": 1, "offset": 0},
        {"name": "t", "scale": "a", "offset": 0},
        {"name": "t", "scale": float("nan"), "offset": 0},
    ],
)
def test_times_of_a_foreign_manifest(value: Any) -> None:
    assert Times.of(value) is None


def test_what_is_refused(sd3: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before weights are read: several pictures at once, and phases where steps cannot be told."""
    with pytest.raises(ConfigError, match="one picture at a time"):
        todo_compile.tune(str(sd3), res=str(SIZE), budget="drift=1e-3", batch=2)
    source = resolve_component(str(sd3))
    assert recorder_of(source).times(SIZE) == Times("timestep", 1.0, 0.0)
    monkeypatch.setattr(Recorder, "times", lambda *_: None)
    words: dict[str, Any] = {"res": str(SIZE), "out": f"{tmp_path}/bundle/"}
    with pytest.raises(ModelError, match="A bundle of phases is switched by step"):
        todo_compile.compile(str(sd3), dense_after=0.5, **words)
    with pytest.raises(ModelError, match="A tuned plan is switched by step"):
        todo_compile.tune(str(sd3), res=str(SIZE), budget="drift=1e-3")
