"""Bundles with a denoiser for each phase of a tuned plan: what is built, shared and drawn."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import tiny_pipelines as tiny
from helpers import said, weights_outside
from plans import DOWN, UP, plan_for

import todo_compile
from todo_compile import models
from todo_compile.build import compiler
from todo_compile.build.bundle_job import BundleJob
from todo_compile.build.phases import phases_of
from todo_compile.bundle.bundle import check_bundle, read_bundle
from todo_compile.bundle.plan import TunedPlan
from todo_compile.cli.app import main
from todo_compile.errors import BundleError, ConfigError
from todo_compile.runtime.in_process import plan_pipeline

FIRST = {DOWN: "nearest:4", UP: "average:2"}
SECOND = {UP: "nearest:4x2"}
PHASES = ((0.0, FIRST), (0.25, SECOND), (0.5, FIRST), (0.75, dict[str, str]()))


@pytest.fixture(scope="module")
def plan(model: Path) -> TunedPlan:
    return plan_for(model, tiny.PIXELS, 16, *PHASES)


@pytest.fixture(scope="module")
def phased(model: Path, plan: TunedPlan, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three different denoisers, of which the first returns. Not to change."""
    folder = tmp_path_factory.mktemp("phased") / "b"
    place = plan.save(folder.with_name("plan.json"))
    with pytest.MonkeyPatch.context() as patch:
        weights_outside(patch)
        line = ["-m", str(model), "-r", str(tiny.PIXELS), "-o", f"{folder}/", "--format", "onnx"]
        assert main([*line, "--precision", "fp32", "--plan", str(place), "-q"]) == 0
    return folder


def test_what_lies_there(phased: Path, plan: TunedPlan, capsys: pytest.CaptureFixture[str]) -> None:
    found = read_bundle(phased)
    assert check_bundle(found, phased) == []
    assert found.components["unet"].file == "unet.onnx"
    assert [(phase.start, phase.file) for phase in found.phases] == [
        (0.25, "unet.phase2.onnx"), (0.5, "unet.onnx"), (0.75, "unet.dense.onnx"),
    ]  # fmt: skip
    # All denoisers share the weights of the first.
    assert sorted(p.name for p in phased.glob("unet*.data")) == ["unet.onnx.data"]
    more = [phased / f"unet.{name}.onnx" for name in ("phase2", "dense")]
    kept = [json.loads(path.with_name(f"{path.name}.json").read_text()) for path in more]
    assert [facts["plan"]["phases"] for facts in kept] == [[2], [4]]
    for facts, path in zip(kept, more, strict=True):
        assert {file["name"] for file in facts["files"]} == {path.name, "unet.onnx.data"}
    capsys.readouterr()
    assert main(["inspect", str(phased)]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "unet.onnx from 0%, unet.phase2.onnx from 25%, unet.onnx from 50%" in shown
    assert f"tuned for {plan.budget}: 1.500× (FLOPs of the denoiser); 4 phases" in shown
    assert "of which later phases" in shown
    assert main(["inspect", str(phased / "unet.onnx")]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "phase 1, 3 of 4 (0% – 25%, 50% – 75% of the steps)" in shown


def test_pictures_are_those_of_torch_with_the_plan(
    phased: Path, model: Path, plan: TunedPlan
) -> None:
    ours = todo_compile.load_pipeline(phased, vae=tiny.vae())
    calls: list[int] = []
    for number, part in enumerate(dict.fromkeys(ours.unet.parts)):
        part.register_forward_hook(lambda *_, n=number: calls.append(n))
    found = tiny.picture(ours, steps=4)
    assert calls == [0, 1, 0, 2]
    in_torch = tiny.sd()
    size = models.Resolution.parse(tiny.PIXELS)
    plan_pipeline(in_torch, models.resolve(str(model)), size, batch=2, plan=plan)
    expected = tiny.picture(in_torch, steps=4)
    dense = tiny.picture(tiny.sd(), steps=4)
    assert float((found - expected).abs().max()) < 5e-6
    assert float((dense - expected).abs().max()) > 1e-4
    alone = todo_compile.load_pipeline(phased, dense=True, vae=tiny.vae())
    assert float((tiny.picture(alone, steps=4) - dense).abs().max()) < 5e-6
    one = todo_compile.load(phased)
    assert one.starts == (0.0, 0.25, 0.5, 0.75)
    assert one.parts[0] is one.parts[2]


def test_generate_draws_with_it(
    phased: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "x.png"
    line = ["generate", "-b", str(phased), "-p", "a red cat", "--steps", "4", "-o", str(out)]
    capsys.readouterr()
    assert main([*line, "--compare", "--json", "-q"]) == 0
    assert json.loads(capsys.readouterr().out)["mse"] > 1e-8


def test_the_same_plan_builds_nothing(
    phased: Path, model: Path, plan: TunedPlan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def built(*_: object) -> None:
        raise AssertionError("work was begun")

    copy = shutil.copytree(phased, tmp_path / "b")
    monkeypatch.setattr(compiler, "_rewritten", built)
    weights_outside(monkeypatch)
    options: dict[str, Any] = {"res": tiny.PIXELS, "format": "onnx", "precision": "fp32"}
    assert todo_compile.compile_bundle(str(model), out=copy, plan=plan, **options).reused
    for more, words in (
        ({"res": [tiny.PIXELS, 64]}, "this one for 32x32, and the bundle is for 32x32, 64x64"),
        ({"dense_after": 0.5}, "plan and dense_after both say"),
        ({"component": "vae-decoder"}, "--plan is for the denoising model"),
    ):
        with pytest.raises(ConfigError, match=words):
            todo_compile.compile_bundle(
                str(model), out=tmp_path / "c", plan=plan, **{**options, **more}
            )
    assert not (tmp_path / "c").exists()


@pytest.mark.parametrize(
    ("phases", "endings"),
    [
        ([FIRST], [""]),
        ([FIRST, {}], ["", ".dense"]),
        ([{}, FIRST], ["", ".phase2"]),
        ([{}, FIRST, {}], ["", ".phase2", ""]),
        ([FIRST, {}, FIRST, SECOND, {}], ["", ".dense", "", ".phase4", ".dense"]),
        ([FIRST, {DOWN: "dense"}, {}], ["", ".dense", ".dense"]),
        ([FIRST, {**SECOND, DOWN: "dense"}, SECOND], ["", ".phase2", ".phase2"]),
    ],
)
def test_equal_phases_are_one_output(
    model: Path, phases: list[dict[str, str]], endings: list[str]
) -> None:
    count = len(phases)
    plan = plan_for(model, 32, 16, *((i / count, sites) for i, sites in enumerate(phases)))
    request = todo_compile.BuildRequest(model=str(model), res=32, out="b/", plan=plan)
    found = phases_of(request, "unet")
    assert [phase.ending for phase in found] == endings
    assert [phase.start for phase in found] == [i / count for i in range(count)]
    for phase in found:
        assert phase.planned is not None
        assert [found[n - 1].ending for n in phase.planned.phases] == [phase.ending] * len(
            phase.planned.phases
        )


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda b: b["phases"].reverse(), "do not begin one after the other"),
        (lambda b: b["phases"][0].update(start=0.0), "greater than 0"),
        (lambda b: b["phases"][0].update(start=1.0), "less than 1"),
        (lambda b: b["phases"][0].update(file="../x.onnx"), "not a plain file name"),
        (lambda b: b["components"].pop("unet"), "but no denoising model"),
        (lambda b: b["phases"][0].update(file="vae_decoder.onnx"), "not the manifest that"),
        (lambda b: b["sizes"].append({
            "resolution": "64x64", "components": {"unet": b["components"]["unet"]}, "phases": [],
        }), "differ from resolution to resolution"),
    ],
)  # fmt: skip
def test_phases_that_cannot_be(phased: Path, tmp_path: Path, change: Any, words: str) -> None:
    copy = shutil.copytree(phased, tmp_path / "b")
    description = json.loads((copy / "bundle.json").read_text())
    change(description)
    (copy / "bundle.json").write_text(json.dumps(description))
    with pytest.raises(BundleError, match=words):
        todo_compile.load_pipeline(copy)


def test_engines_are_said_to_take_their_room(
    model: Path, plan: TunedPlan, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("tensorrt_rtx")
    place = plan.save(tmp_path / "plan.json")
    line = ["-m", str(model), "-r", "32", "-o", f"{tmp_path}/b/", "--plan", str(place)]

    def seen(_: BundleJob) -> None:
        raise ConfigError("seen")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(BundleJob, "build", seen)
        assert main(line) == 2
    words = said(capsys)
    assert "3 denoisers, switched by step: each engine has weights of" in words


@pytest.mark.slow
def test_engines_of_several_phases(
    model: Path, plan: TunedPlan, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One for each phase that differs, each with its weights; the dense one serves the last."""
    pytest.importorskip("tensorrt_rtx")
    place, folder = plan.save(tmp_path / "plan.json"), tmp_path / "b"
    size = str(tiny.PIXELS)
    line = ["-m", str(model), "-r", size, "-o", f"{folder}/", "--plan", str(place)]
    assert main([*line, "--component", "unet", "--target", "sm89"]) == 0
    found = read_bundle(folder)
    assert check_bundle(found, folder) == []
    assert [(phase.start, phase.file) for phase in found.phases] == [
        (0.25, "unet.phase2.plan"), (0.5, "unet.plan"), (0.75, "unet.dense.plan"),
    ]  # fmt: skip
    capsys.readouterr()
    assert main(["inspect", str(folder)]) == 0
    assert "of which later phases" in capsys.readouterr().out
