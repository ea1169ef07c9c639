"""Regions without autocast are part of the graph around them; others stay."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import todo_compile
from todo_compile.capture.trace import capture
from todo_compile.options import PlanOptions


class Net(nn.Module):
    """Attention over a picture, part of it in a region, and a complex table in another."""

    def __init__(self, enabled: bool = False, device: str = "cuda") -> None:
        super().__init__()
        torch.manual_seed(0)
        self.enabled, self.device = enabled, device
        self.stem, self.mix = nn.Conv2d(3, 8, 3, padding=1), nn.Linear(8, 8)
        self.eval()

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.stem(x).flatten(2).mT
        with torch.autocast(self.device, torch.bfloat16, enabled=self.enabled):
            angles = torch.outer(torch.arange(x.shape[1]).float(), torch.linspace(0.1, 1, 4))
            table = torch.polar(torch.ones_like(angles), angles)
            with torch.autocast("cpu", enabled=False):
                q = self.mix(x)
            z = torch.view_as_complex(q.float().unflatten(-1, (4, 2))) * table
            k = torch.view_as_real(z).flatten(-2)
            out = F.scaled_dot_product_attention(k[:, None], k[:, None], k[:, None])
        return out, k + 1


def called(program: Any) -> list[str]:
    names = [str(getattr(n.target, "__name__", "")) for n in program.graph.nodes]
    return [name for name in names if name == "wrap_with_autocast"]


@pytest.fixture
def x() -> Tensor:
    return torch.randn(1, 3, 4, 6, generator=torch.Generator().manual_seed(1))


def test_regions_that_switch_autocast_off_are_written_out(x: Tensor) -> None:
    program = capture(Net(), (x,))
    assert called(program) == []
    assert not any(n.op == "get_attr" for n in program.graph.nodes)
    values = [n.meta.get("val") for n in program.graph.nodes]
    assert not any(isinstance(value, Tensor) and value.is_complex() for value in values)
    with torch.no_grad():
        for got, expected in zip(program.module()(x), Net()(x), strict=True):
            torch.testing.assert_close(got, expected, rtol=1e-6, atol=1e-6)


def test_regions_that_switch_it_on_stay(x: Tensor) -> None:
    program = capture(Net(enabled=True, device="cpu"), (x,))
    assert called(program) == ["wrap_with_autocast"]


def test_a_module_that_may_run_under_autocast_keeps_them(x: Tensor) -> None:
    program = capture(Net(), (x,), regions=True)
    assert called(program) == ["wrap_with_autocast"]
    with torch.no_grad():
        torch.testing.assert_close(program.module()(x), Net()(x))


def test_attention_in_a_region_reaches_onnx(x: Tensor, tmp_path: Path) -> None:
    options = PlanOptions(factors=((2, 2),))
    info = todo_compile.compile(Net(), (x,), out=tmp_path / "x.onnx", options=options)
    assert info is not None
    found = todo_compile.load(tmp_path / "x.onnx")(x)
    with torch.no_grad():
        dense = Net()(x)
    torch.testing.assert_close(found[1], dense[1], rtol=1e-5, atol=1e-5)
    assert (found[0] - dense[0]).abs().max() > 1e-3, "it was downsampled"
