"""Gates: what was built draws against dense, and nothing that drifts further is published."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import tiny_pipelines as tiny
import torch
from helpers import said
from transformers import BatchFeature

import todo_compile
from todo_compile import models
from todo_compile.build import compiler, verification
from todo_compile.build.gate import Gate
from todo_compile.bundle.bundle import check_bundle, read_bundle
from todo_compile.cli.app import main
from todo_compile.errors import ConfigError, GateError, TodoError
from todo_compile.runtime.metrics import mse
from todo_compile.tuning.drawing import Pair, Sampling, call_pipeline, for_measuring
from todo_compile.tuning.prompts import GENERAL, split

KEPT = "drift=1e-3,pairs=2,steps=2,guidance=4"
BROKEN = "drift=1e-12,pairs=1,steps=2"


def options(model: Path, **more: Any) -> dict[str, Any]:
    return {"model": str(model), "res": tiny.PIXELS, "precision": "fp32", **more}


@pytest.fixture
def nothing_is_built(monkeypatch: pytest.MonkeyPatch) -> None:
    def built(*_: object) -> None:
        raise AssertionError("work was begun")

    monkeypatch.setattr(compiler, "_rewritten", built)


def test_a_file_is_judged_before_it_is_published(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "x.onnx"
    made: Any = todo_compile.compile(out=out, gate=KEPT, **options(model))
    verdict = made.manifest.gate
    assert verdict.runner == "onnxruntime"
    assert (verdict.measured.pairs, verdict.measured.prompts) == (2, 2)
    # By hand: the file in a torch pipeline, and the pipeline as it is.
    ours = tiny.sd()
    ours.unet = todo_compile.load(out)
    errors = [
        mse(*(tiny.picture(p, steps=2, prompt=prompt, seed=seed) for p in (ours, tiny.sd())))
        for prompt, seed in zip(split(list(GENERAL))[1], (20_000, 20_001), strict=False)
    ]
    assert verdict.measured.drift.mean == pytest.approx(sum(errors) / 2, rel=1e-2)
    capsys.readouterr()
    assert main(["inspect", str(out)]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "gate drift=0.001,pairs=2,steps=2,guidance=4 kept at 32x32: drift" in shown

    assert todo_compile.compile(out=out, gate=KEPT, **options(model)).reused
    assert todo_compile.compile(out=out, **options(model)).reused
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    line = ["-m", str(model), "-r", str(tiny.PIXELS), "--precision", "fp32", "-o", str(out)]
    assert main([*line, "--gate", BROKEN]) == 10
    words = said(capsys)
    assert "it was not judged by this gate" in words
    assert "The gate drift=1e-12,pairs=1,steps=2,guidance=3 is not kept at 32x32: drift" in words
    assert "drawn by onnxruntime" in words
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before
    assert sorted(path.name for path in before) == ["x.onnx", "x.onnx.json"]


@pytest.mark.usefixtures("nothing_is_built")
def test_a_bundle_draws_with_all_of_its_files(bundle: Path, model: Path, tmp_path: Path) -> None:
    """Nothing of it is built again for a gate."""
    copy = Path(shutil.copytree(bundle, tmp_path / "b"))
    given = options(
        model,
        out=f"{copy}/",
        format="onnx",
        dense_after=0.5,
        vae_options=todo_compile.PlanOptions.create(kv_tokens=64),
    )
    made: Any = todo_compile.compile(gate=KEPT, **given)
    assert not made.reused
    (verdict,) = read_bundle(copy).gates
    assert verdict.runner == "onnxruntime"
    pipe = todo_compile.load_pipeline(copy)
    prompt = split(list(GENERAL))[1]
    errors = [
        mse(
            *(
                tiny.picture(p, steps=2, prompt=prompt[i], seed=20_000 + i)
                for p in (pipe, tiny.sd())
            )
        )
        for i in range(2)
    ]
    assert verdict.measured.drift.mean == pytest.approx(sum(errors) / 2, rel=1e-2)
    assert todo_compile.compile(gate=KEPT, **given).reused
    assert todo_compile.compile(**given).reused, "a verdict stands while the files do"
    with pytest.raises(GateError, match="is not kept at 32x32"):
        todo_compile.compile(gate=BROKEN, **given)
    assert read_bundle(copy).gates == [verdict]
    assert check_bundle(read_bundle(copy), copy) == []


def test_what_onnxruntime_cannot_run_is_judged_in_torch(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And against the weights that are built, whichever they are."""
    other = tmp_path / "other"
    tiny.unet(sample_size=16).save_pretrained(other)
    for path in other.glob("*.safetensors"):
        weights = bytearray(path.read_bytes())
        weights[-4000:-1000] = weights[-8000:-5000]  # other values
        path.write_bytes(weights)
    monkeypatch.setattr(verification, "available_bytes", lambda: 0)
    given = options(model, out=tmp_path / "x.onnx", weights=str(other), factors="off")
    made: Any = todo_compile.compile(gate="drift=1e-9,pairs=1,steps=2", **given)
    verdict = made.manifest.gate
    assert verdict.runner == "torch"
    assert "need more memory than is free" in verdict.lines()[0]
    assert verdict.measured.drift.mean < 1e-10


@pytest.mark.usefixtures("nothing_is_built")
@pytest.mark.parametrize(
    ("out", "more", "why"),
    [
        ("x.onnx", {"precision": "bf16"}, "no bf16 kernels"),
        pytest.param(
            "x.onnx", {"precision": "bf16", "component": "vae-decoder", "factors": 2}, "no bf16",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            "b/", {"format": "onnx", "precision": "bf16", "dense_after": 0.5}, "no bf16 kernels",
            marks=pytest.mark.slow,
        ),
        ("x.plan", {"target": "sm89"}, "engines run on their GPU alone"),
    ],
)  # fmt: skip
def test_where_that_is_known_it_is_judged_before_the_work(
    model: Path, tmp_path: Path, out: str, more: dict[str, Any], why: str
) -> None:
    if "target" in more:
        pytest.importorskip("tensorrt_rtx")
    with pytest.raises(GateError, match=f"the rewritten graph in torch, since .*{why}") as caught:
        todo_compile.compile(out=f"{tmp_path}/{out}", gate=BROKEN, **options(model, **more))
    assert caught.value.exit_code == 10
    assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("nothing_is_built")
@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"gate": "speedup=2"}, "not a gate for pictures"),
        ({"gate": "beauty=1"}, "is no budget"),
        ({"gate": "drift=1e-3,pears=3"}, "not a setting of a gate"),
        ({"gate": "drift=1e-3,pairs=3,pairs=4"}, "not a setting of a gate"),
        ({"gate": "drift=1e-3,pairs=0"}, "whole number of pairs"),
        ({"gate": "drift=1e-3,steps=2.5"}, "whole number of pairs"),
        ({"weights": "random"}, "Random weights draw noise"),
        ({"controlnet": True}, "--controlnet needs a picture"),
        ({"component": "text-encoder"}, "nothing for a gate to judge"),
        ({"model": "unet"}, "not the folder of a whole pipeline"),
    ],
)
def test_gates_that_cannot_be_judged(
    model: Path, tmp_path: Path, more: dict[str, Any], words: str
) -> None:
    given = {**options(model, out=tmp_path / "x.onnx", gate=KEPT), **more}
    if more.get("model") == "unet":
        given["model"] = str(shutil.copytree(model / "unet", tmp_path / "alone" / "unet"))
        given["out"] = tmp_path / "alone" / "x.onnx"
    with pytest.raises(TodoError, match=words) as caught:
        todo_compile.compile(**given)
    assert caught.value.remedy
    assert not list(tmp_path.rglob("x.onnx*"))


def test_a_safety_checker_does_not_blacken_what_is_measured() -> None:
    pipe, asked = tiny.sd(), list[str]()

    def blackened(images: Any, **_: Any) -> Any:
        asked.append("checker")
        return images * 0, [True] * len(images)

    pipe.safety_checker = blackened
    extractor: Any = lambda *_, **__: BatchFeature({"pixel_values": torch.zeros(1)})  # noqa: E731
    pipe.feature_extractor = extractor
    size, pairs = models.Resolution.parse(tiny.PIXELS), [Pair("a cat", 1)]
    (black,) = call_pipeline(pipe, pairs, Sampling(steps=1), size)
    assert asked == ["checker"]
    assert not black.any()
    for_measuring(pipe)
    (drawn,) = call_pipeline(pipe, pairs, Sampling(steps=1), size)
    assert asked == ["checker"]
    assert drawn.any()


def test_gates_in_words(model: Path) -> None:
    from plans import DOWN, plan_for

    def gate(text: str, plan: Any = None) -> Gate | None:
        return Gate.of(todo_compile.BuildRequest(model="m", out="x.onnx", gate=text), plan)

    assert gate("psnr=30") == Gate(1e-3)
    assert gate("mse=2e-3, pairs=4 ,guidance=7.5") == Gate(2e-3, 4, 8, 7.5)
    assert Gate.of(todo_compile.BuildRequest(model="m", out="x.onnx"), None) is None
    settings = {"steps": 20, "guidance": 6.0}
    plan = plan_for(model, 32, 16, (0.0, {DOWN: "nearest:2"}), settings=settings)
    assert gate("drift=1e-3", plan) == Gate(1e-3, 8, 20, 6.0), "drawn as the plan was"
    assert gate("drift=1e-3,steps=4", plan) == Gate(1e-3, 8, 4, 6.0)
    assert str(gate("drift=1e-3,pairs=2")) == "drift=0.001,pairs=2,steps=8,guidance=3"
    assert gate(str(gate("psnr=37.3,steps=3"))) == gate("drift=0.000186209,steps=3")
    damaged = plan.model_copy(update={"settings": {"steps": 1e400, "guidance": "x"}})
    assert gate("drift=1e-3", damaged) == Gate(1e-3)
    with pytest.raises(ConfigError, match="--gate is for models by name"):
        todo_compile.compile(module="x.py:make", out="x.onnx", gate="drift=1e-3")
