"""The main job through the command, on a tiny checkpoint, with real ONNX and real engines."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from bundle_helpers import refuse_build
from compile_helpers import fp32, manifest_of
from helpers import said

import todo_compile
from todo_compile.bundle.manifest import read
from todo_compile.cli.app import main
from todo_compile.errors import ExportError, PassError
from todo_compile.passes import pipeline
from todo_compile.passes.report import Report


def test_engine(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "x.plan"
    arguments = ["--model", str(model), "--res", "64", "--weights", "random:7", "--out", str(out)]
    assert main([*arguments, "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "x.plan",
        "x.plan.json",
        "x.plan.onnx",
    ]
    manifest = manifest_of(out)
    assert printed == {
        "format": "todo-compile output",
        "version": 1,
        "path": str(out),
        "reused": False,
        "rebuilt_because": [],
        "manifest": manifest,
    }
    assert manifest["files"] == [
        {
            "name": file.name,
            "bytes": file.stat().st_size,
            "sha256": hashlib.sha256(file.read_bytes()).hexdigest(),
        }
        for file in (out, out.with_name("x.plan.onnx"))
    ]
    assert manifest["library"].startswith("tensorrt_rtx ")
    assert manifest["targets"] == ["sm89"]
    assert manifest["model"]["random_weights"] is True
    assert "random" in manifest["model"]["weights"]
    assert manifest["inputs"] == [
        {"name": "sample", "shape": [2, 4, 8, 8], "dtype": "float16"},
        {"name": "timestep", "shape": [1], "dtype": "float32"},
        {"name": "encoder_hidden_states", "shape": [2, 77, 24], "dtype": "float16"},
    ]
    assert manifest["outputs"] == [
        {"name": "out_sample", "shape": [2, 4, 8, 8], "dtype": "float16"}
    ]
    assert all(manifest["memory"][key] > 0 for key in ("activation", "scratch", "weights"))
    assert {"capture", "passes", "onnx", "engine"} <= manifest["seconds"].keys()

    assert main(arguments) == 0
    assert "is up to date" in said(capsys)
    assert manifest_of(out) == manifest
    assert main(["inspect", str(out), "--layers", "--json"]) == 0
    looked = json.loads(capsys.readouterr().out)
    assert looked["damage"] == []
    assert looked["layers"] or "cannot be read here" in looked["note"]
    out.write_bytes(out.read_bytes()[:-1] + b"?")
    assert main(["inspect", str(out)]) == 7
    assert "x.plan was changed (its hash differs)" in capsys.readouterr().out


def test_onnx_is_verified_and_described(onnx_output: Path) -> None:
    manifest = manifest_of(onnx_output)
    assert manifest["verification"]["relative_l2"] < 1e-5
    assert manifest["verification"]["resolution"] == "64x64"
    proofs = {one["module"]: one for one in manifest["verification"]["sites"]}
    assert proofs.keys() == {s["module"] for s in manifest["sites"] if s["action"] == "rewritten"}
    assert {one["compared"] for one in proofs.values()} == {"attention"}
    assert all(0 <= one["error"] < 1e-5 for one in proofs.values())
    lines = read(onnx_output).summary()
    assert lines[-1].startswith("proved         3 sites against subsampling at the site: worst ")
    assert manifest["onnx"]["opset"] == 23
    assert manifest["onnx"]["ops"]["Attention"] == 8
    assert manifest["library"] is None
    assert manifest["memory"] is None
    assert manifest["model"]["random_weights"] is False
    actions = [(s["kind"], s["action"], s["key_tokens_after"]) for s in manifest["sites"]]
    assert actions.count(("self", "rewritten", 16)) == 3
    assert actions.count(("self", "dense", 16)) == 1
    assert actions.count(("cross", "dense", 77)) == 4
    assert len(actions) == 8


@pytest.mark.parametrize("more", [("--json",), ("-v",), ()])
def test_errors_of_all_sites_are_shown_where_details_are(
    model: Path, output: Path, more: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(fp32(model, output, *more)) == 0
    written = capsys.readouterr()
    text = written.out + written.err
    assert text.count("(attention)") == (3 if more == ("-v",) else 0)
    assert ("worst" in text) is True


def test_a_wrong_rewrite_is_not_written(
    model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    rewrite_graph = pipeline.rewrite_graph

    def broken(module: Any, *args: Any, **kwargs: Any) -> Report:
        report = rewrite_graph(module, *args, **kwargs)
        slices = (
            n for n in module.graph.nodes if "todo_rule" in n.meta and "slice" in str(n.target)
        )
        node = next(n for n in slices if n.args[4] == 2)
        node.args = (*node.args[:2], 1, *node.args[3:])  # the other token of every cell
        return report

    monkeypatch.setattr(pipeline, "rewrite_graph", broken)
    assert main(fp32(model, tmp_path / "x.onnx", "--verify")) == PassError.exit_code
    assert "attn1 is wrong: compared by attention" in said(capsys)
    assert list(tmp_path.iterdir()) == []


def test_onnx_equals_the_rewritten_graph(model: Path, output: Path) -> None:
    """Against `rewrite` of diffusers' own module, from a moved folder; not the dense model."""
    import onnxruntime as ort
    import torch
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

    unet = UNet2DConditionModel.from_pretrained(model / "unet").eval()
    torch.manual_seed(3)
    sample, text = torch.randn(2, 4, 8, 8), torch.randn(2, 77, 24)
    time = torch.tensor([123.0])
    call = {"return_dict": False}
    rewritten, report = todo_compile.rewrite(
        unet, (sample, time.expand(2), text), call, native_kv_tokens=16
    )
    assert report.rewritten == 3
    with torch.no_grad():
        expected = rewritten(sample, time.expand(2), text, **call)[0]
        dense = unet(sample, time.expand(2), text, return_dict=False)[0]
    session = ort.InferenceSession(str(output), providers=["CPUExecutionProvider"])
    feeds = {
        "sample": sample.numpy(),
        "timestep": time.numpy(),
        "encoder_hidden_states": text.numpy(),
    }
    actual = torch.from_numpy(session.run(None, feeds)[0])
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(actual, dense, rtol=1e-4, atol=1e-5)


def test_api_verifies_fp16(model: Path, tmp_path: Path) -> None:
    result: Any = todo_compile.compile(str(model), res=64, out=tmp_path / "x.onnx", verify=True)
    assert result.reused is False
    assert result.report is not None
    assert result.report.rewritten == 3
    assert result.manifest.verification is not None
    assert 0 < result.manifest.verification["relative_l2"] < 2e-2
    assert result.manifest.request["precision"] == "fp16"


class TestVerifySmaller:
    """Scores that do not fit into memory: the same factors are verified at a smaller size."""

    def test_factors_of_the_full_size_are_verified(
        self,
        model: Path,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        from todo_compile.passes import pipeline

        reports: list[Report] = []
        rewrite_graph = pipeline.rewrite_graph

        def recorded(*args: Any, **kwargs: Any) -> Report:
            reports.append(rewrite_graph(*args, **kwargs))
            return reports[-1]

        # Of the memory half is used: the 77 text keys need 2.5 MB at 256 px, 0.6 MB at 128 px.
        monkeypatch.setattr("todo_compile.build.verification.available_bytes", lambda: 2_000_000)
        monkeypatch.setattr(pipeline, "rewrite_graph", recorded)
        out = tmp_path / "x.onnx"
        arguments = ["-m", str(model), "-r", "256", "-o", str(out), "--precision", "fp32"]
        assert main([*arguments, "--verify"]) == 0
        full, smaller = (
            {s.level: (s.grid, s.factor) for s in report.sites if s.kind == "self"}
            for report in (reports[0], reports[-1])
        )
        assert full == {1: ((32, 32), (8, 8)), 2: ((16, 16), (4, 4))}
        assert smaller == {1: ((16, 16), (8, 8)), 2: ((8, 8), (4, 4))}
        manifest = json.loads((tmp_path / "x.onnx.json").read_text())
        assert manifest["verification"]["resolution"] == "128x128"
        assert "factors" in said(capsys)

    def test_no_size_fits(
        self,
        model: Path,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        monkeypatch.setattr("todo_compile.build.verification.available_bytes", lambda: 2)
        out = tmp_path / "x.onnx"
        arguments = ["-m", str(model), "-r", "256", "-o", str(out), "--precision", "fp32"]
        assert main([*arguments, "--verify"]) == ExportError.exit_code
        assert "leave out --verify" in said(capsys)
        assert list(tmp_path.glob("*.onnx*")) == []


def test_plan_needs_no_weights(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "bare" / "unet").mkdir(parents=True)
    shutil.copy(model / "unet" / "config.json", tmp_path / "bare" / "unet")
    picture, dump = tmp_path / "plan.png", tmp_path / "dump"
    common = ["plan", "-m", str(tmp_path / "bare"), "-r", "64"]
    assert main([*common, "--json", "--plot", str(picture), "--dump", str(dump)]) == 0
    report = json.loads(capsys.readouterr().out)
    assert [s["key_tokens_after"] for s in report["sites"] if s["kind"] == "self"] == [16] * 4
    assert report["totals"]["flops_after"] < report["totals"]["flops"]
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert len(list(dump.iterdir())) > 2


def test_plan_table(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "-m", str(model), "-r", "64", "--factors", "4,2"]) == 0
    text = capsys.readouterr().out
    assert "64 → 4" in text
    assert "16 → 4" in text
    assert "4 of cross-attention" in text
    assert "4 attention sites rewritten, 4 left dense, 0 refused" in text


def test_models(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "--json"]) == 0
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)["models"]}
    assert {"sd15", "sd21", "sdxl"} <= rows.keys()
    assert rows["sd15"]["native_kv_tokens"] == 4096
    assert main(["models"]) == 0
    assert "sdxl" in capsys.readouterr().out


def test_controlnet(
    model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Residuals are inputs of the engine; with and without are two outputs."""
    out = tmp_path / "x.plan"
    with_flag = ["-m", str(model), "-r", "64", "-o", str(out), "--target", "sm89", "--controlnet"]
    assert main([*with_flag, "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    inputs = {spec["name"]: spec for spec in printed["manifest"]["inputs"]}
    assert list(inputs)[3:] == [
        *(f"down_block_residual_{i}" for i in range(4)),
        "mid_block_residual",
    ]
    assert inputs["down_block_residual_2"]["shape"] == [2, 16, 4, 4]
    assert inputs["mid_block_residual"]["dtype"] == "float16"
    assert main([*with_flag, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["reused"] is True
    refuse_build(monkeypatch, "unet")
    assert main(with_flag[:-1]) != 0
    assert "controlnet: True → False" in said(capsys)
