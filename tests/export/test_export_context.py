"""The ONNX file that stands for an engine of TensorRT for RTX, by the rules of its provider.

No GPU is here, and so no provider that loads the engine: onnxruntime reads the file, finds the node
right by its own schema, and says that none of its providers has this operator.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx
import onnxruntime as ort
import pytest
import torch
from export_helpers import TinyNet

import todo_compile
from todo_compile.bundle.manifest import check_files
from todo_compile.export._build_log import Memory
from todo_compile.export.context import write_context
from todo_compile.export.tensorrt import EngineInfo, TensorSpec


def info(path: Path, *targets: str) -> EngineInfo:
    """An engine of these tensors, one with a range of batches."""
    return EngineInfo(
        path=path,
        library="tensorrt_rtx",
        version="1.7.1",
        targets=targets,
        bytes=1,
        memory=Memory(None, None, None),
        seconds={},
        peak_rss_bytes=None,
        inputs=(
            TensorSpec("sample", (-1, 4, 8, 8), "float16"),
            TensorSpec("timestep", (), "int64"),
        ),
        outputs=(TensorSpec("out_sample", (-1, 4, 8, 8), "bfloat16"),),
    )


def test_one_node_by_the_providers_rules(tmp_path: Path) -> None:
    path = tmp_path / "unet.plan.onnx"
    write_context(info(tmp_path / "unet.plan", "sm89"), path)
    model = onnx.load(path)
    (node,) = model.graph.node
    assert (node.op_type, node.domain, node.name) == ("EPContext", "com.microsoft", "unet")
    found = {one.name: onnx.helper.get_attribute_value(one) for one in node.attribute}
    assert found == {
        "main_context": 0,
        "embed_mode": 0,
        "ep_cache_context": b"unet.plan",
        "ep_sdk_version": b"1.7.1",
        "partition_name": b"unet",
        "hardware_architecture": b"89",
    }
    assert list(node.input) == [i.name for i in model.graph.input] == ["sample", "timestep"]
    sample, timestep = model.graph.input
    sizes = [d.dim_param or d.dim_value for d in sample.type.tensor_type.shape.dim]
    assert sizes == ["batch", 4, 8, 8]
    assert timestep.type.tensor_type.HasField("shape")
    assert not timestep.type.tensor_type.shape.dim
    write_context(info(tmp_path / "unet.plan", "sm89", "sm120"), path)
    (node,) = onnx.load(path).graph.node
    assert "hardware_architecture" not in {one.name for one in node.attribute}


def test_onnxruntime_reads_it(tmp_path: Path) -> None:
    """A wrong type or a missing attribute would be an invalid graph, not a missing operator."""
    path = tmp_path / "unet.plan.onnx"
    write_context(info(tmp_path / "unet.plan", "sm89"), path)
    with pytest.raises(Exception, match=r"EPContext.*") as caught:
        ort.InferenceSession(str(path))
    assert "NOT_IMPLEMENTED" in str(caught.value) or "NotImplemented" in type(caught.value).__name__


def test_every_engine_has_one(tmp_path: Path) -> None:
    """It is part of the output: listed and hashed, replaced with it."""
    out = tmp_path / "net.plan"
    module, args = TinyNet().eval(), (torch.randn(1, 4, 8, 8),)
    result: Any = todo_compile.compile(module, args, out=out)
    assert [f.name for f in result.manifest.files] == ["net.plan", "net.plan.onnx"]
    assert check_files(result.manifest, tmp_path) == []
    model = onnx.load(tmp_path / "net.plan.onnx")
    assert [i.name for i in model.graph.input] == [t.name for t in result.manifest.inputs]
    assert [o.name for o in model.graph.output] == [t.name for t in result.manifest.outputs]
    (tmp_path / "net.plan.onnx").unlink()
    again: Any = todo_compile.compile(module, args, out=out)
    assert again.reasons == ("net.plan.onnx is missing",)
    assert (tmp_path / "net.plan.onnx").exists()
