"""The TensorRT session as far as it goes without a GPU.

Its calls are checked against the names in the real bindings, and its logic against a stand-in that
computes on the CPU. None of this says that it runs on hardware; that has not been tried.
"""

from __future__ import annotations

import ctypes
import re
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from todo_compile.batches import BatchRange
from todo_compile.bundle import entries
from todo_compile.bundle import manifest as manifests
from todo_compile.bundle.tensors import Tensor
from todo_compile.errors import BundleError, ConfigError, EngineError, InputError
from todo_compile.runtime import tensorrt_session
from todo_compile.runtime.files import Output
from todo_compile.runtime.how import How
from todo_compile.runtime.loading import open_session
from todo_compile.runtime.tensorrt_session import TensorRTSession

_USED = {
    "Runtime": ("get_engine_validity", "engine_header_size", "deserialize_cuda_engine"),
    "ICudaEngine": (
        "create_execution_context",
        "create_runtime_config",
        "get_tensor_name",
        "get_tensor_profile_shape",
        "get_tensor_shape",
        "num_io_tensors",
    ),
    "IRuntimeConfig": (
        "create_runtime_cache",
        "set_runtime_cache",
        "cuda_graph_strategy",
        "dynamic_shapes_kernel_specialization_strategy",
    ),
    "DynamicShapesKernelSpecializationStrategy": ("LAZY", "EAGER", "NONE"),
    "IRuntimeCache": ("serialize", "deserialize"),
    "IExecutionContext": ("set_input_shape", "set_tensor_address", "execute_async_v3"),
    "CudaGraphStrategy": ("WHOLE_GRAPH_CAPTURE",),
    "EngineValidity": ("INVALID",),
}


def test_the_names_are_those_of_the_real_bindings() -> None:
    trt = pytest.importorskip("tensorrt_rtx")
    for owner, names in _USED.items():
        for name in names:
            assert hasattr(getattr(trt, owner), name), f"{owner}.{name}"
    source = Path(tensorrt_session.__file__).read_text(encoding="utf-8")
    used = set(re.findall(r"(?:_runtime|engine|_context|config|_cache)\.(\w+)\(", source))
    assert {"deserialize_cuda_engine", "execute_async_v3", "serialize", "set_input_shape"} <= used
    assert used <= {name for names in _USED.values() for name in names}


class Engine:
    """Engine, context, configuration and cache in one: adds one to `sample`."""

    num_io_tensors = 2
    shape: tuple[int, ...] = (1, 4)
    profile = ((1, 4), (3, 4), (3, 4))
    cuda_graph_strategy: Any = None
    dynamic_shapes_kernel_specialization_strategy: Any = None

    def __init__(self) -> None:
        self.places: dict[str, int] = {}
        self.bound: list[dict[str, int]] = []
        self.cached: bytes | None = None
        self.works = True
        self.takes = True
        self.rows = 1
        self.shapes: list[tuple[int, ...]] = []

    def get_tensor_name(self, index: int) -> str:
        return ("sample", "out_sample")[index]

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        del name
        return self.shape

    def get_tensor_profile_shape(self, name: str, index: int) -> tuple[tuple[int, ...], ...]:
        assert (name, index) == ("sample", 0)
        return self.profile

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        assert name == "sample"
        self.shapes.append(shape)
        self.rows = shape[0]
        return self.takes

    def create_runtime_config(self) -> Engine:
        return self

    def create_runtime_cache(self) -> Engine:
        return self

    def set_runtime_cache(self, cache: Engine) -> bool:
        return cache is self

    def serialize(self) -> bytes:
        return b"kernels"

    def deserialize(self, blob: bytes) -> bool:
        self.cached = blob
        return True

    def create_execution_context(self, config: Engine) -> Engine:
        return config

    def set_tensor_address(self, name: str, place: int) -> bool:
        self.places[name] = place
        return True

    def execute_async_v3(self, stream: int) -> bool:
        assert stream == 77  # its own, never the default one
        self.bound.append(dict(self.places))
        count = 4 * self.rows
        read, write = ((ctypes.c_float * count).from_address(self.places[n]) for n in self.places)
        for index in range(count):
            write[index] = read[index] + 1
        return self.works


class Stream:
    cuda_stream = 77

    def __init__(self, *_: Any) -> None:
        self.waited: list[Any] = []

    def wait_stream(self, other: Any) -> None:
        self.waited.append(other)

    def synchronize(self) -> None:
        self.waited.append("all")


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> Engine:
    """TensorRT and CUDA replaced by the CPU."""
    made = Engine()
    severity = SimpleNamespace(ERROR="error", INTERNAL_ERROR="internal")

    class Logger:
        Severity = severity

    runtime = SimpleNamespace(
        engine_header_size=4,
        get_engine_validity=lambda header: (0 if header == b"plan" else 2, 0),
        deserialize_cuda_engine=lambda data: made if data == b"plan and more" else None,
    )
    trt = SimpleNamespace(
        ILogger=Logger,
        Runtime=lambda *_: runtime,
        EngineValidity=SimpleNamespace(INVALID=2),
        CudaGraphStrategy=SimpleNamespace(WHOLE_GRAPH_CAPTURE="whole"),
        DynamicShapesKernelSpecializationStrategy=SimpleNamespace(LAZY=0, EAGER=1, NONE=2),
    )
    monkeypatch.setattr(Logger, "__init__", lambda *_: None)
    monkeypatch.setattr(tensorrt_session, "_library", lambda *_: trt)
    monkeypatch.setattr(tensorrt_session, "_choose_gpu", lambda *_: torch.device("cpu"))
    current = Stream()
    monkeypatch.setattr(torch.cuda, "device", lambda *_: nullcontext())
    monkeypatch.setattr(torch.cuda, "stream", lambda *_: nullcontext())
    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda *_: current)
    monkeypatch.setattr(torch.Tensor, "record_stream", lambda *_: None)
    return made


def output(
    folder: Path, content: bytes = b"plan and more", batches: BatchRange | None = None
) -> Output:
    path = folder / "u.plan"
    path.write_bytes(content)
    shape = (1, 4) if batches is None else (-1, 4)
    tensors = [
        Tensor(name=name, shape=shape, dtype="float32", batches=batches)
        for name in ("sample", "out_sample")
    ]
    document = manifests.Manifest(
        created=entries.now(),
        request={},
        versions={},
        model={"component": "unet", "resolution": "32x32", "batch": 1, "precision": "fp32"},
        sites=[],
        totals={},
        files=[entries.file_entry(path)],
        inputs=tensors[:1],
        outputs=tensors[1:],
        library="tensorrt_rtx 1",
        targets=["sm89"],
        seconds={},
    )
    return Output(path, document)


def test_it_runs_on_the_callers_memory(engine: Engine, tmp_path: Path) -> None:
    session = TensorRTSession(output(tmp_path))
    sample = torch.arange(4.0).reshape(1, 4)
    found = session.run({"sample": sample})["out_sample"]
    assert found.tolist() == [[1, 2, 3, 4]]
    assert engine.bound == [{"sample": sample.data_ptr(), "out_sample": found.data_ptr()}]
    assert engine.cuda_graph_strategy is None
    with pytest.raises(InputError, match="was built for 32x32 px"):
        session.run({"sample": sample.half()})
    assert len(engine.bound) == 1


def test_a_cuda_graph_keeps_its_addresses(engine: Engine, tmp_path: Path) -> None:
    session = TensorRTSession(output(tmp_path), cuda_graph=True)
    assert engine.cuda_graph_strategy == "whole"
    first = session.run({"sample": torch.zeros(1, 4)})["out_sample"]
    second = session.run({"sample": torch.ones(1, 4)})["out_sample"]
    assert (first.tolist(), second.tolist()) == ([[1] * 4], [[2] * 4])  # not one buffer
    assert engine.bound[0] == engine.bound[1]


def test_the_runtime_cache_is_kept(engine: Engine, tmp_path: Path) -> None:
    cache = tmp_path / "kernels"
    session = TensorRTSession(output(tmp_path), runtime_cache=cache)
    assert engine.cached is None
    assert not cache.exists()  # kernels are compiled by the first run
    session.run({"sample": torch.zeros(1, 4)})
    assert cache.read_bytes() == b"kernels"
    TensorRTSession(output(tmp_path), runtime_cache=cache)
    assert engine.cached == b"kernels"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["kernels", "u.plan"]
    lost = TensorRTSession(output(tmp_path), runtime_cache=tmp_path / "no" / "kernels")
    with pytest.warns(UserWarning, match="cannot be kept"):  # the picture matters more
        lost.run({"sample": torch.zeros(1, 4)})


@pytest.mark.parametrize(
    ("asked", "set_to"), [(None, None), ("lazy", 0), ("eager", 1), ("none", 2)]
)
def test_kernels_for_the_batch_that_comes(
    engine: Engine, tmp_path: Path, asked: str | None, set_to: int | None
) -> None:
    open_session(output(tmp_path), How(specialise=asked))
    assert engine.dynamic_shapes_kernel_specialization_strategy == set_to


def test_classic_tensorrt_has_no_such_kernels(
    engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    del engine
    monkeypatch.delattr(Engine, "create_runtime_config")
    with pytest.raises(ConfigError, match="specialise is for TensorRT for RTX"):
        TensorRTSession(output(tmp_path), specialise="lazy")
    with pytest.raises(ConfigError, match="Unknown specialise='always'"):
        How(specialise="always")


def test_refusals(engine: Engine, tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="calls the engine invalid"):
        TensorRTSession(output(tmp_path, b"else"))
    with pytest.raises(EngineError, match="cannot open the engine"):
        TensorRTSession(output(tmp_path, b"plan and less"))
    session = TensorRTSession(output(tmp_path))
    engine.works = False
    with pytest.raises(EngineError, match="The engine failed: it gave no reason") as caught:
        session.run({"sample": torch.zeros(1, 4)})
    assert caught.value.remedy
    engine.shape = (1, 5)
    with pytest.raises(BundleError, match="does not describe its tensors"):
        TensorRTSession(output(tmp_path))


RANGE = BatchRange(1, 3, 3)


def test_a_range_sets_the_shape_before_it_runs(engine: Engine, tmp_path: Path) -> None:
    engine.shape = (-1, 4)
    session = TensorRTSession(output(tmp_path, batches=RANGE))
    for batch in (1, 3, 3, 2):
        sample = torch.full((batch, 4), float(batch))
        found = session.run({"sample": sample})["out_sample"]
        assert torch.equal(found, sample + 1)
    assert engine.shapes == [(1, 4), (3, 4), (2, 4)]  # only where it changes
    with pytest.raises(InputError, match=r"instead of \(1..3, 4\)"):
        session.run({"sample": torch.zeros(4, 4)})
    assert len(engine.bound) == 4
    engine.takes = False
    for _ in range(2):  # also the second time: what was refused is not taken as set
        with pytest.raises(EngineError, match=r"refuses the shape \(1, .* for sample"):
            session.run({"sample": torch.zeros(1, 4)})
    assert len(engine.bound) == 4


def test_a_recording_is_for_one_batch(engine: Engine, tmp_path: Path) -> None:
    engine.shape = (-1, 4)
    session = TensorRTSession(output(tmp_path, batches=RANGE), cuda_graph=True)
    for batch in (2, 2, 3, 2):
        sample = torch.full((batch, 4), float(batch))
        assert torch.equal(session.run({"sample": sample})["out_sample"], sample + 1)
    assert engine.shapes == [(2, 4), (3, 4), (2, 4)]
    assert engine.bound[0] == engine.bound[1]
    assert engine.bound[1] != engine.bound[2]


def test_classic_tensorrt_records_anew_for_another_batch(
    engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """torch records; a recording of another batch is never replayed."""
    recorded: list[int] = []

    class Graph:
        def __init__(self) -> None:
            recorded.append(engine.rows)
            self.made_for = engine.rows

        def replay(self) -> None:
            assert engine.rows == self.made_for
            engine.execute_async_v3(77)

    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "graph", lambda *_, **__: nullcontext())
    monkeypatch.setattr(Engine, "create_execution_context", lambda self, *_: self)
    monkeypatch.delattr(Engine, "create_runtime_config")
    engine.shape = (-1, 4)
    session = TensorRTSession(output(tmp_path, batches=RANGE), cuda_graph=True)
    for batch in (2, 2, 3, 3, 2):
        sample = torch.full((batch, 4), float(batch))
        assert torch.equal(session.run({"sample": sample})["out_sample"], sample + 1)
    assert recorded == [2, 3, 2]


def test_an_engine_of_another_range_is_refused(engine: Engine, tmp_path: Path) -> None:
    engine.shape = (-1, 4)
    engine.profile = ((1, 4), (1, 4), (2, 4))
    with pytest.raises(BundleError, match="states other sizes of sample"):
        TensorRTSession(output(tmp_path, batches=RANGE))
    with pytest.raises(BundleError, match="does not describe its tensors"):
        TensorRTSession(output(tmp_path))
