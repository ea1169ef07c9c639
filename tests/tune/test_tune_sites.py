"""What a plan says of single sites: their names in both dialects, and a sampling of their own."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from graphs import DIALECTS, ImageAttention, capture, image, make_unet, sdpa, unet_inputs
from torch import nn

from todo_compile.errors import ConfigError
from todo_compile.options import PlanOptions
from todo_compile.passes.plan.levels import Levels
from todo_compile.passes.plan.single import numbered
from todo_compile.passes.report import Report

INNER = "up_blocks.1.attentions.0.transformer_blocks.0.attn1"


def changed(report: Report) -> list[Any]:
    return [(s.module, s.factor, s.sampling) for s in report.sites if s.action == "rewritten"]


@pytest.mark.parametrize("dialect", DIALECTS)
def test_one_name_finds_a_site_in_both_dialects(dialect: str) -> None:
    captured = capture(make_unet(), unet_inputs(10, 6), dialect)
    sites = {INNER: (2, 1, "average"), "mid_block.attentions.0.transformer_blocks.0.attn1": (2, 2)}
    report = captured.copy().rewrite(PlanOptions(factors=(), sites=sites))
    assert sorted(changed(report)) == [
        ("unet.mid_block.attentions.0.transformer_blocks.0.attn1", (2, 2), "nearest"),
        (f"unet.{INNER}", (2, 1), "average"),
    ]
    with pytest.raises(ConfigError, match="No attention site is called"):
        captured.copy().rewrite(PlanOptions(factors=(), sites={"p_blocks.1.attn1": (2, 2)}))


class Twice(nn.Module):
    """One module that attends twice."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = ImageAttention(sdpa)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        again = self.inner(x).transpose(1, 2).unflatten(2, x.shape[2:])[:, :3]
        return self.inner(again)


@pytest.mark.parametrize("dialect", DIALECTS)
def test_attentions_of_one_module_are_told_apart(dialect: str) -> None:
    captured = capture(Twice(), (image(6, 4),), dialect)
    every = captured.copy().rewrite(PlanOptions(factors=()))
    paths = [s.module for s in every.sites]
    assert len(paths) == 2
    assert len(set(paths)) == 1
    names = numbered(paths)
    assert names == [f"{paths[0]}#1", f"{paths[0]}#2"]
    for index, name in enumerate(names):
        report = captured.copy().rewrite(PlanOptions(factors=(), sites={name: (2, 2)}))
        assert [s.action == "rewritten" for s in report.sites] == [index == 0, index == 1]
    for wrong in (f"{paths[0]}#3", f"{paths[0]}#0", f"{paths[0]}#-1", "#1", ""):
        with pytest.raises(ConfigError, match="No attention site"):
            captured.copy().rewrite(PlanOptions(factors=(), sites={wrong: (2, 2)}))


def test_a_part_of_a_model_lacks_sites_and_that_is_no_mistake() -> None:
    captured = capture(make_unet(), unet_inputs(10, 6), "dynamo")
    options = PlanOptions(factors=(), sites={"elsewhere.attn1": (2, 2), INNER: (2, 2)})
    report = captured.copy().rewrite(options, levels=lambda areas: Levels(areas, strict=False))
    assert [row[1] for row in changed(report)] == [(2, 2)]


def test_a_sampling_of_its_own_is_part_of_the_options() -> None:
    options = PlanOptions(factors=(), sites={"a": (1, 3), "b": [2, 2, "blend:.50"]})
    assert options.sites == (("a", (1, 3)), ("b", (2, 2, "blend:0.5")))
    assert options.describe()["sites"] == {"a": [1, 3], "b": [2, 2, "blend:0.5"]}
    assert hash(options) == hash(PlanOptions(factors=(), sites=options.sites))
    for wrong in ((2,), (2, 2, "nearst"), (2, 2, "average", 1), 2, "22", (0, 1, "average")):
        with pytest.raises(ConfigError):
            PlanOptions(sites={"a": wrong})
