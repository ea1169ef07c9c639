"""Attention as onnxruntime's CPU provider computes it best: same numbers, and only where sure."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from graphs import make_unet, unet_inputs
from onnx import TensorProto, helper
from torch import Tensor, nn

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))

from race_parts.clock import sample

import todo_compile
from todo_compile.options import PlanOptions
from todo_compile.runtime import onnx_session
from todo_compile.runtime.fused import fuse_attention


def attention(
    *,
    kind: int = TensorProto.FLOAT,
    heads: int | str = 2,
    masked: bool = False,
    wide: int = 4,
    swapped: bool = True,
    also: bool = False,
    **attributes: Any,
) -> onnx.ModelProto:
    """(B, N, 2, 4) queries and (B, M, 2, ·) keys and values → attention, in exported style."""
    shapes = {
        "q": ["b", 6, heads, 4] if swapped else ["b", heads, 6, 4],
        "k": ["b", 5, heads, 4] if swapped else ["b", heads, 5, 4],
        "v": ["b", 5, heads, wide] if swapped else ["b", heads, 5, wide],
    }
    names = list(shapes)
    nodes: list[Any] = []
    stated: list[Any] = []
    if swapped:
        nodes = [helper.make_node("Transpose", [n], [f"{n}t"], perm=[0, 2, 1, 3]) for n in names]
        stated = [
            helper.make_tensor_value_info(f"{n}t", kind, [s[0], s[2], s[1], s[3]])
            for n, s in shapes.items()
        ]
        names = [f"{n}t" for n in names]
    inputs = [helper.make_tensor_value_info(n, kind, s) for n, s in shapes.items()]
    if masked:
        names.append("m")
        inputs.append(helper.make_tensor_value_info("m", kind, [6, 5]))
    nodes.append(helper.make_node("Attention", names, ["a"], name="site", **attributes))
    outputs = [helper.make_tensor_value_info("o", kind, ["b", 6, heads, wide])]
    nodes.append(helper.make_node("Transpose", ["a"], ["o"], perm=[0, 2, 1, 3]))
    if also:
        outputs.append(helper.make_tensor_value_info("a", kind, ["b", heads, 6, wide]))
    graph = helper.make_graph(nodes, "g", inputs, outputs, value_info=stated)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=10)


def run(model: onnx.ModelProto) -> list[Any]:
    """All outputs, for seeded inputs."""
    generator = np.random.default_rng(0)
    feeds = {
        one.name: 2 * generator.standard_normal(
            [size.dim_value or 3 for size in one.type.tensor_type.shape.dim]
        ).astype(helper.tensor_dtype_to_np_dtype(one.type.tensor_type.elem_type))
        for one in model.graph.input
    }  # fmt: skip
    session: Any = onnxruntime.InferenceSession(model.SerializeToString())
    return session.run(None, feeds)


def kinds(model: onnx.ModelProto) -> list[str]:
    return [node.op_type for node in model.graph.node]


@pytest.mark.parametrize(
    "given",
    [{}, {"scale": 0.2}, {"wide": 6}, {"swapped": False}, {"also": True}, {"is_causal": 0}],
    ids=str,
)
def test_same_numbers(given: dict[str, Any]) -> None:
    """Any scale, wider values, heads in front (as rotated keys have them), a second reader."""
    model = attention(**given)
    expected = run(model)
    assert fuse_attention(model) == 1
    assert "Attention" not in kinds(model)
    assert kinds(model).count("MultiHeadAttention") == 1
    onnx.checker.check_model(model)
    for one, other in zip(run(model), expected, strict=True):
        np.testing.assert_allclose(one, other, atol=2e-6)
    assert fuse_attention(model) == 0, "a second time changes nothing"


@pytest.mark.parametrize(
    "given",
    [
        {"masked": True},
        {"is_causal": 1},
        {"softcap": 5.0},
        {"qk_matmul_output_mode": 1},
        {"kind": TensorProto.FLOAT16},
        {"heads": "h"},
        {"softmax_precision": 1},
    ],
    ids=str,
)
def test_left_alone(given: dict[str, Any]) -> None:
    model = attention(**given)
    before = model.SerializeToString()
    assert fuse_attention(model) == 0
    assert model.SerializeToString() == before


def test_loaded_files_run_fused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Self- and cross-attention of a UNet, weights in a file of their own; the file stays."""
    monkeypatch.chdir(tmp_path)  # a relative path finds its weights too
    unet, inputs = make_unet(), unet_inputs(8, 8)
    monkeypatch.setattr("todo_compile.export.onnx.EXTERNAL_OVER", 0)
    path = Path("unet.onnx")
    todo_compile.compile(unet, inputs, out=path, options=PlanOptions.create(factors=2))
    assert Path("unet.onnx.data").exists()
    before = path.read_bytes()
    plain: Any = onnxruntime.InferenceSession(str(path))
    feeds = dict(zip([one.name for one in plain.get_inputs()], inputs, strict=True))
    expected = plain.run(None, {name: value.numpy() for name, value in feeds.items()})[0]
    fused: list[int] = []
    monkeypatch.setattr(
        onnx_session,
        "fuse_attention",
        lambda model: fused.append(fuse_attention(model)) or fused[-1],
    )
    loaded = todo_compile.load(path, device="cpu", threads=1)
    np.testing.assert_allclose(loaded(*inputs).numpy(), expected, atol=1e-5)
    assert fused == [14]
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("device", "provider", "fused"),
    [
        ("cpu", None, True),
        ("cpu", "CPUExecutionProvider", True),
        ("cpu", "OpenVINOExecutionProvider", False),
        ("cuda", None, False),
    ],
)
def test_only_for_the_provider_that_has_it(device: str, provider: str | None, fused: bool) -> None:
    assert onnx_session._on_own_cpu(torch.device(device), provider) is fused


class Attend(nn.Module):
    """Attention of 64 × 64 tokens to themselves."""

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.flatten(2).transpose(1, 2)[:, None]
        return nn.functional.scaled_dot_product_attention(tokens, tokens, tokens)


def test_scores_are_never_held(tmp_path: Path) -> None:
    """4096² of them are 67 MB in fp32; a call takes less, and plain onnxruntime more."""
    x = torch.randn(1, 8, 64, 64, generator=torch.Generator().manual_seed(0))
    path = tmp_path / "x.onnx"
    todo_compile.compile(Attend(), (x,), out=path)
    loaded = todo_compile.load(path, device="cpu", threads=1)
    plain: Any = onnxruntime.InferenceSession(str(path))
    feeds = {plain.get_inputs()[0].name: x.numpy()}
    ours = sample(lambda: loaded(x), "cpu").peak_bytes
    theirs = sample(lambda: plain.run(None, feeds), "cpu").peak_bytes
    assert ours is not None and theirs is not None
    assert ours < 20e6
    assert theirs > 60e6
