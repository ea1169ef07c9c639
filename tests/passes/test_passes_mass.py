"""Joint attention keeps the image's weight against the text."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
import torch
import torch.nn.functional as F
from graphs import DIALECTS, assert_close, capture
from oracle import Pair, attention, mass, subsample
from torch import nn

from todo_compile.capture.trace import constants_of
from todo_compile.export.onnx import export_onnx
from todo_compile.options import PlanOptions
from todo_compile.passes.pipeline import rewrite_graph
from todo_compile.progress import SilentProgress

TEXT = 5


class Joint(nn.Module):
    """Joint attention over text and the pixels of an image, in one of its spellings."""

    mask: torch.Tensor | None

    def __init__(self, spelling: str, mask: torch.Tensor | None = None, *, first: bool = True):
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(8, 8, 3, padding=1)  # what makes a grid of the last two axes
        off_centre = torch.arange(9).view(3, 3) != 4
        self.conv.weight.data[..., off_centre] = 0  # equal tokens stay equal
        self.to_q, self.to_k, self.to_v = (nn.Linear(8, 8) for _ in range(3))
        self.spelling, self.first = spelling, first
        self.register_buffer("mask", mask)

    def forward(self, image: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
        tokens = self.conv(image).flatten(2).transpose(1, 2)
        parts = (text, tokens) if self.first else (tokens, text)
        x = torch.cat(parts, dim=1)
        q, k, v = (p(x).unflatten(-1, (2, 4)).transpose(1, 2) for p in self.projections())
        if self.spelling == "sdpa":
            return F.scaled_dot_product_attention(q, k, v, attn_mask=self.mask)
        scores = q @ k.transpose(-1, -2) * 0.5
        if self.mask is not None:
            scores = scores + self.mask
        return scores.softmax(-1) @ v

    def projections(self) -> tuple[nn.Module, ...]:
        return self.to_q, self.to_k, self.to_v

    def oracle(
        self, image: torch.Tensor, text: torch.Tensor, factors: Pair, sampling: str, weigh: bool
    ) -> torch.Tensor:
        grid = tuple(image.shape[-2:])
        tokens = self.conv(image).flatten(2).mT
        x = torch.cat([text, tokens] if self.first else [tokens, text], 1)
        q, k, v = (p(x).unflatten(-1, (2, 4)).transpose(1, 2) for p in self.projections())
        before, after = (TEXT, 0) if self.first else (0, TEXT)
        k, v = (subsample(t, 2, grid, factors, sampling, before) for t in (k, v))
        bias = mass(grid, factors, before, after)
        if not weigh:  # whole cells weigh as one key, smaller ones less
            bias[before : bias.numel() - after] -= math.log(factors[0] * factors[1])
        if self.mask is not None:
            kept = self.mask
            if kept.shape[-1] > 1:
                kept = subsample(kept, kept.dim() - 1, grid, factors, sampling, before)
            bias = kept + bias
        return attention(q, k, v, bias=bias)


def inputs(rows: int, columns: int) -> list[torch.Tensor]:
    source = torch.Generator().manual_seed(1)
    return [
        torch.randn(2, 8, rows, columns, generator=source),
        torch.randn(2, TEXT, 8, generator=source),
    ]


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("spelling", ["sdpa", "product"])
@pytest.mark.parametrize(
    ("grid", "factors", "first"),
    [((6, 4), (2, 2), True), ((7, 5), (3, 2), False), ((3, 4), (3, 3), True)],
)
def test_against_the_oracle(
    dialect: str, spelling: str, grid: Pair, factors: Pair, first: bool
) -> None:
    model, given = Joint(spelling, first=first).eval(), inputs(*grid)
    captured = capture(model, given, dialect)
    for sampling in ("nearest", "average"):
        again = captured.copy()
        report = again.rewrite(PlanOptions(factors=(factors,), sampling=sampling))
        (site,) = report.sites
        assert (site.kind, site.action) == ("joint", "rewritten"), site.reason
        assert site.sampling == f"{sampling}, mass kept"
        with torch.no_grad():
            expected = model.oracle(*given, factors, sampling, weigh=True)
            without = model.oracle(*given, factors, sampling, weigh=False)
        assert not torch.allclose(expected, without, atol=1e-3), "the weights must matter here"
        assert_close(again.run(), expected)


@pytest.mark.parametrize("spelling", ["sdpa", "product"])
def test_equal_tokens_in_every_cell_give_the_dense_result(spelling: str) -> None:
    """The claim of the formula, with no oracle of ours between."""
    model = Joint(spelling).eval()
    image, text = inputs(2, 3)
    given = [image.repeat_interleave(2, 2).repeat_interleave(2, 3)[:, :, :3, :5], text]
    captured = capture(model, given, "export")
    captured.rewrite(PlanOptions(factors=((2, 2),)))
    with torch.no_grad():
        assert_close(captured.run(), model(*given))
    off = capture(model, given, "export")
    off.rewrite(PlanOptions(factors=((2, 2),), keep_mass=False))
    with torch.no_grad():
        assert_close(off.run(), model.oracle(*given, (2, 2), "nearest", weigh=False))
        assert not torch.allclose(off.run()[0], model(*given), atol=1e-3)


@pytest.mark.parametrize("spelling", ["sdpa", "product"])
@pytest.mark.parametrize("keys", [TEXT + 24, 1])
def test_on_top_of_a_mask(spelling: str, keys: int) -> None:
    mask = torch.randn(TEXT + 24, keys, generator=torch.Generator().manual_seed(3))
    model, given = Joint(spelling, mask).eval(), inputs(6, 4)
    captured = capture(model, given, "export")
    (site,) = captured.rewrite(PlanOptions(factors=((2, 2),))).sites
    assert site.action == "rewritten", site.reason
    with torch.no_grad():
        assert_close(captured.run(), model.oracle(*given, (2, 2), "nearest", weigh=True))


@pytest.mark.parametrize("opset", [18, 23])
@pytest.mark.parametrize("mask", [None, (TEXT + 24, TEXT + 24)])
def test_in_onnxruntime(tmp_path: Path, opset: int, mask: Pair | None) -> None:
    source = torch.Generator().manual_seed(3)
    bias = None if mask is None else torch.randn(mask, generator=source)
    model, given = Joint("sdpa", bias).eval(), inputs(6, 4)
    program = torch.export.export(model, tuple(given), strict=False)
    rewrite_graph(
        program.graph_module,
        PlanOptions(factors=((2, 2),)),
        explicit_casts=True,
        constants=constants_of(program),
    )
    path = tmp_path / "joint.onnx"
    export_onnx(
        program,
        path,
        opset=opset,
        input_names=["image", "text"],
        output_names=["out"],
        progress=SilentProgress(),
    )
    session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    feeds = dict(zip(("image", "text"), (t.numpy() for t in given), strict=True))
    with torch.no_grad():
        expected = model.oracle(*given, (2, 2), "nearest", weigh=True)
    np.testing.assert_allclose(session.run(None, feeds)[0], expected.numpy(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("keys", [1, TEXT + 24])
def test_on_top_of_a_boolean_mask_that_shows_every_image_key(dialect: str, keys: int) -> None:
    mask = torch.ones(TEXT + 24, keys, dtype=torch.bool)
    mask[:, : TEXT - 1 if keys > 1 else 0] = False  # padded text
    model, given = Joint("sdpa", mask).eval(), inputs(6, 4)
    captured = capture(model, given, dialect)
    (site,) = captured.rewrite(PlanOptions(factors=((2, 2),))).sites
    assert site.action == "rewritten", site.reason
    model.mask = torch.zeros(mask.shape).masked_fill(~mask, -math.inf)
    with torch.no_grad():
        assert_close(captured.run(), model.oracle(*given, (2, 2), "nearest", weigh=True))


@pytest.mark.parametrize("spelling", ["sdpa", "product"])
def test_half_precision_keeps_its_type_and_a_second_pass_does_nothing(spelling: str) -> None:
    model = Joint(spelling).eval().bfloat16()
    captured = capture(model, [t.bfloat16() for t in inputs(6, 4)], "export")
    options = PlanOptions(factors=((2, 2),))
    assert captured.rewrite(options).rewritten == 1
    assert captured.run()[0].dtype is torch.bfloat16
    signature = captured.signature()
    assert captured.rewrite(options).rewritten == 0
    assert captured.signature() == signature
