"""Where plans go: drawing, compiling, torch.compile; the same factors everywhere, or a refusal."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import said
from tune_helpers import Small, with_phases

import todo_compile
from todo_compile import models
from todo_compile.bundle.plan import TunedPlan
from todo_compile.cli.app import main
from todo_compile.errors import ConfigError
from todo_compile.models.registry import DEMO
from todo_compile.runtime.torch_pipelines import torch_pipeline
from todo_compile.tuning.drawing import Pair

DOWN, UP = (
    f"{block}.attentions.0.transformer_blocks.0.attn1" for block in ("down_blocks.0", "up_blocks.2")
)
FIRST = {DOWN: "nearest:4", UP: "average:2"}


@pytest.fixture(scope="module")
def phased(small: Small) -> TunedPlan:
    return with_phases(small.plan, (0.0, FIRST), (0.5, {UP: "nearest:4x2"}))


@pytest.fixture(scope="module")
def single(small: Small) -> TunedPlan:
    return with_phases(small.plan, (0.0, FIRST))


def test_generate_draws_the_plan(
    small: Small, phased: TunedPlan, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from PIL import Image

    studio = small.drawer
    (expected, _) = studio.draw(phased.phases, [Pair("a cat", 5), Pair("a frog", 6)])
    plan, out = phased.save(tmp_path / "plan.json"), tmp_path / "cat.png"
    command = ["generate", "--model", str(DEMO), "--prompt", "a cat", "--out", str(out)]
    command += ["--plan", str(plan), "--guidance", "3", "--seed", "5", "--steps", "4"]
    assert main([*command, "--res", "64"]) == 0
    drawn = np.asarray(Image.open(out), float) / 255
    assert np.abs(drawn - expected).max() < 2 / 255
    out.unlink()
    capsys.readouterr()
    assert main([*command, "--res", "128"]) == 2
    assert "tuned for size 64x64, and this is 128x128" in said(capsys)
    other = with_phases(phased, (0.0, {})).model_copy(update={"weights": "sha256:0"})
    other.save(plan)
    assert main([*command, "--res", "64"]) == 2
    assert "other weights" in said(capsys)
    assert not out.exists()


def factors(report: Any) -> dict[str, Any]:
    return {
        s.module.removeprefix("unet."): (s.factor, s.sampling)
        for s in report.sites
        if s.action == "rewritten"
    }


def test_both_dialects_give_the_same_factors(small: Small, phased: TunedPlan) -> None:
    studio = small.drawer
    exported = [factors(studio.captured.session(options)[1]) for options in phased.options]
    assert exported[0] == {DOWN: ((4, 4), "nearest"), UP: ((2, 2), "average")}
    assert exported[1] == {UP: ((2, 4), "nearest")}
    pipe = torch_pipeline(models.resolve("demo"), precision="fp32")
    pipe.set_progress_bar_config(disable=True)
    todo_compile.clear_reports()
    todo_compile.accelerate(pipe, plan=phased, res=64, vae=False, inner="eager")
    drawn = pipe(
        ["a cat", "a frog"], height=64, width=64, num_inference_steps=4, guidance_scale=3.0,
        generator=[torch.Generator().manual_seed(seed) for seed in (5, 6)], output_type="np",
    ).images  # fmt: skip
    assert [factors(report) for report in todo_compile.reports()] == exported
    expected = studio.draw(phased.phases, [Pair("a cat", 5), Pair("a frog", 6)])
    np.testing.assert_allclose(drawn, np.stack(expected), atol=1e-3)
    todo_compile.restore(pipe)
    with pytest.raises(ConfigError, match="size 64x64, and this is 128x128"):
        todo_compile.accelerate(pipe, plan=phased, res=128)


def test_torch_compile_holds_a_graph_to_the_plan(single: TunedPlan, phased: TunedPlan) -> None:
    from graphs import ImageAttention, image

    module, x = ImageAttention(), image(6, 4, channels=3)
    for options, words in (
        ({"plan": phased}, "2 phases, and torch.compile has one graph"),
        ({"plan": single, "factors": 2}, "plan and factors both say"),
        ({"plan": phased, "phase": 2}, "no phase 2"),
        ({"phase": 0}, "phase needs a plan"),
        ({"plan": single}, "sites of the plan is in this graph"),
    ):
        torch.compiler.reset()
        compiled = torch.compile(
            module, backend="todo_inductor", options={"inner": "eager", **options}
        )
        with pytest.raises(Exception, match=words):
            compiled(x)
