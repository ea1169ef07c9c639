"""Triton's model repository: its configurations, and the pipeline's model with a stand-in server.

No server runs here. The configurations are read by Triton's own protobufs where `tritonclient` is
installed; the stand-in has the Python backend's interface, and runs the repository's ONNX files.
"""

from __future__ import annotations

import json
import re
import sys
import types
from dataclasses import dataclass
from importlib import util
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
import tiny_pipelines as tiny
import torch
from torch.utils import dlpack

import todo_compile
from todo_compile.bundle.manifest import Manifest, manifest_path, read
from todo_compile.bundle.tensors import Tensor
from todo_compile.bundle.triton import models_of, write_repository
from todo_compile.cli.app import main
from todo_compile.errors import ConfigError, EngineError


@pytest.fixture(scope="module")
def repository(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("triton") / "models"
    assert main(["export-triton", str(bundle), "--out", str(folder), "--name", "tiny"]) == 0
    return folder


def test_layout(repository: Path, bundle: Path) -> None:
    assert sorted(p.name for p in repository.iterdir()) == [
        "tiny",
        "tiny-text_encoder",
        "tiny-unet",
        "tiny-unet-dense",
        "tiny-vae_decoder",
    ]
    for folder in repository.iterdir():
        config = (folder / "config.pbtxt").read_text()
        assert f'name: "{folder.name}"' in config
        if folder.name != "tiny":
            file = folder / "1" / filename(config)
            assert file.read_bytes() == (bundle / file.name).read_bytes()
            for entry in read(bundle / file.name).files:  # weights that it shares among them
                assert (folder / "1" / entry.name).exists()
    assert (repository / "tiny" / "1" / "model.py").exists()
    assert not list((repository / "tiny").rglob("*.onnx"))


def filename(config: str) -> str:
    found = re.search(r'default_model_filename: "(.*)"', config)
    assert found is not None
    return found[1]


@pytest.mark.skipif(util.find_spec("tritonclient") is None, reason="tritonclient is not installed")
def test_configurations_in_tritons_own_words(repository: Path, bundle: Path) -> None:
    """Parsed by its protobufs; every tensor has the type and sizes of the ONNX file."""
    from google.protobuf import text_format
    from tritonclient.grpc import model_config_pb2 as pb  # pyright: ignore[reportMissingImports]

    kinds = {"float32": pb.TYPE_FP32, "int64": pb.TYPE_INT64, "int32": pb.TYPE_INT32}
    for folder in sorted(repository.iterdir()):
        text = (folder / "config.pbtxt").read_text()
        config = text_format.Parse(text, pb.ModelConfig())
        assert (config.name, config.max_batch_size) == (folder.name, 0)
        if folder.name == "tiny":
            assert config.backend == "python"
            assert [i.name for i in config.input if not i.optional] == ["prompt"]
            continue
        assert config.platform == "onnxruntime_onnx"
        manifest = read(bundle / config.default_model_filename)
        for found, wanted in ((config.input, manifest.inputs), (config.output, manifest.outputs)):
            assert [(t.name, t.data_type, list(t.dims)) for t in found] == [
                (s.name, kinds[s.dtype], list(s.shape) or [1]) for s in wanted
            ]


@pytest.mark.skipif(util.find_spec("tritonclient") is None, reason="tritonclient is not installed")
def test_an_engine(tmp_path: Path, bundle: Path) -> None:
    """Of classic TensorRT, with a range of batches, in bfloat16; a scalar is reshaped."""
    from google.protobuf import text_format
    from tritonclient.grpc import model_config_pb2 as pb  # pyright: ignore[reportMissingImports]

    path = engine(tmp_path, bundle, "tensorrt 10.12")
    (model,) = models_of(path, "unet")
    config = text_format.Parse(model.config, pb.ModelConfig())
    assert (config.platform, config.default_model_filename) == ("tensorrt_plan", "x.plan")
    sample, timestep = config.input
    assert (sample.data_type, list(sample.dims)) == (pb.TYPE_BF16, [-1, 4, 8, 8])
    assert (list(timestep.dims), list(timestep.reshape.shape)) == ([1], [])
    assert timestep.HasField("reshape")


def engine(folder: Path, bundle: Path, library: str) -> Path:
    """A file with the manifest of an engine."""
    path = folder / "x.plan"
    path.write_bytes(b"engine")
    values = read(bundle / "unet.onnx").model_dump()
    from todo_compile.bundle.entries import file_entry

    specs = [
        Tensor.model_validate(
            {"name": "sample", "shape": (-1, 4, 8, 8), "dtype": "bfloat16", "batches": "1..4"}
        ),
        Tensor(name="timestep", shape=(), dtype="int64"),
    ]
    changed = {"library": library, "targets": ["sm89"], "files": [file_entry(path)]}
    manifest = Manifest.model_validate({**values, **changed, "inputs": specs})
    manifest_path(path).write_text(manifest.model_dump_json(), encoding="utf-8")
    return path


@dataclass
class Value:
    """The backend's ``Tensor``."""

    name: str
    data: Any

    @classmethod
    def from_dlpack(cls, name: str, capsule: Any) -> Value:
        return cls(name, dlpack.from_dlpack(capsule).numpy())

    def to_dlpack(self) -> Any:
        return torch.to_dlpack(torch.from_numpy(self.data))

    def as_numpy(self) -> Any:
        return self.data


@dataclass
class Failure:
    text: str

    def message(self) -> str:
        return self.text


@dataclass
class Answer:
    output_tensors: list[Value]
    error: Any = None

    def has_error(self) -> bool:
        return self.error is not None


def server(repository: Path, asked: list[str]) -> types.ModuleType:
    """A stand-in for ``triton_python_backend_utils`` that serves the repository's ONNX files."""
    made: Any = types.ModuleType("triton_python_backend_utils")

    @dataclass
    class Request:
        model_name: str
        requested_output_names: list[str]
        inputs: list[Value]

        def exec(self) -> Any:
            asked.append(self.model_name)
            folder = repository / self.model_name
            config = (folder / "config.pbtxt").read_text()
            session = ort.InferenceSession(str(folder / "1" / filename(config)))
            scalars = {i.name for i in session.get_inputs() if not i.shape}
            feeds = {t.name: t.data for t in self.inputs}
            assert all(feeds[name].shape == (1,) for name in scalars)
            feeds |= {name: feeds[name].reshape(()) for name in scalars}
            if np.isnan(feeds.get("sample", np.zeros(1))).any():
                failed: Any = Answer([])
                failed.error = lambda: Failure("no numbers")
                return failed
            outputs = session.run(self.requested_output_names, feeds)
            pairs = zip(self.requested_output_names, outputs, strict=True)
            return Answer([Value(*pair) for pair in pairs])

    def by_name(holder: Any, name: str) -> Value | None:
        held = holder.output_tensors if isinstance(holder, Answer) else holder
        return next((one for one in held if one.name == name), None)

    made.Tensor, made.InferenceRequest, made.InferenceResponse = Value, Request, Answer
    made.TritonError = Failure
    made.get_output_tensor_by_name = made.get_input_tensor_by_name = by_name
    return made


@pytest.fixture
def served(repository: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Any, list[str]]:
    """The pipeline's model as the backend makes it, and the models that it asked."""
    asked: list[str] = []
    name = "triton_python_backend_utils"
    monkeypatch.setitem(sys.modules, name, server(repository, asked))
    folder = repository / "tiny"
    spec = util.spec_from_file_location("model", folder / "1" / "model.py")
    assert spec is not None and spec.loader is not None
    module = util.module_from_spec(spec)
    spec.loader.exec_module(module)
    model = module.TritonPythonModel()
    configured = json.dumps({"name": "tiny"})
    model.initialize(
        {"model_config": configured, "model_repository": str(folder), "model_version": "1"}
    )
    return model, asked


def request(**values: Any) -> list[Value]:
    kinds = {"prompt": object, "steps": np.int32, "guidance": np.float32, "seed": np.int64}
    return [Value(n, np.array([v], dtype=kinds.get(n, np.int32))) for n, v in values.items()]


def test_a_picture(served: tuple[Any, list[str]], bundle: Path) -> None:
    """That of the bundle's pipeline, by the server's models, phase after phase."""
    model, asked = served
    answer, refused = model.execute(
        [
            request(prompt=b"a cat", steps=2, guidance=3.0, seed=5),
            request(prompt=b"a cat", steps=2, width=100, height=100),
        ]
    )
    assert answer.error is None
    (found,) = answer.output_tensors
    pipe = todo_compile.load_pipeline(bundle)
    pipe.set_progress_bar_config(disable=True)
    wanted = pipe(
        "a cat",
        num_inference_steps=2,
        guidance_scale=3.0,
        generator=torch.Generator().manual_seed(5),
        output_type="np",
    ).images
    assert (found.name, found.data.dtype) == ("images", np.uint8)
    assert found.data.shape == (1, tiny.PIXELS, tiny.PIXELS, 3)
    assert np.abs(found.data.astype(int) - wanted * 255).max() <= 1
    assert set(asked) == {"tiny-text_encoder", "tiny-unet", "tiny-unet-dense", "tiny-vae_decoder"}
    assert refused.output_tensors == []
    assert "100" in refused.error.message()


def test_a_model_that_fails(served: tuple[Any, list[str]]) -> None:
    model, _ = served
    unet = model._pipeline.unet
    sample = torch.full((2, 4, 16, 16), float("nan"))
    with pytest.raises(EngineError, match="model tiny-unet failed: no numbers"):
        unet.parts[0](sample, torch.tensor(1), torch.zeros(2, 77, unet.config.cross_attention_dim))


def test_what_triton_cannot_run(tmp_path: Path, bundle: Path) -> None:
    path = engine(tmp_path, bundle, "tensorrt_rtx 1.7")
    with pytest.raises(ConfigError, match="an engine of TensorRT for RTX, which Triton has no"):
        models_of(path)


def test_a_repository_that_has_it(
    repository: Path, bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Beside others it is written; over itself never, and nothing is left half-written."""
    before = sorted(repository.rglob("*"))
    assert main(["export-triton", str(bundle), "-o", str(repository), "--name", "tiny"]) == 2
    assert "has tiny-unet, " in capsys.readouterr().err.replace("\n", " ")
    assert sorted(repository.rglob("*")) == before
    assert main(["export-triton", str(bundle), "-o", str(repository), "--name", "a/b"]) == 2
    unet = bundle / "unet.onnx"
    assert main(["export-triton", str(unet), "-o", str(repository), "--name", "alone"]) == 0
    assert (repository / "alone" / "1" / "unet.onnx").exists()


def test_failure_leaves_nothing(
    tmp_path: Path, bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    models = models_of(bundle, "x")
    broken = tmp_path / "gone"
    last = models[-1]
    models[-1] = type(last)(last.name, last.config, {"gone": broken}, last.texts)
    with pytest.raises(OSError, match="gone"):
        write_repository(models, tmp_path / "models")
    assert list((tmp_path / "models").iterdir()) == []
    monkeypatch.undo()
