"""``--batch MIN..MAX`` through the command: engines, manifests, reuse, plans and refusals."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from bundle_helpers import refuse_build
from helpers import said

from todo_compile.bundle import manifest as manifests
from todo_compile.bundle.bundle import read_bundle
from todo_compile.cli.app import main


def arguments(model: Path, out: Path | str, *more: str) -> list[str]:
    return ["-m", str(model), "-r", "64", "-o", str(out), *more]


def test_an_engine_with_a_profile(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "x.plan"
    assert main(arguments(model, out, "--batch", "1..2..4")) == 0
    document = json.loads(manifests.manifest_path(out).read_text())
    assert document["request"]["batch"] == document["model"]["batch"] == "1..2..4"
    assert document["inputs"] == [
        {"name": "sample", "shape": [-1, 4, 8, 8], "dtype": "float16", "batches": "1..2..4"},
        {"name": "timestep", "shape": [1], "dtype": "float32"},
        {
            "name": "encoder_hidden_states",
            "shape": [-1, 77, 24],
            "dtype": "float16",
            "batches": "1..2..4",
        },
    ]
    assert document["outputs"] == [
        {"name": "out_sample", "shape": [-1, 4, 8, 8], "dtype": "float16", "batches": "1..2..4"}
    ]
    assert sum(site["action"] == "rewritten" for site in document["sites"]) == 3
    capsys.readouterr()
    assert main(["inspect", str(out)]) == 0
    shown = capsys.readouterr().out
    assert "batch 1..2..4, fp16" in shown
    assert "sample float16[1..4, 4, 8, 8]" in shown
    assert "timestep float32[1]" in shown
    assert main(arguments(model, out, "--batch", "1..2..4")) == 0
    assert "is up to date" in said(capsys)


def test_the_range_is_verified_and_part_of_the_request(
    model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "x.onnx"
    fp32 = ("--precision", "fp32")
    assert main(arguments(model, out, *fp32, "--batch", "1..3", "--verify")) == 0
    found = manifests.read(out)
    assert found.verification is not None
    assert "batches 1 and 3" in found.verification["summary"]
    assert found.verification["relative_l2"] < 1e-5
    capsys.readouterr()
    refuse_build(monkeypatch, "unet")
    assert main(arguments(model, out, *fp32, "--batch", "1..4")) != 0
    assert "Rebuilding: batch: 1..3 → 1..4" in said(capsys)


def test_a_range_of_one_number_is_that_number(
    model: Path, onnx_output: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments(model, onnx_output, "--precision", "fp32", "--batch", "2..2")) == 0
    assert "is up to date" in said(capsys)
    assert manifests.read(onnx_output).request["batch"] == 2
    assert manifests.read(onnx_output).inputs[0].shape == (2, 4, 8, 8)
    assert "batches" not in manifests.manifest_path(onnx_output).read_text()


@pytest.mark.slow
def test_a_smaller_size_stands_in_for_the_range(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Where attention does not fit, memory is counted for the largest batch."""
    from todo_compile.build import verification

    # 1024 queries, 2 heads: 77 keys of text take 8 bytes × 158 k for one row, four times that here.
    monkeypatch.setattr(verification, "available_bytes", lambda: 2 * 2_000_000)
    out = tmp_path / "x.onnx"
    more = ("--precision", "fp32", "--batch", "1..4", "--verify")
    assert main(["-m", str(model), "-r", "256", "-o", str(out), *more]) == 0
    found = manifests.read(out).verification
    assert found is not None
    assert found["resolution"] != "256x256"
    assert "batches 1 and 4" in found["summary"]
    assert "verifying the same weights" in said(capsys)


@pytest.mark.slow
def test_a_bundle_of_a_range(pipeline: Path, tmp_path: Path) -> None:
    out = tmp_path / "bundle"
    more = ["--precision", "fp32", "--format", "onnx", "--batch", "1..4", "-q"]
    assert main(["-m", str(pipeline), "-r", "32", "-o", f"{out}/", *more]) == 0
    assert read_bundle(out).batch == "1..4"
    assert "batch 1..4" in read_bundle(out).summary()[0]
    batches = {p.stem: manifests.read(p).request["batch"] for p in out.glob("*.onnx")}
    assert batches == {"unet": "1..4", "vae_decoder": "1..2", "text_encoder": 1}


@pytest.mark.slow
def test_a_plan_says_what_its_figures_are_for(
    model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sizes = ["plan", "-m", str(model), "-r", "64"]
    assert main([*sizes, "--batch", "1..4"]) == 0
    assert "figures are for batch 4 of 1..4" in capsys.readouterr().out
    assert main([*sizes, "--batch", "1..4", "--json"]) == 0
    ranged = json.loads(capsys.readouterr().out)
    assert (ranged["batch"], ranged["figures_for_batch"]) == ("1..4", 4)
    assert main([*sizes, "--batch", "4", "--json"]) == 0
    fixed = json.loads(capsys.readouterr().out)
    assert "batch" not in fixed
    assert ranged["totals"] == fixed["totals"]
    assert main([*sizes, "--batch", "1", "--json"]) == 0
    one = json.loads(capsys.readouterr().out)
    # The decisions do not depend on the batch.
    decisions = [[(s["name"], s["factor"]) for s in r["sites"]] for r in (one, fixed)]
    assert decisions[0] == decisions[1]


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (("--batch", "4..1"), "4..1 is not a range of batches"),
        (("--batch", "0..4"), "A batch of 0 is not possible"),
        (("--batch", "1..64"), "A range of batches up to 64 is not possible"),
        (("--batch", "65"), "A batch of 65 is not possible"),
        (("--batch", "two"), "'two' is not a batch"),
    ],
)
def test_refusals(
    model: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    more: tuple[str, ...],
    says: str,
) -> None:
    compiling = arguments(model, tmp_path / "x.onnx", *more)
    planning = ["plan", "-m", str(model), "-r", "64", *more]
    for command in (compiling, planning):
        assert main(command) != 0
        assert says in said(capsys)
    assert not list(tmp_path.iterdir())
