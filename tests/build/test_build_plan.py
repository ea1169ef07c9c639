"""A tuned plan in builds: followed at every site, kept in the manifest, refused where it is not
for what is built."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import said
from plans import DOWN, UP, plan_for
from safetensors.torch import load_file, save_file
from tiny_pipeline import make_unet

import todo_compile
from todo_compile import models
from todo_compile.build import compiler
from todo_compile.build.many.checking import check
from todo_compile.build.planned import Planned
from todo_compile.bundle import manifest as manifests
from todo_compile.bundle.plan import TunedPlan
from todo_compile.cli.app import main
from todo_compile.errors import ConfigError, TodoError
from todo_compile.options import PlanOptions
from todo_compile.runtime.in_process import check_weights

CHOSEN = {DOWN: "nearest:4x2", UP: "average:2"}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny") / "pipeline"
    make_unet(folder)
    return folder


@pytest.fixture(scope="module")
def tuned(model: Path) -> TunedPlan:
    return plan_for(model, 64, 8, (0.0, CHOSEN))


@pytest.fixture
def plan(tuned: TunedPlan, tmp_path: Path) -> Path:
    return tuned.save(tmp_path / "plan.json")


def arguments(model: Path, out: Path, *more: str) -> list[str]:
    return ["-m", str(model), "-r", "64", "-o", str(out), "--precision", "fp32", *more]


def test_it_is_followed_and_vouched_for(
    model: Path,
    tuned: TunedPlan,
    plan: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "x.onnx"
    assert main(arguments(model, out, "--plan", str(plan))) == 0
    manifest = manifests.read(out)
    rewritten = {
        site["module"].removeprefix("unet."): tuple(site["factor"])
        for site in manifest.sites
        if site["action"] == "rewritten"
    }
    assert rewritten == {DOWN: (2, 4), UP: (2, 2)}
    assert manifest.plan == tuned.entry([1])
    assert manifest.plan.measured == tuned.chosen.measured
    capsys.readouterr()
    assert main(["inspect", str(out)]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "tuned for drift=0.001: 1.500×" in shown
    assert "2.0e-04 [1.0e-04, 4.0e-04] when it was tuned, 8 pairs of 4 prompts" in shown
    assert "3.0e-04 predicted" in shown

    # The same plan from Python is the same request; one with other measurements is another.
    options: dict[str, Any] = {"res": 64, "precision": "fp32", "out": out}
    assert todo_compile.compile(str(model), plan=tuned, **options).reused
    real, started = compiler._rewritten, list[Any]()
    monkeypatch.setattr(compiler, "_rewritten", lambda job: started.append(job) or real(job))
    other = tuned.model_copy(update={"budget": "drift=0.002"})
    again: Any = todo_compile.compile(str(model), plan=other, **options)
    assert len(started) == 1
    assert len(again.reasons) == 1
    assert "plan.tuned: sha256:" in again.reasons[0]
    dense: Any = todo_compile.compile(str(model), factors="off", **options)
    assert manifests.read(out).plan is None
    assert any("plan.tuned" in reason for reason in dense.reasons)


@pytest.fixture
def nothing_is_built(monkeypatch: pytest.MonkeyPatch) -> None:
    def built(*args: object, **kwargs: object) -> None:
        raise AssertionError(f"work was begun with {args} and {kwargs}")

    monkeypatch.setattr(compiler, "_rewritten", built)


@pytest.mark.usefixtures("nothing_is_built")
@pytest.mark.parametrize(
    ("more", "words"),
    [
        (("-r", "128"), "tuned for size 64x64, and this is 128x128"),
        (("--weights", "random"), "other weights (sha256:"),
        (("--factors", "2"), "plan and factors both say"),
        (("--kv-tokens", "16"), "plan and kv_tokens both say"),
        (("--sampling", "average"), "plan and sampling both say"),
        (("--preset", "todo-2x"), "plan and preset both say"),
        (("--masks", "pool"), "plan and masks both say"),
        (("--lora", "x.safetensors"), "says nothing of a model with a LoRA"),
    ],
)
def test_what_it_is_not_for(
    model: Path,
    plan: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    more: tuple[str, ...],
    words: str,
) -> None:
    line = ["-m", str(model), "-o", str(tmp_path / "x.onnx"), "--precision", "fp32"]
    size = [] if "-r" in more else ["-r", "64"]
    assert main([*line, *size, "--plan", str(plan), *more]) == 2
    assert words in said(capsys)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["plan.json"]


@pytest.mark.usefixtures("nothing_is_built")
def test_plans_that_cannot_be_used(model: Path, tuned: TunedPlan, tmp_path: Path) -> None:
    options: dict[str, Any] = {"res": 64, "out": tmp_path / "x.onnx", "precision": "fp32"}

    def refused(plan: Any, words: str, **more: Any) -> None:
        with pytest.raises(TodoError, match=words) as caught:
            todo_compile.compile(str(model), plan=plan, **options, **more)
        assert caught.value.remedy

    refused(tmp_path / "absent.json", "cannot be read")
    (tmp_path / "other.json").write_text("{}")
    refused(str(tmp_path / "other.json"), "no plan of todo-compile's")
    refused(3, "plan is 3, which is not a path")
    phases = plan_for(model, 64, 8, (0.0, CHOSEN), (0.5, {}))
    refused(phases, "2 phases, and one file has one graph")
    refused(tuned.model_copy(update={"component": "transformer"}), "component transformer")
    refused(tuned, "plan and options both say", options=PlanOptions())
    with pytest.raises(ConfigError, match="--plan is for models by name"):
        todo_compile.compile(module="x.py:make", plan=tuned, out=tmp_path / "x.onnx")
    assert not list(tmp_path.glob("x.onnx*"))


def test_a_plan_that_the_graph_cannot_follow_is_no_output(
    model: Path, tuned: TunedPlan, tmp_path: Path
) -> None:
    out = tmp_path / "x.onnx"
    unknown = plan_for(model, 64, 8, (0.0, {"mid.attn9": "nearest:2"}), sites=("mid.attn9",))
    with pytest.raises(ConfigError, match=r"No attention site is called 'mid\.attn9'"):
        todo_compile.compile(str(model), res=64, out=out, precision="fp32", plan=unknown)
    assert not list(tmp_path.iterdir())
    # A site that failed a check of the passes stays dense; a plan does not put up with that.
    dense = todo_compile.plan(str(model), res=64, options=PlanOptions(factors=()))
    with pytest.raises(ConfigError, match="downsamples 2 sites, and here 0 could be"):
        Planned.whole(tuned).check_report(dense)


def test_full_and_half_files_of_one_model(model: Path, tuned: TunedPlan, tmp_path: Path) -> None:
    """fp16 reads the fp16 files beside the full ones: the same weights with another hash."""
    folder = tmp_path / "both"
    shutil.copytree(model, folder)
    (full,) = (folder / "unet").glob("*.safetensors")
    half = {name: tensor.half() for name, tensor in load_file(full).items()}
    save_file(half, full.with_name(f"{full.stem}.fp16.safetensors"))
    source, auto = models.resolve(str(folder)), models.WeightsChoice.parse("auto")
    assert models.weights_hash(models.find_weights(source, auto, dtype=torch.float16)) != (
        tuned.weights
    )
    check_weights(tuned, source, auto, torch.float16)
    full.write_bytes(full.read_bytes()[:-1] + b"?")
    with pytest.raises(ConfigError, match="other weights"):
        check_weights(tuned, source, auto, torch.float16)


def test_files_of_builds(model: Path, plan: Path, tmp_path: Path) -> None:
    builds = tmp_path / "builds.yaml"
    entry = f"model: {model}, precision: fp32, out: '{tmp_path}/{{res}}.onnx', plan: {plan}"
    builds.write_text(f"builds:\n  - {{{entry}, res: 64}}\n")
    (build,) = check(builds).builds
    assert build.request.plan == str(plan)
    sent = json.loads(build.request.model_dump_json(exclude_defaults=True))
    assert sent["plan"] == str(plan)
    builds.write_text(f"builds:\n  - {{{entry}, res: [64, 72]}}\n")
    with pytest.raises(ConfigError, match="build 1: The plan was tuned for size 64x64, and this"):
        check(builds)
