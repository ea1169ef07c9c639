"""The command ``generate``, from a bundle and from a model, alone and side by side."""

from __future__ import annotations

import json
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
import tiny_pipelines as tiny
from helpers import said
from PIL import Image
from tiny_bundles import make_bundle, with_oracle

import todo_compile
from todo_compile.bundle.files import Stage
from todo_compile.cli.app import main
from todo_compile.errors import INTERRUPTED, BundleError, ConfigError
from todo_compile.runtime.generate import Picture, check_picture, generate
from todo_compile.runtime.metrics import hpf, mse


def call(*arguments: object) -> int:
    return main(["generate", *map(str, arguments)])


def test_a_picture(bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "a.png"
    common = ["--bundle", bundle, "-p", "a red cat", "--steps", 2, "--guidance", 4, "--seed", 5]
    assert call(*common, "--out", out) == 0
    words = said(capsys)
    assert "load" in words and "denoise" in words and "it/s" in words and f"wrote {out}" in words
    pipe = todo_compile.load_pipeline(bundle)
    expected = np.rint(tiny.picture(pipe, steps=2)[0].numpy() * 255)
    drawn = np.asarray(Image.open(out))
    assert drawn.shape == (tiny.PIXELS, tiny.PIXELS, 3)
    assert np.abs(drawn - expected).max() <= 1
    assert [p.name for p in tmp_path.iterdir()] == ["a.png"]

    assert call(*common[:-1], 6, "--out", out, "--scheduler", "euler", "--json", "-q") == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["seed"], facts["steps"], facts["path"]) == (6, 2, str(out))
    assert facts["steps_per_second"] > 0
    assert np.abs(np.asarray(Image.open(out)) - expected).max() > 1


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_ended(
    bundle: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    number: signal.Signals,
    status: int,
) -> None:
    """Where the new picture is written already: the old one stands, alone."""
    out = tmp_path / "a.png"
    out.write_text("old")
    monkeypatch.setattr(Stage, "commit", lambda _: signal.raise_signal(number))
    assert call("-b", bundle, "-p", "a", "--steps", 1, "--out", out) == status
    assert INTERRUPTED in said(capsys)
    assert [p.name for p in tmp_path.iterdir()] == ["a.png"]
    assert out.read_text() == "old"


def test_compare_with_the_twin(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "both.png"
    arguments = ["-b", bundle, "-p", "a red cat", "--steps", 2, "--guidance", 4, "--seed", 5]
    assert call(*arguments, "-o", out, "--compare", "--json", "-q") == 0
    facts = json.loads(capsys.readouterr().out)
    dense = todo_compile.load_pipeline(bundle, dense=True)
    ours = todo_compile.load_pipeline(bundle)
    pictures = [tiny.picture(pipe, steps=2)[0].numpy() for pipe in (ours, dense)]
    assert facts["mse"] == pytest.approx(mse(*pictures), rel=1e-3)
    assert facts["mse"] > 1e-8
    assert facts["hpf"] == pytest.approx(hpf(pictures[0]), rel=1e-3)
    assert facts["hpf_dense"] == pytest.approx(hpf(pictures[1]), rel=1e-3)
    sheet = np.asarray(Image.open(out))
    assert sheet.shape[1] > 3 * 256  # three panels, enlarged to be seen
    assert sheet.shape[0] > 256
    assert int(np.count_nonzero(sheet[-60:] < 128)) > 300  # words at the foot


def test_compare_with_a_dense_bundle(
    bundle: Path, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = Path(shutil.copytree(bundle, tmp_path / "dense"))
    names = {"unet": "unet.dense", "vae_decoder": "vae_decoder", "text_encoder": "text_encoder"}
    files = {component: folder / f"{name}.onnx" for component, name in names.items()}
    make_bundle(folder, model, files)
    arguments = ["-p", "a", "--steps", 1, "-o", tmp_path / "x.png", "--compare"]
    assert call("-b", bundle, *arguments, "--dense-bundle", folder) == 0
    words = said(capsys)
    assert "MSE" in words and "PSNR" in words and "HPF" in words
    assert call("-b", folder, *arguments) == 2
    assert "has no dense denoiser" in said(capsys)
    other = make_bundle(folder, model, files, resolution="64x64")
    assert call("-b", bundle, *arguments, "--dense-bundle", other) == 2
    assert "built for 64x64" in said(capsys)


def test_from_a_model_in_torch(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "m.png"
    arguments = ["-p", "a red cat", "--steps", 2, "--guidance", 4, "--seed", 5, "-o", out]
    assert call("--model", model, "--res", tiny.PIXELS, *arguments) == 0
    shown = said(capsys)
    assert "3 attention sites rewritten" in shown
    assert not [word for word in ("torchvision", "Loading", "deprecated") if word in shown]
    oracle = with_oracle(tiny.sd())
    oracle.vae = tiny.vae()
    expected = np.rint(tiny.picture(oracle, steps=2)[0].numpy() * 255)
    assert np.abs(np.asarray(Image.open(out)) - expected).max() <= 1
    assert call("-m", model, "-r", tiny.PIXELS, *arguments, "--compare", "--json", "-q") == 0
    assert json.loads(capsys.readouterr().out)["mse"] > 1e-8


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["-o", "x.png"], "either --bundle or --model"),
        (["-o", "x.gif2", "-b", "."], "is not that of a picture"),
        (["-o", "no/x.png", "-b", "."], "does not exist"),
        (["-o", "x.png", "-b", "none"], "not a finished bundle"),
        (["-o", "x.png", "-m", "."], "needs --res"),
        (["-o", "x.png", "-m", ".", "-r", "32"], "is not a diffusers model"),
        (["-o", "x.png", "-m", "sd1.5", "-r", "32"], "Did you mean sd15?"),
        (["-o", "x.png", "-b", ".", "--precision", "fp16"], "goes with --model"),
        (["-o", "x.png", "-b", ".", "--dense-bundle", "."], "goes with"),
    ],
)
def test_mistakes_end_early(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    says: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert call("-p", "a", *arguments) in (2, 7)
    assert says in said(capsys)
    assert not list(tmp_path.iterdir())


def test_a_model_without_its_pipeline(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(model / "unet", tmp_path / "alone")
    out = tmp_path / "x.png"
    assert call("-p", "a", "-m", tmp_path / "alone", "-r", 32, "-o", out) == 2
    assert "no model_index.json" in said(capsys)
    assert not out.exists()


def test_no_steps_and_no_place(bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="draw nothing"):
        generate(None, "a", steps=0)
    with pytest.raises(BundleError, match="does not exist"):
        check_picture(tmp_path / "no" / "x.png")
    assert bundle.exists()


def test_rates() -> None:
    pixels = np.zeros((4, 4, 3), np.float32)
    assert Picture(pixels, 3.0, 5, 2.0).rate == 2.0  # four steps after the first
    assert Picture(pixels, 3.0, 1, None).rate is None
