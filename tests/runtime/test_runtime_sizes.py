"""Several resolutions in one bundle: weights once, and every picture by the engine of its size."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_pipelines as tiny
import torch
from helpers import weights_outside
from oracle import OracleProcessor
from PIL import Image

import todo_compile
from todo_compile.build import compiler
from todo_compile.bundle.bundle import check_bundle, read_bundle
from todo_compile.cli.app import main
from todo_compile.errors import ConfigError, InputError
from todo_compile.options import PlanOptions
from todo_compile.runtime import loading
from todo_compile.runtime.how import How

SIZES = {"32x32": (16, 16), "48x16": (8, 24)}
"""Width × height in pixels: rows and columns of the latents."""


def build(model: Path, folder: Path, res: Any, **options: Any) -> Any:
    return todo_compile.compile_bundle(
        str(model),
        res=res,
        out=folder,
        format="onnx",
        precision="fp32",
        vae_options=PlanOptions.create(kv_tokens=64),
        **options,
    )


@pytest.fixture(scope="module")
def sized(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two sizes, with dense twins, weights in files of their own. Not to change."""
    folder = tmp_path_factory.mktemp("sized") / "b"
    with pytest.MonkeyPatch.context() as patch:
        weights_outside(patch)
        build(model, folder, list(SIZES), dense_after=0.5)
    return folder


def oracle(pipe: Any, folder: Path, size: str, *, unet: bool = True) -> Any:
    """The torch pipeline, its attention subsampled as the manifests say."""
    stem = "" if size == "32x32" else f".{size}"
    for name, module in (("unet", pipe.unet), ("vae_decoder", pipe.vae.decoder)):
        if name == "unet" and not unet:
            continue
        sites = json.loads((folder / f"{name}{stem}.onnx.json").read_text())["sites"]
        for site in sites:
            if site["action"] != "rewritten":
                continue
            processor = OracleProcessor(
                {site["query_tokens"]: tuple(site["grid"])},
                {site["query_tokens"]: tuple(site["factor"])},
                "nearest",
            )
            path = site["module"].partition(".")[2] if name == "unet" else "mid_block.attentions.0"
            module.get_submodule(path).set_processor(processor)
    return pipe


def picture(pipe: Any, size: str, **options: Any) -> torch.Tensor:
    rows, columns = SIZES[size]
    return tiny.picture(pipe, height=2 * rows, width=2 * columns, **options)


def test_what_lies_there(sized: Path) -> None:
    found = read_bundle(sized)
    assert check_bundle(found, sized) == []
    assert found.resolutions == ["32x32", "48x16"]
    assert list(found.components) == ["unet", "vae_decoder", "text_encoder"]
    (second,) = found.sizes
    assert {n: e.file for n, e in second.components.items()} == {
        "unet": "unet.48x16.onnx",
        "vae_decoder": "vae_decoder.48x16.onnx",
    }
    assert [(p.start, p.file) for p in second.phases] == [(0.5, "unet.48x16.dense.onnx")]
    # One weights' file a component, whatever the number of sizes and twins.
    assert sorted(p.name for p in sized.glob("*.data")) == [
        "text_encoder.onnx.data",
        "unet.onnx.data",
        "vae_decoder.onnx.data",
    ]


@pytest.mark.parametrize("size", SIZES)
def test_pictures_of_every_size(model: Path, sized: Path, size: str) -> None:
    ours = todo_compile.load_pipeline(sized)
    for part in ("unet",):  # no switching: the twin has a test of its own
        setattr(ours, part, ours.unet.parts[0])
    torch_pipe = type(tiny.sd()).from_pretrained(model)
    torch_pipe.set_progress_bar_config(disable=True)
    plain = picture(torch_pipe, size)
    expected = picture(oracle(torch_pipe, sized, size), size)
    actual = picture(ours, size)
    torch.testing.assert_close(actual, expected, rtol=1e-3, atol=1e-4)
    assert not torch.allclose(actual, plain, rtol=1e-3, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("size", SIZES)
def test_dense_twins_of_every_size(model: Path, sized: Path, size: str) -> None:
    torch_pipe = type(tiny.sd()).from_pretrained(model)
    torch_pipe.set_progress_bar_config(disable=True)
    expected = picture(oracle(torch_pipe, sized, size, unet=False), size)
    dense = todo_compile.load_pipeline(sized, dense=True)
    torch.testing.assert_close(picture(dense, size), expected, rtol=1e-3, atol=1e-4)
    # And in turn within one run: two steps of which the second is dense.
    pair = todo_compile.load_pipeline(sized)
    calls: list[str] = []
    for name, part in zip(("rewritten", "dense"), pair.unet.parts, strict=True):
        part.register_forward_hook(lambda *_, name=name: calls.append(name))
    picture(pair, size, steps=2)
    assert calls == ["rewritten", "dense"]


def test_other_sizes_are_refused(sized: Path) -> None:
    pipe = todo_compile.load_pipeline(sized)
    with pytest.raises(InputError, match="built for 32x32, 48x16 px"):
        tiny.picture(pipe, height=48, width=48)


def test_engines_are_opened_when_needed(sized: Path) -> None:
    unet = todo_compile.load(sized, verify="size").parts[0]
    feeds = {"timestep": torch.tensor([500.0]), "encoder_hidden_states": torch.randn(2, 77, 24)}
    opened = unet.session._sessions
    assert list(opened) == [(16, 16)]
    for _ in range(2):
        unet(torch.randn(2, 4, 8, 24), **feeds)
    assert list(opened) == [(16, 16), (8, 24)]


def test_every_engine_has_a_cache_of_its_own(
    sized: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[str, str] = {}
    opened = loading.open_session

    def recorded(output: Any, how: How) -> Any:
        assert how.runtime_cache is not None
        seen[output.path.name] = how.runtime_cache.name
        return opened(output, replace(how, runtime_cache=None))  # onnxruntime takes no such file

    monkeypatch.setattr(loading, "open_session", recorded)
    pair = todo_compile.load(sized, verify="size", runtime_cache=tmp_path / "unet.cache")
    feeds = {"timestep": torch.tensor([500.0]), "encoder_hidden_states": torch.randn(2, 77, 24)}
    for one in (pair.parts[0], pair.dense):
        one(torch.randn(2, 4, 8, 24), **feeds)
    assert seen == {
        "unet.onnx": "unet.cache",
        "unet.dense.onnx": "unet.dense.onnx.cache",
        "unet.48x16.onnx": "unet.48x16.onnx.cache",
        "unet.48x16.dense.onnx": "unet.48x16.dense.onnx.cache",
    }


def test_one_size_alone(sized: Path) -> None:
    unet = todo_compile.load(sized, res="48x16").parts[0]
    assert unet.session.inputs["sample"].shape == (2, 4, 8, 24)
    pipe = todo_compile.load_pipeline(sized, res="48x16")
    assert pipe.vae.session.inputs["latent_sample"].shape == (1, 4, 8, 24)
    with pytest.raises(ConfigError, match="nothing for 64x64") as caught:
        todo_compile.load_pipeline(sized, res=64)
    assert "32x32, 48x16" in str(caught.value.remedy)
    with pytest.raises(ConfigError, match="bundle of several"):
        todo_compile.load(sized / "unet.onnx", res=32)


def test_generate_takes_its_size(sized: Path, tmp_path: Path, capsys: Any) -> None:
    out = tmp_path / "a.png"
    base = ["generate", "-b", str(sized), "-p", "a cat", "--steps", "1", "-o", str(out), "-q"]
    assert main([*base, "--res", "48x16", "--compare", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["mse"] > 0
    assert main([*base, "--res", "48x16"]) == 0
    assert np.asarray(Image.open(out)).shape == (16, 48, 3)
    assert main([*base]) == 0
    assert np.asarray(Image.open(out)).shape == (32, 32, 3)
    assert main([*base, "--res", "64"]) == 2
    assert "nothing for 64x64" in " ".join(capsys.readouterr().err.split())


def test_sizes_come_and_go(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    weights_outside(monkeypatch)
    started: list[str] = []
    rewritten = compiler._rewritten

    def counted(job: Any) -> Any:
        started.append(f"{job.source.component} {job.resolution}")
        return rewritten(job)

    monkeypatch.setattr(compiler, "_rewritten", counted)
    out = tmp_path / "b"
    base = ["-m", str(model), "-o", f"{out}/", "--precision", "fp32", "--format", "onnx", "-q"]
    only = ["--component", "unet"]
    assert main([*base, *only, "-r", "32"]) == 0
    assert main([*base, *only, "-r", "32", "-r", "48x16"]) == 0
    assert started == ["unet 32x32", "unet 48x16"]  # the first was kept
    assert check_bundle(read_bundle(out), out) == []
    assert main([*base, *only, "-r", "32", "-r", "48x16"]) == 0
    assert len(started) == 2
    assert main([*base, *only, "-r", "32"]) == 0
    assert len(started) == 2
    assert sorted(p.name for p in out.glob("unet.*")) == [
        "unet.onnx", "unet.onnx.data", "unet.onnx.json",
    ]  # fmt: skip
    capsys.readouterr()
    assert main([*base, *only, "-r", "32", "-r", "32x32"]) == 2
    assert "32x32 is given twice" in " ".join(capsys.readouterr().err.split())
    assert main([*base[:2], "-o", str(tmp_path / "x.onnx"), "-r", "32", "-r", "64"]) == 2
    assert "A second --res is for bundles" in " ".join(capsys.readouterr().err.split())
    assert main([*base, *only, "-r", "32", "-r", "33"]) == 2  # all are checked before any is built
    assert len(started) == 2
