"""Bundles through the command: whole, right, reused part by part, and never half there."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
import torch

import todo_compile
from todo_compile import assembly, compiler
from todo_compile.cli import main
from todo_compile.errors import BundleError, ExportError
from todo_compile.export.bundle import check_bundle, read_bundle

COMPONENTS = ["unet", "vae_decoder", "text_encoder"]


@pytest.fixture
def bundle(onnx_bundle: Path, tmp_path: Path) -> Path:
    """A copy of the built bundle."""
    return Path(shutil.copytree(onnx_bundle, tmp_path / "copy"))


def arguments(pipeline: Path, out: Path, *more: str) -> list[str]:
    base = ["-m", str(pipeline), "-r", "32", "-o", f"{out}/", "--precision", "fp32"]
    return [*base, "--format", "onnx", *more]


def content(folder: Path) -> dict[str, bytes]:
    return {
        p.relative_to(folder).as_posix(): p.read_bytes()
        for p in sorted(folder.rglob("*"))
        if p.is_file()
    }


def bundle_content(folder: Path) -> dict[str, bytes]:
    """What a reader of the bundle may come to see."""
    return {n: data for n, data in content(folder).items() if not n.startswith(".")}


def damage(folder: Path) -> list[str]:
    return check_bundle(read_bundle(folder), folder)


def said(capsys: pytest.CaptureFixture[str]) -> str:
    return " ".join(capsys.readouterr().err.split())


def run(path: Path, **feeds: torch.Tensor) -> list[torch.Tensor]:
    session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    outputs: Any = session.run(None, {k: v.numpy() for k, v in feeds.items()})
    return [torch.from_numpy(np.asarray(o)) for o in outputs]


def test_whole(onnx_bundle: Path, pipeline: Path) -> None:
    found = read_bundle(onnx_bundle)
    assert damage(onnx_bundle) == []
    assert list(found.components) == COMPONENTS
    assert found.pipeline_class == "StableDiffusionPipeline"
    assert (found.kind, found.resolution, found.batch, found.precision) == (
        "onnx", "32x32", 2, "fp32",
    )  # fmt: skip
    names = [e.name for e in found.extras]
    assert names == [
        "model_index.json",
        "scheduler/scheduler_config.json",
        "text_encoder/config.json",
        "tokenizer/vocab.json",
        "unet/config.json",
        "vae/config.json",
    ]
    index = json.loads((onnx_bundle / "model_index.json").read_text())
    assert index["scheduler"] == ["diffusers", "DDIMScheduler"]
    assert index["vae"] == ["diffusers", "AutoencoderKL"]
    assert index["tokenizer"] == ["transformers", "CLIPTokenizer"]
    for name in ("unet", "vae_decoder", "text_encoder"):
        manifest = json.loads((onnx_bundle / f"{name}.onnx.json").read_text())
        assert manifest["model"]["component"] == name
        assert manifest["verification"]["relative_l2"] < 1e-5
    vae = json.loads((onnx_bundle / "vae_decoder.onnx.json").read_text())
    assert vae["model"]["config"]["scaling_factor"] == 0.18215
    assert [(t["name"], t["shape"]) for t in vae["inputs"]] == [("latent_sample", [1, 4, 8, 8])]
    assert [(t["name"], t["shape"]) for t in vae["outputs"]] == [("sample", [1, 3, 32, 32])]
    text = json.loads((onnx_bundle / "text_encoder.onnx.json").read_text())
    assert [(t["name"], t["shape"], t["dtype"]) for t in text["inputs"]] == [
        ("input_ids", [1, 77], "int64")
    ]
    assert [(t["name"], t["shape"]) for t in text["outputs"]] == [
        ("last_hidden_state", [1, 77, 24]),
        ("pooler_output", [1, 24]),
    ]
    # Each output's manifest has its own time, not that of the outputs before it.
    assert text["seconds"]["capture"] != vae["seconds"]["capture"]
    assert not (onnx_bundle / ".parts").exists()
    assert not list(pipeline.rglob("*.onnx"))


def test_inspect(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(bundle)]) == 0
    text = capsys.readouterr().out
    assert "unet.onnx, vae_decoder.onnx, text_encoder.onnx" in text
    assert "intact         yes" in text
    (bundle / "unet.onnx").write_bytes(b"short")
    assert main(["inspect", str(bundle / "bundle.json"), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["damage"][0].startswith("unet.onnx has 5 bytes instead of")
    assert list(found["bundle"]["components"]) == COMPONENTS


def test_decoder_equals_the_rewritten_autoencoder(onnx_bundle: Path, pipeline: Path) -> None:
    """Against eager attention on strided keys: 16 of 64 tokens, the native 4×4 cells."""
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

    vae = AutoencoderKL.from_pretrained(pipeline / "vae").eval()
    torch.manual_seed(4)
    latents = torch.randn(1, 4, 8, 8)
    with torch.no_grad():
        dense = vae.decode(latents, return_dict=False)[0]
        attention: Any = vae.decoder.get_submodule("mid_block.attentions.0")

        def strided(hidden: torch.Tensor, **_: Any) -> torch.Tensor:
            b, c, h, w = hidden.shape
            x = attention.group_norm(hidden.flatten(2)).transpose(1, 2)
            kept = x.transpose(1, 2).reshape(b, c, h, w)[:, :, ::2, ::2].flatten(2).transpose(1, 2)
            q, k, v = attention.to_q(x), attention.to_k(kept), attention.to_v(kept)
            y = torch.softmax(q @ k.transpose(1, 2) / c**0.5, -1) @ v
            y = attention.to_out[0](y).transpose(1, 2).reshape(b, c, h, w)
            return y + hidden

        attention.forward = strided
        expected = vae.decode(latents, return_dict=False)[0]
    (actual,) = run(onnx_bundle / "vae_decoder.onnx", latent_sample=latents)
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(actual, dense, rtol=1e-4, atol=1e-5)


def test_text_encoder_equals_transformers(onnx_bundle: Path, pipeline: Path) -> None:
    from transformers import CLIPTextModel

    text = CLIPTextModel.from_pretrained(pipeline / "text_encoder").eval()
    ids = torch.randint(0, 97, (1, 77))
    ids[0, 20:] = 98
    with torch.no_grad():
        expected = text(ids)
    hidden, pooled = run(onnx_bundle / "text_encoder.onnx", input_ids=ids)
    torch.testing.assert_close(hidden, expected.last_hidden_state, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(pooled, expected.pooler_output, rtol=1e-4, atol=1e-5)


def test_engines(pipeline: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "b"
    base = ["-m", str(pipeline), "-r", "32", "-o", f"{out}/", "--target", "sm89", "--json"]
    assert main(base) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["reused"] is False
    assert printed["bundle"]["kind"] == "tensorrt"
    assert damage(out) == []
    assert sorted(p.name for p in out.glob("*.plan")) == [
        "text_encoder.plan", "unet.plan", "vae_decoder.plan",
    ]  # fmt: skip
    assert main(base) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["reused"] is True
    assert all(c["reused"] for c in printed["components"].values())


def refuse_build(monkeypatch: pytest.MonkeyPatch, *names: str) -> list[str]:
    """Let builds of `names` fail; returns the list of all that were started."""
    started: list[str] = []
    real = compiler._rewritten

    def rewritten(job: Any) -> Any:
        started.append(job.source.component)
        if job.source.component in names:
            raise ExportError(f"{job.source.component} cannot be built")
        return real(job)

    monkeypatch.setattr(compiler, "_rewritten", rewritten)
    return started


def test_equal_is_kept(
    pipeline: Path, bundle: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    before = content(bundle)
    started = refuse_build(monkeypatch)
    assert main(arguments(pipeline, bundle)) == 0
    assert started == []
    assert "every component is equal; kept" in said(capsys)
    assert content(bundle) == before


def test_only_what_changed_is_built(
    pipeline: Path, bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = content(bundle)
    started = refuse_build(monkeypatch)
    assert main(arguments(pipeline, bundle, "--vae-factors", "off", "-q")) == 0
    assert started == ["vae_decoder"]
    assert damage(bundle) == []
    after = content(bundle)
    changed = {name for name in after if after[name] != before.get(name)}
    assert changed == {"bundle.json", "vae_decoder.onnx", "vae_decoder.onnx.json"}


def test_changed_light_file_is_copied_again(
    pipeline: Path, bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started = refuse_build(monkeypatch)
    (bundle / "tokenizer" / "vocab.json").write_text('{"changed": 1}')
    assert main(arguments(pipeline, bundle, "-q")) == 0
    assert started == []
    assert (bundle / "tokenizer" / "vocab.json").read_text() == "{}"
    assert damage(bundle) == []


def test_failure_leaves_the_old_bundle_and_keeps_what_was_built(
    pipeline: Path, bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = bundle_content(bundle)
    started = refuse_build(monkeypatch, "vae_decoder")
    changed = arguments(pipeline, bundle, "--sampling", "average")
    assert main(changed) == 5
    assert started == ["unet", "vae_decoder"]
    assert bundle_content(bundle) == before
    assert damage(bundle) == []
    monkeypatch.undo()
    started = refuse_build(monkeypatch)
    assert main(changed) == 0
    assert started == ["vae_decoder"]  # the UNet of the failed run was kept
    assert damage(bundle) == []
    assert not (bundle / ".parts").exists()


@pytest.mark.parametrize("victim", ["unet.onnx", "unet.onnx.json", "bundle.json"])
def test_damaged_is_mended(
    pipeline: Path, bundle: Path, monkeypatch: pytest.MonkeyPatch, victim: str
) -> None:
    path = bundle / victim
    path.write_bytes(path.read_bytes()[:-9])
    started = refuse_build(monkeypatch)
    assert main(arguments(pipeline, bundle, "-q")) == 0
    assert started == ([] if victim == "bundle.json" else ["unet"])
    assert damage(bundle) == []


def test_fewer_components_leave_nothing_behind(pipeline: Path, bundle: Path) -> None:
    assert main(arguments(pipeline, bundle, "--component", "vae-decoder", "-q")) == 0
    assert list(read_bundle(bundle).components) == ["vae_decoder"]
    assert damage(bundle) == []
    assert sorted(p.name for p in bundle.glob("*.onnx*")) == [
        "vae_decoder.onnx", "vae_decoder.onnx.json",
    ]  # fmt: skip


def test_foreign_folder_is_refused(pipeline: Path, tmp_path: Path, capsys: Any) -> None:
    (tmp_path / "photo.jpg").touch()
    assert main(arguments(pipeline, tmp_path)) == 7
    assert "holds other files" in said(capsys)
    assert [p.name for p in tmp_path.iterdir() if p.is_file()] == ["photo.jpg"]


def test_failed_first_build_leaves_no_bundle(
    pipeline: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refuse_build(monkeypatch, "unet")
    assert main(arguments(pipeline, tmp_path / "new", "-q")) == 5
    with pytest.raises(BundleError, match="not a finished bundle"):
        read_bundle(tmp_path / "new")


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (("--format", "coreml"), "Unknown format 'coreml'"),
        (("--component", "ears"), "Unknown component 'ears'"),
        (("--vae-precision", "int8"), "Unknown precision 'int8'"),
        (("--component", "text-encoder-2"), "has no text_encoder_2/config.json"),
        (("-o", "x.onnx"), "--format is for bundles"),
        (("-r", "33"), "cannot make 33x33 pixels"),
        (("--component", "vae-decoder", "--controlnet"), "--controlnet is for UNets"),
    ],
)
def test_mistakes(
    pipeline: Path, tmp_path: Path, capsys: Any, more: tuple[str, ...], says: str
) -> None:
    assert main(arguments(pipeline, tmp_path / "new", *more)) == 2
    assert says in said(capsys)
    assert not (tmp_path / "new").exists()


def test_all_into_a_file(pipeline: Path, tmp_path: Path, capsys: Any) -> None:
    out = str(tmp_path / "x.onnx")
    assert main(["-m", str(pipeline), "-r", "32", "-o", out, "--component", "all"]) == 2
    assert "--out bundle/" in said(capsys)


@pytest.fixture
def all_external(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tiny weights go to a file of their own, as big ones do."""
    from todo_compile.export import onnx

    monkeypatch.setitem(onnx.export_onnx.__kwdefaults__, "external_over", 0)


@pytest.mark.usefixtures("all_external")
def test_dense_twin_shares_the_weights(
    pipeline: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "b"
    only = ["--component", "unet", "-q"]
    assert main(arguments(pipeline, out, *only)) == 0  # the twin comes later
    assert main(arguments(pipeline, out, *only, "--dense-after", "0.7")) == 0
    found = read_bundle(out)
    assert found.dense_after == 0.7
    assert found.dense["unet"].file == "unet.dense.onnx"
    assert sorted(p.name for p in out.iterdir() if p.suffix == ".data") == ["unet.onnx.data"]
    assert damage(out) == []
    feeds = {
        "sample": torch.randn(2, 4, 8, 8),
        "timestep": torch.tensor([200.0]),
        "encoder_hidden_states": torch.randn(2, 77, 24),
    }
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

    unet = UNet2DConditionModel.from_pretrained(pipeline / "unet").eval()
    with torch.no_grad():
        expected = unet(*feeds.values(), return_dict=False)[0]
    (dense,) = run(out / "unet.dense.onnx", **feeds)
    (rewritten,) = run(out / "unet.onnx", **feeds)
    torch.testing.assert_close(dense, expected, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(rewritten, expected, rtol=1e-4, atol=1e-5)

    started = refuse_build(monkeypatch)
    assert main(arguments(pipeline, out, *only, "--dense-after", "0.8")) == 0
    assert started == []  # when to switch is no reason to build
    assert read_bundle(out).dense_after == 0.8
    # Other weights: the twin that shares them must go with them.
    assert main(arguments(pipeline, out, *only, "--dense-after", "0.8", "--weights", "random")) == 0
    assert started == ["unet", "unet"]
    assert damage(out) == []
    assert main(arguments(pipeline, out, *only)) == 0  # and without
    assert sorted(p.name for p in out.glob("unet*")) == [
        "unet", "unet.onnx", "unet.onnx.data", "unet.onnx.json",
    ]  # fmt: skip
    data = out / "unet.onnx.data"
    data.write_bytes(data.read_bytes()[:-1] + b"?")
    assert damage(out) == ["unet.onnx.data was changed (its hash differs)"]


@pytest.mark.parametrize("after", ["0", "1", "-1", "70", "nan"])
def test_share_of_the_steps(pipeline: Path, tmp_path: Path, capsys: Any, after: str) -> None:
    out = tmp_path / "b"
    assert main(arguments(pipeline, out, "--dense-after", after)) == 2
    assert "is no share of the steps" in said(capsys)
    assert not out.exists()


# A build that stops for a minute when it comes to a component, or to a line of the last phase.
_HANGING = """
import sys, time
from pathlib import Path
from todo_compile import assembly, compiler
from todo_compile.cli import main
where = sys.argv.pop(1)
def hang():
    print("ready", flush=True)
    time.sleep(120)
real = compiler._rewritten
def rewritten(job):
    if job.source.component == where:
        hang()
    return real(job)
compiler._rewritten = rewritten
if where.startswith("move"):
    left = int(where.removeprefix("move"))
    replace = assembly.os.replace
    def slow(source, goal):
        global left
        if ".parts" in str(source) and "tmp-" not in str(source):
            if left == 0:
                hang()
            left -= 1
        replace(source, goal)
    assembly.os.replace = slow
if where == "finish":
    from todo_compile.export import bundle
    bundle.write_bundle = lambda *_: hang()
sys.exit(main(sys.argv[1:]))
"""


def start_hanging(where: str, arguments: list[str]) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", _HANGING, where, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    line = process.stdout.readline()
    if line != "ready\n":
        process.kill()
        raise AssertionError(process.communicate()[1])
    return process


@pytest.mark.parametrize(
    ("where", "stands", "built_again"),
    [
        ("vae_decoder", True, ["vae_decoder"]),
        ("move1", False, ["unet"]),
        ("move2", False, []),
        ("finish", False, []),
    ],
)
def test_killed(
    pipeline: Path,
    bundle: Path,
    monkeypatch: pytest.MonkeyPatch,
    where: str,
    stands: bool,
    built_again: list[str],
) -> None:
    """kill -9: the old bundle stands or there is none; the next build goes on from there."""
    before = bundle_content(bundle)
    changed = arguments(pipeline, bundle, "--sampling", "average", "-q")
    process = start_hanging(where, changed)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    if stands:
        assert bundle_content(bundle) == before
        assert damage(bundle) == []
    else:
        with pytest.raises(BundleError, match="not a finished bundle"):
            read_bundle(bundle)
    started = refuse_build(monkeypatch)
    assert main(changed) == 0
    assert started == built_again
    assert damage(bundle) == []
    assert not [p.name for p in bundle.rglob(".*") if p.name != ".building"]


def test_two_processes(pipeline: Path, bundle: Path, capsys: Any) -> None:
    changed = arguments(pipeline, bundle, "--sampling", "average")
    process = start_hanging("unet", changed)
    try:
        before = content(bundle)
        assert main(arguments(pipeline, bundle, "--factors", "off")) == 7
        assert "Another process is building" in said(capsys)
        assert content(bundle) == before
    finally:
        process.kill()
        process.communicate()
    time.sleep(0.1)
    assert main([*arguments(pipeline, bundle), "-q"]) == 0  # the lock went with its process
    assert damage(bundle) == []


def test_registry_needs_no_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """SDXL's parts are known: names, batches, and precisions, before anything is built."""
    from todo_compile.jobs import Job

    jobs: dict[str, Job] = {}

    def run(self: Any) -> Any:
        jobs.update(self.jobs)
        raise ExportError("stop")

    monkeypatch.setattr(assembly.Assembly, "run", run)
    with pytest.raises(ExportError, match="stop"):
        todo_compile.compile_bundle(
            "sdxl", res=2048, out=tmp_path / "b", kind="onnx", weights="random", batch=4
        )
    assert {n: (j.batch, j.precision) for n, j in jobs.items()} == {
        "unet": (4, "fp16"),
        "vae_decoder": (2, "fp32"),
        "text_encoder": (1, "fp16"),
        "text_encoder_2": (1, "fp16"),
    }
    assert not (tmp_path / "b").exists()
