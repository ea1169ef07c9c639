"""Models whose repeated blocks are traced once have the graph, and the plan, of a plain trace."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from same_graph import lines
from torch import Tensor, nn
from torch.export import ExportedProgram

from todo_compile import models
from todo_compile.build.planning import plan_source
from todo_compile.capture.inputs import example_inputs
from todo_compile.capture.trace import capture, capture_quickly
from todo_compile.options import PlanOptions
from todo_compile.passes.pipeline import rewrite_graph

slow = pytest.mark.slow


@pytest.mark.parametrize(
    ("name", "size", "fewer"),
    [
        ("demo", "512", 0.8),
        ("sd15", "2048", 0.7),
        pytest.param("sdxl", "2048", 0.5, marks=slow),
        pytest.param("sdxl-refiner", "1024", 0.5, marks=slow),
        pytest.param("sd3", "1024", 0.4, marks=slow),
        pytest.param("pixart", "1024", 0.4, marks=slow),
        pytest.param("flux", "1024", 0.3, marks=slow),
        pytest.param("qwen-image", "1024", 0.2, marks=slow),
        pytest.param("if", "256", 0.7, marks=slow),
        pytest.param("kandinsky22", "1024", 0.7, marks=slow),
        pytest.param("karlo", "256", 0.7, marks=slow),
    ],
)
def test_models(name: str, size: str, fewer: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Node by node, with fewer linear layers called than there are in the graph."""
    calls: list[nn.Module] = []
    forward = nn.Linear.forward

    def counted(layer: nn.Linear, x: Tensor) -> Tensor:
        calls.append(layer)
        return forward(layer, x)

    def graph(trace: Callable[..., ExportedProgram | None]) -> tuple[int, ExportedProgram]:
        model = models.load(models.resolve_component(name, "unet"), dtype=torch.float16, fake=True)
        example = example_inputs(model, models.Resolution.parse(size))
        assert model.fake is not None
        calls.clear()
        with model.fake, monkeypatch.context() as patch:
            patch.setattr(nn.Linear, "forward", counted)
            program = trace(example.wrapper, example.args)
        assert program is not None
        return len(calls), program

    few, quick = graph(capture_quickly)
    many, plain = graph(capture)
    assert lines(quick) == lines(plain)
    assert few < fewer * many
    found, wanted = (rewrite_graph(p.graph_module).to_dict() for p in (quick, plain))
    assert found["sites"] == wanted["sites"]
    assert found["totals"] == wanted["totals"]


def test_a_plan_is_the_same_without(monkeypatch: pytest.MonkeyPatch) -> None:
    source, size = models.resolve_component("demo", "unet"), models.Resolution.parse("512")

    def plan() -> Any:
        report = plan_source(source, size, batch=2, precision="fp16", options=PlanOptions())
        return report.to_dict()["sites"], report.totals

    quick = plan()
    monkeypatch.setattr("todo_compile.capture.trace.capture_quickly", lambda *_: None)
    assert plan() == quick
