"""diffusers' video transformers: what is proved of each, and its numbers."""

from __future__ import annotations

import warnings
from functools import cache
from pathlib import Path
from typing import Any

import oracle
import pytest
import torch
from graphs import DIALECTS, Captured, capture
from video_models import FRAMES, GRID, TEXT, make

import todo_compile
from todo_compile.errors import ExportError
from todo_compile.options import PlanOptions

HALF = PlanOptions(factors=((2, 2),))
TOKENS = FRAMES * GRID[0] * GRID[1]
KEYS = (FRAMES, *GRID)


@cache
def captured(name: str, dialect: str) -> tuple[Any, Captured]:
    model, inputs = make(name)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return (model, inputs), capture(model, inputs, dialect)


WHERE: dict[str, dict[int, int]] = {
    "wan": {TOKENS: 0},
    "hunyuan_video": {TOKENS + TEXT: 0},
    "cogvideox": {TOKENS + TEXT: TEXT},
    "cogvideox_15": {TOKENS + TEXT: TEXT},
    "allegro": {TOKENS: 0},
    "ltx": {TOKENS: 0},
}
"""Family → number of keys → of those the ones before the video's."""


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("name", WHERE)
def test_videos_are_pooled_within_their_frames(name: str, dialect: str) -> None:
    (model, inputs), graph = captured(name, dialect)
    grids = {"token_grids": {TOKENS: KEYS}} if name == "ltx" else {}
    report = graph.rewrite(HALF, **grids)
    found = [s for s in report.sites if s.key_tokens in WHERE[name]]
    assert found
    assert all((s.action, s.frames, s.grid) == ("rewritten", FRAMES, GRID) for s in found), [
        s.reason for s in found
    ]
    assert {s.action for s in report.sites if s not in found} <= {"dense", "refused"}
    segments = {keys: (before, KEYS, (2, 2)) for keys, before in WHERE[name].items()}
    with torch.no_grad():
        dense = model(*inputs)
        with oracle.pooled_fused_attention(segments, "nearest") as seen:
            truth = model(*inputs)
    assert len(seen) == len(found)
    assert (dense - truth).abs().max() > 1e-3, "pooling must matter"
    got = graph.run()[0]
    assert (got - truth).abs().max() <= 1e-5 * truth.abs().max()


class _Numbers(torch.nn.Module):
    """HunyuanVideo with its mask as numbers, 0 and 1, of which it makes the length of a text."""

    def __init__(self, model: torch.nn.Module, bounded: bool) -> None:
        super().__init__()
        self.model, self.bounded = model, bounded

    def forward(self, *tensors: torch.Tensor) -> torch.Tensor:
        given = list(tensors)
        mask = given[3] if self.bounded else given[3] * 2 - 1
        given[3] = mask.to(torch.float32) if self.bounded else mask
        return self.model(*given)


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("bounded", [True, False])
def test_lengths_that_are_sums_of_numbers(dialect: str, bounded: bool) -> None:
    """Of a boolean mask no sum is below 0; of any numbers one may be, and hide the video's keys."""
    model, inputs = make("hunyuan_video")
    mask = inputs[3] if bounded else inputs[3].to(torch.float32)
    given = (*inputs[:3], mask, *inputs[4:])
    sites = capture(_Numbers(model, bounded), given, dialect).rewrite(HALF).sites
    found = [s.action for s in sites if s.key_tokens == TOKENS + TEXT]
    assert found == ["rewritten" if bounded else "refused"] * 2


@pytest.mark.parametrize("dialect", DIALECTS)
def test_frames_and_pictures_of_latte(dialect: str) -> None:
    _, graph = captured("latte", dialect)
    sites = graph.rewrite(HALF).sites
    pictures = [s for s in sites if s.key_tokens == 16]
    times = [s for s in sites if s.key_tokens == FRAMES]
    assert [(s.action, s.frames, s.grid) for s in pictures] == [("rewritten", 1, (4, 4))]
    assert times
    assert all("these are frames, or points in time" in s.reason for s in times)


@pytest.mark.parametrize("dialect", DIALECTS)
def test_mochi_leaves_out_words_by_data(dialect: str) -> None:
    _, graph = captured("mochi", dialect)
    joint = [s for s in graph.rewrite(HALF).sites if s.kind == "joint"]
    assert len(joint) == 2
    assert all("the text beside the image is dynamic" in s.reason for s in joint)


@pytest.mark.parametrize("name", ["cogvideox", "wan", "hunyuan_video"])
def test_videos_in_onnxruntime(name: str, tmp_path: Path) -> None:
    model, inputs = make(name)
    todo_compile.compile(model, inputs, out=tmp_path / "x.onnx", options=HALF)
    segments = {keys: (before, KEYS, (2, 2)) for keys, before in WHERE[name].items()}
    with torch.no_grad(), oracle.pooled_fused_attention(segments, "nearest"):
        truth = model(*inputs)
    got = todo_compile.load(tmp_path / "x.onnx")(*inputs)
    assert (got - truth).abs().max() <= 1e-5 * truth.abs().max()


def test_words_left_out_by_data_have_no_onnx_form(tmp_path: Path) -> None:
    model, inputs = make("mochi")
    with pytest.raises(ExportError, match="has no ONNX form"):
        todo_compile.compile(model, inputs, out=tmp_path / "x.onnx", options=PlanOptions())
    assert not list(tmp_path.iterdir())
