"""Weights' files that an ONNX file names: only what the manifest lists, and so was hashed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import onnx
import pytest

import todo_compile
from todo_compile.bundle.entries import file_entry
from todo_compile.errors import BundleError


def vouched(path: Path, model: Any) -> Path:
    """Write the model with a manifest that has its hash."""
    path.write_bytes(model.SerializeToString())
    manifest = path.with_name(f"{path.name}.json")
    values = json.loads(manifest.read_text())
    values["files"] = [file_entry(path).model_dump()]
    manifest.write_text(json.dumps(values))
    return path


def outside(tensor: Any, location: str | None) -> None:
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    if location is not None:
        tensor.external_data.add(key="location", value=location)


@pytest.fixture
def copy(unet_file: Path, tmp_path: Path) -> Path:
    for suffix in ("", ".json"):
        shutil.copyfile(f"{unet_file}{suffix}", tmp_path / f"unet.onnx{suffix}")
    (tmp_path / "weights.bin").write_bytes(bytes(10**5))
    return tmp_path / "unet.onnx"


@pytest.mark.parametrize(
    "location", ["weights.bin", "../weights.bin", "/etc/passwd", "./unet.onnx", "", None]
)
def test_unlisted_files(copy: Path, location: str | None) -> None:
    model: Any = onnx.load(copy)
    tensor = next(t for t in model.graph.initializer if t.data_type == 1)
    outside(tensor, location)
    with pytest.raises(BundleError, match="its manifest does not list") as caught:
        todo_compile.load(vouched(copy, model))
    assert caught.value.remedy


def test_in_the_branch_of_a_node(copy: Path) -> None:
    model: Any = onnx.load(copy)
    tensor = onnx.helper.make_tensor("w", 1, [2], [0.0, 0.0])
    constant = onnx.helper.make_node("Constant", [], ["c"], value=tensor)
    outside(constant.attribute[0].t, "weights.bin")
    branch = onnx.helper.make_graph([constant], "branch", [], [])
    model.graph.node.append(
        onnx.helper.make_node("If", ["x"], ["y"], then_branch=branch, else_branch=branch)
    )
    with pytest.raises(BundleError, match=r"weights.bin.*does not list"):
        todo_compile.load(vouched(copy, model))


def test_no_onnx_at_all(copy: Path) -> None:
    class Junk:
        def SerializeToString(self) -> bytes:
            return b"\xff" * 1000

    with pytest.raises(BundleError, match="cannot be read as ONNX"):
        todo_compile.load(vouched(copy, Junk()))
