"""The race measures what it says: the right models, variants true to their names, honest ratios."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import race
import torch
from graphs import ImageAttention, image
from plain_unet import PlainUNet
from race_parts import presets, runtimes, truth, workloads
from race_parts.alone import ready
from race_parts.clock import Sample, sample
from race_parts.figures import exponents, ours, ratios
from race_parts.heat import Rules, run
from race_parts.variants import Variant, planned, variant
from race_parts.workloads import Workload

ONCE = Rules(rounds=1, warmup=0)


@pytest.fixture(scope="module")
def small() -> Workload:
    return Workload("image", 48, 1, "fp32", ImageAttention(), (image(6, 4),), kv_tokens=6)


def named(work: Workload, *names: str) -> list[Variant]:
    return [variant(name, work) for name in names]


def test_plain_unet_has_the_parameters_of_sd15() -> None:
    from todo_compile import models

    with torch.device("meta"):
        plain = PlainUNet()
    loaded = models.load(models.resolve("sd15"), dtype=torch.float32, fake=True)
    assert sum(p.numel() for p in plain.parameters()) == loaded.parameters


def test_a_heat_compares_different_variants_in_turn(small: Workload) -> None:
    kept: list[dict[str, Any]] = []
    names = ("dense", "default", "2", "bound")
    row = run(small, named(small, *names), "eager", Rules(2, 0), kept.append, lambda _: None)
    assert len(kept) == 3
    assert row == kept[-1]
    assert row["idle"] == ["2"], "the default plan is factor 2: it would be measured twice"
    assert {n: len(v["samples"]) for n, v in row["variants"].items()} == {
        "dense": 2, "default": 2, "bound": 2,
    }  # fmt: skip
    ours = row["variants"]["default"]
    assert ours["factors"] == [(1, (2, 2))]
    assert ours["flops"]["rewritten"] < ours["flops"]["dense"]
    assert 0 < ours["distance_to_dense"] < row["variants"]["bound"]["distance_to_dense"]
    costs = [[cpu for _, cpu in row["variants"][v]["samples"]] for v in ("dense", "default")]
    mean = sum(d / o for d, o in zip(*costs, strict=True)) / 2
    assert row["dense_over"]["default"]["ratio"]["median"] == pytest.approx(mean)


def test_a_cold_run_is_kept(small: Workload) -> None:
    row = run(small, named(small, "dense", "bound"), "eager", Rules(0), say=lambda _: None)
    assert {n: len(v["samples"]) for n, v in row["variants"].items()} == {"dense": 1, "bound": 1}
    assert row["variants"]["bound"]["factors"] == [(1, (6, 4))]


def test_the_same_through_a_file_in_onnxruntime(small: Workload) -> None:
    every = named(small, "dense", "default")
    rows = [run(small, every, r, ONCE, say=lambda _: None) for r in ("eager", "onnxruntime")]
    told = [row["variants"]["default"] for row in rows]
    assert told[0]["distance_to_dense"] == pytest.approx(told[1]["distance_to_dense"], rel=1e-3)
    assert told[0]["factors"] == told[1]["factors"]


def test_a_variant_that_is_not_what_it_says_stops_the_race(
    small: Workload, monkeypatch: pytest.MonkeyPatch
) -> None:
    def forgets(work: Workload, one: Variant, folder: Path) -> runtimes.Prepared:
        made = runtimes.eager(work, one, folder)
        return replace(made, output=runtimes.eager(work, Variant("dense"), folder).output)

    def plain(work: Workload, one: Variant, folder: Path) -> runtimes.Prepared:
        return runtimes.eager(work, replace(one, plan=None), folder)

    for runtime, said in ((forgets, "exactly what dense gives"), (plain, "another than the graph")):
        monkeypatch.setitem(runtimes.RUNTIMES, "eager", runtime)
        with pytest.raises(SystemExit, match=said):
            run(small, named(small, "dense", "default"), "eager", ONCE, say=lambda _: None)


def test_ratios_are_of_the_processor_and_shares_of_the_bound() -> None:
    found = ratios(
        {
            "dense": [Sample(10, 8.0), Sample(30, 8.0)],
            "2": [Sample(10, 4.0), Sample(10, 5.0)],
            "bound": [Sample(1, 2.0), Sample(1, 2.0)],
        }
    )
    assert found["2"]["ratio"]["median"] == pytest.approx((2 + 1.6) / 2)
    assert found["2"]["clock"]["median"] == pytest.approx(2)
    assert found["2"]["removed"]["median"] == pytest.approx((4 / 6 + 3 / 6) / 2)
    assert found["bound"]["removed"] is None
    assert ratios({"2": [Sample(1, 1.0)]}) == {}, "nothing to compare with"
    on_gpu = ratios({"dense": [Sample(3)], "2": [Sample(2)]})
    assert on_gpu["2"]["ratio"]["median"] == 1.5


def test_what_is_ours_is_beyond_the_bound_and_the_attentions() -> None:
    samples = {"2": [Sample(9, 6.0), Sample(9, 4.2)], "bound": [Sample(1, 3.0), Sample(1, 2.0)]}
    found = ours(samples, {"2": [Sample(1, 2.0), Sample(1, 2.0)]})
    assert found["2"]["ratio"]["median"] == pytest.approx((6 / 5 + 4.2 / 4) / 2)
    assert found["2"]["attentions"]["median"] == 2.0
    assert ours({"2": samples["2"]}, {"2": [Sample(1, 2.0)]}) == {}, "without the bound"


def test_attentions_alone_are_those_of_the_plan_that_the_bound_cuts(small: Workload) -> None:
    every = planned(small, named(small, "dense", "default", "bound")).attentions
    (call,) = every["default"]
    assert call["query"].shape[-2] == 24, "of a grid of 6 by 4, all"
    assert call["key"].shape[-2] == call["value"].shape[-2] == 6
    result = ready(every["default"], "cpu")()
    assert result.shape == call["query"].shape
    assert planned(small, named(small, "default")).attentions == {}, "without the bound"
    row = run(
        small, named(small, "default", "bound"), "eager", replace(ONCE, alone=True),
        say=lambda _: None,
    )  # fmt: skip
    assert set(row["ours"]) == {"default"}
    assert row["ours"]["default"]["attentions"]["median"] > 0


def test_exponents_are_of_pixels() -> None:
    def row(px: int, dense: float, bound: float) -> dict[str, Any]:
        facts = {
            name: {"processor_seconds": None, "seconds": {"median": value}}
            for name, value in (("dense", dense), ("bound", bound))
        }
        same = {"workload": "w", "batch": 1, "precision": "fp32", "runtime": "eager"}
        return {**same, "px": px, "variants": facts}

    fitted = exponents([row(px, px**4 / 1e9, 3.0 * px**2) for px in (512, 1024, 1536)])
    assert {f["variant"]: f["exponent"] for f in fitted} == pytest.approx({"dense": 2, "bound": 1})
    assert fitted[0]["px"] == [512, 1024, 1536]
    assert exponents([row(512, 1, 1)]) == [], "one size has no slope"


def test_memory_is_what_a_call_takes_for_itself() -> None:
    held = torch.ones(30_000_000)  # before the call: not counted
    taken = sample(lambda: held + 1, "cpu")
    assert taken.peak_bytes is not None
    assert 115e6 < taken.peak_bytes < 160e6
    again = sample(lambda: None, "cpu")
    assert again.peak_bytes is not None
    assert again.peak_bytes < 20e6, "the peak of an earlier call"


def test_presets_name_what_there_is(small: Workload) -> None:
    for heat in (*presets.QUICK, *presets.CUDA):
        assert heat.workload in workloads.WORKLOADS
        assert heat.runtime in runtimes.RUNTIMES
        assert not heat.peers or (heat.workload, heat.runtime) == ("sd15", "eager")
        for name in heat.variants:
            assert variant(name, small).options is not None
    assert len({h.workload for h in presets.CUDA}) > 2


def test_numbers_are_compared_with_the_truth() -> None:
    case = truth.Case("fp32", torch.float32, "eager")
    config = {"widths": (8, 16, 16), "text": 12, "heads": 2, "groups": 4, "layers": 1}
    row = truth.check(case, config, "cpu")
    assert row["ok"]
    assert row["sizes"][0]["error"] < 1e-4 < row["sizes"][0]["effect_of_rewrite"]


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import common

    monkeypatch.setattr(race, "RESULTS", tmp_path)
    monkeypatch.setattr(common, "RESULTS", tmp_path)
    tiny = ["--workload", "tiny", "--dtype", "fp32", "--rounds", "1", "--warmup", "0"]
    few = ["--variants", "dense", "bound", "--out", "x"]
    assert race.main([*tiny, *few, "--px", "64"]) == 0
    more = ["--px", "128", "--runtime", "eager", "tensorrt", "--add"]
    assert race.main([*tiny, *few, *more]) == 0
    path = tmp_path / "x.json"
    found = json.loads(path.read_text(encoding="utf-8"))
    assert [row["px"] for row in found["rows"]] == [64, 128]
    assert [one["why"] for one in found["left_out"]] == ["needs a GPU"]
    assert {one["variant"] for one in found["exponents"]} == {"dense", "bound"}
    again = race.Race("x", {}, "cpu", 1.0)
    again.add()
    again.write({**found["rows"][0], "about": "measured anew"})
    assert [row["about"] for row in again.data["rows"]] == ["", "measured anew"]
    monkeypatch.setattr(race, "run", _stops)
    assert race.main([*tiny, *few, "--px", "64"]) == 1
    stopped = json.loads(path.read_text(encoding="utf-8"))
    assert [one["why"] for one in stopped["left_out"]] == ["bound: not finite"]
    found["machine"]["processor"] = "another"
    path.write_text(json.dumps(found), encoding="utf-8")
    with pytest.raises(SystemExit, match="another processor"):
        race.main([*tiny, *few, "--add"])


def _stops(*_: Any, **__: Any) -> None:
    raise SystemExit("bound: not finite")
