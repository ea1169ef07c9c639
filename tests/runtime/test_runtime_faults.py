"""Damaged, foreign and misplaced outputs: refused before onnxruntime or TensorRT reads them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_bundles import compiled

import todo_compile
from todo_compile.bundle.entries import file_entry
from todo_compile.errors import BundleError, ConfigError, EngineError, MissingPackageError
from todo_compile.runtime import files, onnx_session, tensorrt_session
from todo_compile.runtime.files import Output, check_gpu, open_output


@pytest.fixture
def copy(bundle: Path, tmp_path: Path) -> Path:
    """A bundle to spoil."""
    return Path(shutil.copytree(bundle, tmp_path / "copy"))


@pytest.fixture
def nothing_opens(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever interprets a file fails the test."""

    def opened(*args: Any, **kwargs: Any) -> None:
        del args, kwargs
        raise AssertionError("the file was opened")

    monkeypatch.setattr(onnx_session, "_create", opened)
    monkeypatch.setattr(tensorrt_session, "_library", opened)


def edit(path: Path, change) -> None:
    values = json.loads(path.read_text(encoding="utf-8"))
    change(values)
    path.write_text(json.dumps(values), encoding="utf-8")


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def load_both(folder: Path, says: str) -> None:
    """Alone and in the bundle, it is refused."""
    for load in (
        lambda: todo_compile.load(folder / "unet.onnx"),
        lambda: todo_compile.load(folder),
        lambda: todo_compile.load_pipeline(folder),
    ):
        with pytest.raises(BundleError, match=says) as caught:
            load()
        assert caught.value.remedy


@pytest.mark.usefixtures("nothing_opens")
class TestSpoilt:
    def test_truncated(self, copy: Path) -> None:
        path = copy / "unet.onnx"
        path.write_bytes(path.read_bytes()[:-1])
        load_both(copy, "bytes instead of")
        with pytest.raises(BundleError, match="bytes instead of"):
            todo_compile.load(path, verify="size")

    def test_one_bit(self, copy: Path) -> None:
        flip(copy / "unet.onnx")
        load_both(copy, "its hash differs")
        with pytest.raises(AssertionError, match="was opened"):  # as documented
            todo_compile.load(copy / "unet.onnx", verify="size")

    def test_missing(self, copy: Path) -> None:
        (copy / "unet.onnx").unlink()
        load_both(copy, "does not exist|is missing")

    def test_swapped(self, copy: Path) -> None:
        """Two outputs that are each right, under each other's names."""
        for suffix in ("", ".json"):
            a, b = copy / f"unet.onnx{suffix}", copy / f"vae_decoder.onnx{suffix}"
            a.rename(copy / "x")
            b.rename(a)
            (copy / "x").rename(b)
        load_both(copy, r"describes .*vae_decoder.onnx, not unet.onnx|not the manifest")

    def test_manifest_of_another_build(self, copy: Path) -> None:
        shutil.copyfile(copy / "unet.dense.onnx.json", copy / "unet.onnx.json")
        load_both(copy, r"describes .*unet.dense.onnx, not unet.onnx|not the manifest")

    def test_manifest_changed(self, copy: Path) -> None:
        edit(copy / "unet.onnx.json", lambda v: v["model"].update(batch=4))
        with pytest.raises(BundleError, match="not the manifest that the bundle"):
            todo_compile.load_pipeline(copy)

    @pytest.mark.parametrize("name", ["../unet.onnx", "/etc/passwd", "a/b", "..", "C:\\x"])
    def test_manifests_cannot_point_outside(self, copy: Path, name: str) -> None:
        shutil.copyfile(copy / "unet.onnx", copy.parent / "unet.onnx")
        edit(copy / "unet.onnx.json", lambda v: v["files"][0].update(name=name))
        with pytest.raises(BundleError, match="damaged"):
            todo_compile.load(copy / "unet.onnx")
        edit(copy / "bundle.json", lambda v: v["components"]["unet"].update(file=name))
        with pytest.raises(BundleError, match="damaged"):
            todo_compile.load_pipeline(copy)

    def test_light_files_count_too(self, copy: Path) -> None:
        flip(copy / "tokenizer" / "tokenizer.json")
        with pytest.raises(BundleError, match=r"tokenizer.json was changed"):
            todo_compile.load_pipeline(copy)

    def test_unfinished_bundle(self, copy: Path) -> None:
        (copy / "bundle.json").unlink()
        with pytest.raises(BundleError, match="not a finished bundle"):
            todo_compile.load_pipeline(copy)
        with pytest.raises(BundleError, match="is a folder"):
            todo_compile.load(copy)

    def test_no_manifest_at_all(self, copy: Path) -> None:
        (copy / "unet.onnx.json").unlink()
        load_both(copy, r"unet.onnx.json (does not exist|is missing)")


def test_a_manifest_that_lies_about_the_graph(copy: Path) -> None:
    """Hashes right, content wrong: the file's own word counts."""

    def lie(values: dict[str, Any]) -> None:
        values["inputs"][0]["shape"] = [2, 4, 8, 8]

    edit(copy / "unet.onnx.json", lie)
    with pytest.raises(BundleError, match="does not describe its inputs"):
        todo_compile.load(copy / "unet.onnx")


def test_a_file_that_is_no_model(copy: Path) -> None:
    path = copy / "unet.onnx"
    path.write_bytes(b"not a model")

    def vouch(values: dict[str, Any]) -> None:
        values["files"] = [file_entry(path).model_dump()]

    edit(copy / "unet.onnx.json", vouch)
    with pytest.raises(BundleError, match=r"unet.onnx cannot be read as ONNX"):
        todo_compile.load(path)


def test_external_weights_stay_in_the_folder(tmp_path: Path, copy: Path) -> None:
    """A crafted ONNX file with a right manifest cannot read files elsewhere."""
    import onnx

    secret = tmp_path / "secret"
    secret.write_bytes(bytes(4 * 24))
    model = onnx.load(copy / "unet.onnx", load_external_data=False)
    first = next(i for i in model.graph.initializer if i.data_type == onnx.TensorProto.FLOAT)
    first.ClearField("raw_data")
    first.data_location = onnx.TensorProto.EXTERNAL
    del first.dims[:]
    first.dims.append(24)
    first.external_data.add(key="location", value="../secret")
    path = copy / "unet.onnx"
    path.write_bytes(model.SerializeToString())

    def vouch(values: dict[str, Any]) -> None:
        values["files"] = [file_entry(path).model_dump()]

    edit(copy / "unet.onnx.json", vouch)
    with pytest.raises(BundleError, match=r"weights from '../secret'"):
        todo_compile.load(path)


@pytest.fixture(scope="module")
def plan(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A real engine, built for an Ada GPU on a machine that has none."""
    path = tmp_path_factory.mktemp("plan") / "u.plan"
    return compiled(model, path, precision="fp16", target="sm89", library="tensorrt_rtx")


@pytest.mark.skipif(torch.cuda.is_available(), reason="about machines without a GPU")
def test_an_engine_without_a_gpu(plan: Path) -> None:
    """The first call that needs the driver is made, and its refusal translated."""
    with pytest.raises(
        EngineError, match=r"needs an NVIDIA GPU \(sm89\) with its driver"
    ) as caught:
        todo_compile.load(plan)
    assert "cudaError 35" in str(caught.value.remedy)
    assert "--out FILE.onnx" in str(caught.value.remedy)


def test_an_engine_without_its_library(plan: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "tensorrt_rtx", None)
    with pytest.raises(MissingPackageError, match="needs tensorrt_rtx") as caught:
        todo_compile.load(plan)
    assert "todo-compile[rtx]" in str(caught.value.remedy)


def test_an_engine_of_another_version(plan: Path, tmp_path: Path) -> None:
    for name in (plan.name, f"{plan.name}.json", f"{plan.name}.onnx"):
        shutil.copyfile(plan.parent / name, tmp_path / name)
    edit(tmp_path / "u.plan.json", lambda v: v.update(library="tensorrt_rtx 1.0.0"))
    with pytest.raises(EngineError, match=r"built with tensorrt_rtx 1.0.0; here is"):
        todo_compile.load(tmp_path / "u.plan")
    edit(tmp_path / "u.plan.json", lambda v: v.update(library="os 1.0.0"))
    with pytest.raises(EngineError, match="not known"):
        todo_compile.load(tmp_path / "u.plan")


def test_an_engine_for_another_gpu(plan: Path) -> None:
    output = open_output(plan)
    check_gpu(output, "sm89")
    with pytest.raises(EngineError, match="built for sm89; the GPU here is sm120") as caught:
        check_gpu(output, "sm120")
    assert "--target sm89,sm120" in str(caught.value.remedy)


def test_an_engine_whose_header_is_foreign(plan: Path, tmp_path: Path) -> None:
    manifest = open_output(plan).manifest
    (tmp_path / plan.name).write_bytes(bytes(1000))
    with pytest.raises(EngineError, match=r"u\.plan"):
        tensorrt_session.TensorRTSession(Output(tmp_path / plan.name, manifest))


def test_a_bundle_that_lacks_a_part(copy: Path) -> None:
    for name in ("tokenizer", "scheduler"):
        shutil.rmtree(copy / name)
    edit(copy / "bundle.json", lambda v: v.update(light_files=[]))
    with pytest.raises(BundleError, match=r"no scheduler/scheduler_config.json"):
        todo_compile.load_pipeline(copy)
    import tiny_pipelines as tiny

    with pytest.raises(BundleError, match="has no tokenizer, which StableDiffusionPipeline needs"):
        todo_compile.load_pipeline(copy, scheduler=tiny.scheduler())
    pipe = todo_compile.load_pipeline(copy, scheduler=tiny.scheduler(), tokenizer=tiny.tokenizer())
    assert pipe.vae.config.latent_channels == 4


def test_classes_come_from_diffusers_alone(copy: Path) -> None:
    for name in ("StableDiffusionPipelineX", "Path", "UNet2DConditionModel"):
        edit(copy / "bundle.json", lambda v, name=name: v.update(pipeline_class=name))
        with pytest.raises(ConfigError, match="has no pipeline"):
            todo_compile.load_pipeline(copy)


def test_wrong_words(bundle: Path) -> None:
    with pytest.raises(ConfigError, match="Unknown scheduler 'fast'"):
        todo_compile.load_pipeline(bundle, scheduler="fast")
    with pytest.raises(ConfigError, match="no component unett"):
        todo_compile.load_pipeline(bundle, unett=None)
    with pytest.raises(ConfigError, match="has no text_encoder_2"):
        todo_compile.load(bundle, component="text_encoder_2")
    assert files.open_bundle(bundle / "bundle.json").folder == bundle
