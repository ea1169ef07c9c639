"""A small real run: budgets are met, no uniform plan dominates, scores are taken up again."""

from __future__ import annotations

import itertools
import json
import signal
from pathlib import Path
from typing import Any

import pytest
from helpers import said
from tune_helpers import PROMPTS, Small

from todo_compile.bundle.files import Stage
from todo_compile.bundle.plan import TunedPlan
from todo_compile.choices import parse_choice
from todo_compile.cli.app import main
from todo_compile.errors import INTERRUPTED, ConfigError
from todo_compile.progress import SilentProgress
from todo_compile.tuning import measuring, run, studio
from todo_compile.tuning.drawing import Pair
from todo_compile.tuning.scores import Scores


def drift(point: Any) -> float:
    return point.measured.drift.mean


def undominated(plan: TunedPlan) -> bool:
    ours = plan.chosen
    return not any(
        p.speedup >= ours.speedup
        and drift(p) <= drift(ours)
        and (p.speedup, drift(p)) != (ours.speedup, drift(ours))
        for p in plan.uniform
    )


def test_the_plan_is_what_it_says(small: Small) -> None:
    studio = small.drawer
    assert len(small.studios) == 1
    plan = small.plan
    assert plan.chosen.measured.drift.high <= 0.02
    assert plan.speedup > 1
    assert TunedPlan.load(plan.save(small.scores.with_name("plan.json"))) == plan
    assert undominated(plan)
    assert len(plan.uniform) == 4, "two candidates, on the largest grid and everywhere"
    speeds = [p.speedup for p in plan.curve]
    assert speeds == sorted(speeds)
    assert [drift(p) for p in plan.curve] == sorted(drift(p) for p in plan.curve)
    assert plan.curve[0].name == "dense"
    studio._pictures.clear()  # nothing is taken from the run
    assert small.redrawn(plan) == pytest.approx(drift(plan.chosen), rel=1e-3, abs=1e-9)
    flops = [studio.flops(phase.options) for phase in plan.phases]
    assert flops == [phase.flops for phase in plan.phases]
    ends = (*plan.starts[1:], 1.0)
    mean = sum(f * (b - a) for f, a, b in zip(flops, plan.starts, ends, strict=True))
    assert plan.speedup == pytest.approx(plan.dense_flops / mean)


@pytest.fixture
def scores_are_known(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: object, **__: object) -> None:
        raise AssertionError("a score was measured again")

    monkeypatch.setattr(measuring, "_one_step", never)
    monkeypatch.setattr(measuring, "_error", never)


@pytest.mark.usefixtures("scores_are_known")
def test_ten_budgets_are_kept(small: Small) -> None:
    """On the held-out pairs, of which the scores know nothing."""
    speeds: list[float] = []
    for budget in (1e-9, 1e-5, 3e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1):
        plan = small.again(f"drift={budget:g}")
        assert plan.chosen.measured.drift.high <= budget
        assert undominated(plan), budget
        assert small.redrawn(plan) == pytest.approx(drift(plan.chosen), rel=1e-3, abs=1e-12)
        speeds.append(plan.speedup)
        if budget == 1e-9:
            assert plan.chosen.name == "dense"
            assert any("dense one is returned" in note for note in plan.notes)
    assert speeds[0] == 1
    assert len(set(speeds)) >= 3, "budgets make a difference"


@pytest.mark.usefixtures("scores_are_known")
def test_a_speed_is_kept(small: Small) -> None:
    plan = small.again("speedup=1.01")
    assert undominated(plan)
    assert plan.speedup >= 1.01 * (1 - 1e-9)
    assert drift(plan.chosen) <= min(drift(p) for p in plan.uniform if p.speedup >= 1.01)


def test_a_speed_out_of_reach_says_what_is_possible(small: Small) -> None:
    with pytest.raises(ConfigError, match="out of reach: with these candidates it is at most 1"):
        small.again("speedup=3")


def test_a_dense_last_phase_and_disabled_sites(small: Small) -> None:
    plan = small.again("speedup=1.005", dense_last=True)
    for point in plan.curve[1:]:
        assert point.phases[-1].dense
        assert point.phases[-1].start > 0
    points = (*plan.curve, *plan.uniform, *small.plan.curve)
    assert {n for p in points for phase in p.phases for n in phase.sites} == {
        f"down_blocks.{level}.attentions.0.transformer_blocks.0.attn1" for level in (0, 1)
    }


def test_random_weights_say_that_they_mean_nothing(small: Small) -> None:
    """Of a registered model; the demo's studio stands in for one of that size."""
    told: list[str] = []
    seeds: list[int | None] = []

    class Said(SilentProgress):
        def warn(self, text: str) -> None:
            told.append(text)

    def stand_in(*_: object, seed: int | None, **__: object) -> Any:
        seeds.append(seed)
        return small.drawer

    with small.patched(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(studio, "Studio", stand_in)
        plan = run.tune(
            "sd15", res=64, weights="random:3", budget="speedup=1.001", candidates="nearest:2",
            phases=1, prompts=PROMPTS, steps=4, disable=["mid*", "up*", "down_blocks.1*"], batch=2,
            fit=1, pairs=1, parts=1, quick=True, progress=Said(),
        )  # fmt: skip
    assert seeds == [3]
    assert plan.weights.startswith("random:3:")
    assert told[0] == plan.notes[0] == run.RANDOM
    assert "say nothing about pictures" in run.RANDOM
    assert (plan.settings["fit_pairs"], plan.settings["parts"]) == (2, [0.0])  # whole batches


class Killed(Exception):
    """The process ends here."""


def test_scores_are_resumed_where_they_stopped(small: Small, tmp_path: Path) -> None:
    studio = small.drawer
    assert len(small.studios) == 1
    whole = Scores.model_validate_json(small.scores.read_text())
    pairs = [Pair(*pair) for pair in whole.key["pairs"]]
    options = {
        site: tuple(parse_choice(text) for text in row)
        for site, row in whole.key["candidates"].items()
    }
    place = tmp_path / "scores.json"
    kept, steps = measuring._one_step, []

    def count(*args: Any) -> None:
        if len(steps) == 2:
            raise Killed
        kept(*args)
        steps.append(args[3])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(measuring, "_one_step", count)
        with pytest.raises(Killed):
            measuring.measure_local(Scores(key=whole.key), studio, pairs, options, save=place)
        half = Scores.load(place, whole.key, strict=True)
        assert half.done == 2 < whole.done == 4
        steps.clear()
        patch.setattr(measuring, "_one_step", lambda *a: (steps.append(a[3]), kept(*a)))
        measuring.measure_local(half, studio, pairs, options, save=place)
    assert steps == [2, 3], "the others are not measured again"
    for site, rows in whole.local.items():
        for text, row in rows.items():
            assert half.local[site][text] == pytest.approx(row, rel=1e-3)
    assert Scores.load(place, whole.key, strict=True).done == 4


def test_scores_of_something_else_are_refused(small: Small, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="measured with another candidates"):
        small.again("drift=0.02", candidates="average:2")
    key = Scores.model_validate_json(small.scores.read_text()).key
    for name in ("weights", "resolution", "steps"):
        other_key = {**key, name: "another"}
        with pytest.raises(ConfigError, match=f"measured with another {name}"):
            Scores.load(small.scores, other_key, strict=True)
        assert Scores.load(small.scores, other_key, strict=False).done == 0
    other = tmp_path / "scores.json"
    for text, words in (
        ("{", "damaged"),
        ("[]", "damaged"),
        ("{}", "holds no scores"),
        (small.scores.read_text().replace('"done": 4', '"done": -1'), "damaged"),
        (small.scores.read_text().replace('"done": 4', '"done": true'), "damaged"),
        (small.scores.read_text().replace('"steps": [0.0, ', '"steps": ['), "number of steps"),
    ):
        other.write_text(text)
        with pytest.raises(ConfigError, match=words):
            small.again("drift=0.02", other)
        assert other.read_text() == text


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_ended(
    small: Small,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    number: signal.Signals,
    status: int,
) -> None:
    """In the middle of writing scores for the second time: the first ones stand, alone."""
    commit = Stage.commit
    count = itertools.count(1)

    def second(stage: Stage) -> None:
        if next(count) == 2:
            signal.raise_signal(number)
        commit(stage)

    monkeypatch.setattr(Stage, "commit", second)
    (tmp_path / "prompts").write_text("\n".join(PROMPTS))
    scores = tmp_path / "scores.json"
    words = "tune -m demo -r 64 --budget drift=0.02 --quick --batch 2 --steps 4 --phases 2"
    words += " --candidates nearest:2 --disable mid* --disable up*"
    places = {"--prompts": tmp_path / "prompts", "--scores": scores, "-o": tmp_path / "plan.json"}
    command = [*words.split(), *(str(one) for pair in places.items() for one in pair)]
    with small.patched():
        assert main(command) == status
    assert INTERRUPTED in said(capsys)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["prompts", "scores.json"]
    assert json.loads(scores.read_text())["done"] > 0
