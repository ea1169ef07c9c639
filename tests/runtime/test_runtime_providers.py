"""onnxruntime's other providers: which there are, what goes with them, and OpenVINO for real.

OpenVINO's package stands in the place of the plain onnxruntime: its test is skipped where that is.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnxruntime as ort
import pytest
import tiny_bundles
import torch

import todo_compile
from todo_compile.errors import ConfigError, EngineError

HERE = ort.get_available_providers()
openvino = pytest.mark.skipif(
    "OpenVINOExecutionProvider" not in HERE, reason="onnxruntime-openvino is not installed"
)


def call(unet: Any) -> torch.Tensor:
    noise = torch.Generator().manual_seed(0)
    sample = torch.randn(2, 4, 16, 16, generator=noise)
    text = torch.randn(2, 77, unet.config.cross_attention_dim, generator=noise)
    return unet(sample, torch.tensor(500), text).sample


def test_the_cpus_own_by_name(unet_file: Path) -> None:
    for name in ("cpu", "CPUExecutionProvider"):
        assert torch.equal(
            call(todo_compile.load(unet_file, provider=name)), call(todo_compile.load(unet_file))
        )


@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        ({"provider": "abacus"}, EngineError, "no provider abacus"),
        ({"provider": "cpu", "device": "cuda"}, ConfigError, "both say where it runs"),
        ({"specialise": "lazy"}, ConfigError, "specialise is for TensorRT engines"),
        ({"cuda_graph": True}, ConfigError, "cuda_graph is for TensorRT engines"),
        ({"runtime_cache": "x"}, ConfigError, "runtime_cache is for TensorRT engines"),
    ],
)
def test_refusals(
    unet_file: Path, options: dict[str, Any], error: type[Exception], says: str
) -> None:
    with pytest.raises(error, match=says) as caught:
        todo_compile.load(unet_file, **options)
    if "abacus" in says:
        assert "It has" in str(getattr(caught.value, "remedy", ""))


@openvino
def test_openvino(model: Path, tmp_path: Path) -> None:
    """The same numbers, from a file of opset 20: it does not know attention of opset 23."""
    plain = tiny_bundles.compiled(model, tmp_path / "unet.onnx", opset=20)
    expected = call(todo_compile.load(plain))
    found = todo_compile.load(plain, provider="openvino", threads=1)
    assert found.session._session.get_providers()[0] == "OpenVINOExecutionProvider"
    torch.testing.assert_close(call(found), expected, rtol=1e-4, atol=1e-4)
