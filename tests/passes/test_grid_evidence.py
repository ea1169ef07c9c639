"""What proves that two axes are an image's rows and columns, and what only looks like it."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import oracle
import pytest
import torch
import torch.nn.functional as F
from graphs import DIALECTS, ImageAttention, assert_close, capture, only_site
from torch import nn

import todo_compile
from todo_compile.errors import ConfigError
from todo_compile.options import PlanOptions
from todo_compile.passes.graph import GraphContext
from todo_compile.passes.operators.table import TABLE, effect_of
from todo_compile.passes.report import Report

HALF = PlanOptions(factors=((2, 2),))
SIDES = (8, 12)


class Net(ImageAttention):
    """Attention over all positions of what `make` makes of the input, (B, 8, rows, columns)."""

    def __init__(self, make: Callable[[Any, torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        conv = nn.Conv2d
        self.one, self.last = conv(8, 8, 1), conv(8, 8, 3, padding=1)
        self.square, self.row, self.column = (
            conv(8, 8, 3, padding=1), conv(8, 8, (1, 3), padding=(0, 1)),
            conv(8, 8, (3, 1), padding=(1, 0)),
        )  # fmt: skip
        self.dilated = conv(8, 8, 3, padding=2, dilation=2)
        self.patches, self.strided = conv(8, 8, 2, stride=2), conv(8, 8, 1, stride=2)
        self.whole = conv(8, 8, SIDES)
        self.words = conv(1, 8, (3, 8), padding=(1, 0))
        self.spread = nn.ConvTranspose2d(8, 8, 2, stride=2)
        self.flow, self.maps = conv(8, 2, 3, padding=1), conv(2, 2, 3, padding=1)
        self.narrow, self.wide = conv(32, 8, 1), conv(8, 32, 1)
        self.make = make
        self.eval()

    def tokens(self, image: torch.Tensor) -> torch.Tensor:
        return self.make(self, image).flatten(2).mT


def plane(rows: int = SIDES[0], columns: int = SIDES[1], batch: int = 1) -> torch.Tensor:
    generator = torch.Generator().manual_seed(rows)
    return torch.randn(batch, 8, rows, columns, generator=generator)


def rewritten(net: Net, x: torch.Tensor, dialect: str) -> tuple[Report, Any]:
    captured = capture(net, (x,), dialect)
    return captured.rewrite(HALF), captured


PROOFS: dict[str, Callable[[Net, torch.Tensor], torch.Tensor]] = {
    "kernel 3": lambda net, x: net.square(x),
    "kernel 3, dilated": lambda net, x: net.dilated(x),
    "rows, then columns": lambda net, x: net.column(net.row(x)),
    "columns, then rows": lambda net, x: net.row(net.one(net.column(x))),
    "patches": lambda net, x: net.patches(x),
    "spread patches": lambda net, x: net.spread(x),
    "1×1 of convolved": lambda net, x: net.one(net.square(x)),
    "every second of convolved": lambda net, x: net.strided(net.square(x)),
    "mean of neighbours": lambda net, x: F.avg_pool2d(net.one(x), 3, 1, 1),
    "largest of patches": lambda net, x: net.one(F.max_pool2d(x, 2)),
    "pooled to a size": lambda net, x: F.adaptive_avg_pool2d(net.one(x), (4, 6)),
    "resized": lambda net, x: net.one(F.interpolate(x, scale_factor=2.0)),
    "resized to a size": lambda net, x: F.interpolate(net.one(x), (4, 6), mode="bilinear"),
    "pixels into channels": lambda net, x: net.narrow(F.pixel_unshuffle(x, 2)),
    "channels into pixels": lambda net, x: net.one(F.pixel_shuffle(net.wide(x), 2)),
    "warped by a flow": lambda net, x: F.grid_sample(
        net.one(x), net.flow(x).permute(0, 2, 3, 1).tanh(), align_corners=False
    ),
}


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("name", PROOFS)
def test_evidence_about_position(name: str, dialect: str) -> None:
    net, x = Net(PROOFS[name]), plane()
    report, captured = rewritten(net, x, dialect)
    site = only_site(report)
    with torch.no_grad():
        sides = net.make(net, x).shape[2:]
    grid = int(sides[0]), int(sides[1])
    assert (site.action, site.grid) == ("rewritten", grid), site.reason
    net.pool = lambda t: oracle.subsample(t, 2, grid, (2, 2))
    with torch.no_grad():
        assert_close(captured.run(), net(x))


def points(net: Net, x: torch.Tensor) -> torch.Tensor:
    """Deformable attention's way to look: a list of places for every position."""
    places = net.flow(x).flatten(2).mT.tanh()[:, :, None]
    return F.grid_sample(x, places.expand(-1, -1, 3, -1), align_corners=False)


def scores(net: Net, x: torch.Tensor) -> torch.Tensor:
    """Scores of tokens with themselves, smoothed over their neighbours, before they are used."""
    tokens = x.flatten(2).mT
    maps = net.maps(torch.stack([tokens @ tokens.mT, tokens @ tokens.mT], 1))
    return (maps.mean(1).sigmoid() @ tokens).mT[..., None]


def score_positions(net: Net, x: torch.Tensor) -> torch.Tensor:
    """… as tokens themselves: every pair of tokens is one."""
    tokens = x[..., :3].flatten(2).mT[:, :12]
    maps = net.maps(torch.stack([tokens @ tokens.mT, tokens @ tokens.mT], 1))
    return maps.repeat(1, 4, 1, 1)


NO_PROOFS: dict[str, tuple[Callable[[Net, torch.Tensor], torch.Tensor], tuple[int, int]]] = {
    "1×1": (lambda net, x: net.one(x), SIDES),
    "every second": (lambda net, x: net.strided(x), SIDES),
    "text in a row, 1×1": (lambda net, x: net.one(x), (1, 96)),
    "text in a column, 1×1": (lambda net, x: net.one(x), (96, 1)),
    "text in a row, 3×3": (lambda net, x: net.square(x), (1, 96)),
    "text in a column, 3×3": (lambda net, x: net.square(x), (96, 1)),
    "text in a row, 1×3": (lambda net, x: net.row(x), (1, 96)),
    "text in a column, pooled": (lambda _, x: F.avg_pool2d(x, (2, 1)), (96, 1)),
    "text in a row, longer": (lambda _, x: F.interpolate(x, scale_factor=(1.0, 2.0)), (1, 48)),
    "words of all channels": (lambda net, x: net.words(x[:, :1]), (96, 8)),
    "one axis alone": (lambda net, x: net.row(net.one(x)), SIDES),
    "kernel over everything": (lambda net, x: net.one(x) + net.whole(x), SIDES),
    "mean of everything": (lambda _, x: x * F.adaptive_avg_pool2d(x, 1).sigmoid(), SIDES),
    "window over everything": (lambda _, x: x + F.avg_pool2d(x, SIDES), SIDES),
    "mean, spread again": (lambda _, x: x + F.interpolate(x.mean((2, 3), True), SIDES), SIDES),
    "resized to what it was": (lambda net, x: F.interpolate(net.one(x), SIDES), SIDES),
    "points of a picture": (points, (4, 6)),
    "scores": (scores, SIDES),
    "pairs": (score_positions, SIDES),
}


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("name", NO_PROOFS)
def test_no_evidence_about_position(name: str, dialect: str) -> None:
    make, sides = NO_PROOFS[name]
    net, x = Net(make), plane(*sides)
    report, captured = rewritten(net, x, dialect)
    (site,) = [s for s in report.sites if s.spelling == "sdpa"]
    assert (site.action, site.grid) == ("refused", None)
    assert "cannot be proved" in site.reason
    with torch.no_grad():
        assert_close(captured.run(), net(x))


@pytest.mark.parametrize("dialect", DIALECTS)
def test_evidence_after_the_attention_counts_before_it(dialect: str) -> None:
    """A 1×1 convolution at the start, one of 3×3 on the same input only at the end."""

    class Late(Net):
        def forward(self, image: torch.Tensor) -> torch.Tensor:
            out = super().forward(image).mT.unflatten(2, image.shape[2:])
            return self.last(out) + self.square(image)

    net, x = Late(lambda net, x: net.one(x)), plane()
    report, captured = rewritten(net, x, dialect)
    site = only_site(report)
    assert (site.action, site.grid) == ("rewritten", SIDES), site.reason
    net.pool = lambda t: oracle.subsample(t, 2, SIDES, (2, 2))
    with torch.no_grad():
        assert_close(captured.run(), net(x))


@pytest.mark.parametrize("dialect", DIALECTS)
def test_halves_of_a_batch_stay_apart_when_the_evidence_comes_late(dialect: str) -> None:
    """Queries of one picture on keys of the other, before anything proves that they are some."""

    class Halves(Net):
        def forward(self, image: torch.Tensor) -> torch.Tensor:
            one, two = image.chunk(2)
            first, second = self.tokens(one), self.tokens(two)
            q, k, v = self.split(self.to_q(first)), self.keys(second), self.values(second)
            return self.attend(q, k, v).sum() + self.square(image).sum()

    report, _ = rewritten(Halves(lambda net, x: net.one(x)), plane(batch=2), dialect)
    assert only_site(report).action == "dense"
    assert only_site(report).kind == "cross"


@pytest.mark.parametrize("dialect", DIALECTS)
def test_keys_at_every_second_position(dialect: str) -> None:
    """A strided 1×1 convolution of a picture takes tokens away: the keys are coarser already."""

    class Coarser(Net):
        def forward(self, image: torch.Tensor) -> torch.Tensor:
            picture = self.square(image)
            fine, coarse = picture.flatten(2).mT, self.strided(picture).flatten(2).mT
            q = self.split(self.to_q(fine))
            return self.attend(q, self.keys(coarse), self.values(coarse))

    report, _ = rewritten(Coarser(lambda _, x: x), plane(), dialect)
    site = only_site(report)
    assert (site.action, site.kind) == ("dense", "self")
    assert "downsampled already" in site.reason


@pytest.mark.parametrize("dialect", DIALECTS)
def test_picture_on_its_side(dialect: str) -> None:
    """A convolution of the turned picture does not rename its columns to rows."""

    class Turned(Net):
        def tokens(self, image: torch.Tensor) -> torch.Tensor:
            return self.last(self.square(image).mT).flatten(2).mT

    net, x = Turned(lambda _, x: x), plane()
    captured = capture(net, (x,), dialect)
    site = only_site(captured.rewrite(PlanOptions(factors=((4, 2),))))
    assert (site.action, site.grid, site.factor) == ("rewritten", SIDES, (4, 2)), site.reason
    net.pool = lambda t: oracle.subsample(t, 2, SIDES[::-1], (2, 4))
    with torch.no_grad():
        assert_close(captured.run(), net(x))


@pytest.mark.parametrize("dialect", DIALECTS)
def test_rule_that_fails_costs_its_tags_only(
    dialect: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fails(*_: Any) -> Any:
        raise IndexError("a spelling that nobody thought of")

    monkeypatch.setitem(TABLE, "linear", fails)
    net, x = Net(PROOFS["kernel 3"]), plane()
    with caplog.at_level(logging.DEBUG, logger="todo_compile"):
        report, captured = rewritten(net, x, dialect)
    assert only_site(report).action == "refused"
    assert "nobody thought of" in caplog.text
    with torch.no_grad():
        assert_close(captured.run(), net(x))


@pytest.mark.parametrize("dialect", DIALECTS)
def test_image_axes_that_the_caller_names(dialect: str) -> None:
    """A 1×1 convolution proves nothing of them, and carries what is known."""
    net, x = Net(lambda net, x: net.one(x)), plane()
    captured = capture(net, (x,), dialect)
    site = only_site(captured.rewrite(HALF, image_axes={"image": (2, 3)}))
    assert (site.action, site.grid) == ("rewritten", SIDES), site.reason
    net.pool = lambda t: oracle.subsample(t, 2, SIDES, (2, 2))
    with torch.no_grad():
        assert_close(captured.run(), net(x))


@pytest.mark.parametrize("named", [{"picture": (2, 3)}, {"image": (2, 4)}, {"image": (0, 3)}])
def test_image_axes_that_are_not_there(named: dict[str, tuple[int, int]]) -> None:
    with pytest.raises(ConfigError, match="image_axes"):
        todo_compile.rewrite(Net(lambda net, x: net.one(x)), (plane(),), image_axes=named)


def patches(x: torch.Tensor, rows: int = 2, columns: int = 2, *, turned: bool = False) -> Any:
    """(B, C, H, W) → (B, patches, C · rows · columns) by views, as AuraFlow and CogView do."""
    b, c, h, w = x.shape
    cut = x.view(b, c, h // rows, rows, w // columns, columns)
    order = (0, 4, 2, 1, 3, 5) if turned else (0, 2, 4, 1, 3, 5)
    return cut.permute(order).reshape(b, h * w // (rows * columns), c * rows * columns)


class Patched(Net):
    def tokens(self, image: torch.Tensor) -> torch.Tensor:
        return self.make(self, image)[..., :8]


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("turned", [False, True])
def test_patches_cut_by_views(turned: bool, dialect: str) -> None:
    """Two axes cut by one number, outer parts together and inner parts together."""
    net, x = Patched(lambda _, x: patches(x, turned=turned)), plane(8, 12)
    captured = capture(net, (x,), dialect)
    site = only_site(captured.rewrite(PlanOptions(factors=((4, 2),))))
    assert (site.action, site.grid, site.factor) == ("rewritten", (4, 6), (4, 2)), site.reason
    grid, factor = ((6, 4), (2, 4)) if turned else ((4, 6), (4, 2))
    net.pool = lambda t: oracle.subsample(t, 2, grid, factor)
    with torch.no_grad():
        assert_close(captured.run(), net(x))


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("sides", [(8, 12), (7, 12), (8, 11), (7, 11)])
def test_patches_cut_of_a_padded_picture(sides: tuple[int, int], dialect: str) -> None:
    """Padded by what its sides lack, perhaps nothing, as ComfyUI's FLUX does: rows stay rows."""
    lack = (0, sides[1] % 2, 0, sides[0] % 2)
    # Exported, a circular padding that adds something is written with copies.
    mode = "circular" if dialect == "dynamo" or not any(lack) else "constant"
    net, x = Patched(lambda _, x: patches(F.pad(x, lack, mode))), plane(*sides)
    captured = capture(net, (x,), dialect)
    site = only_site(captured.rewrite(PlanOptions(factors=((4, 2),))))
    assert (site.action, site.grid, site.factor) == ("rewritten", (4, 6), (4, 2)), site.reason
    net.pool = lambda t: oracle.subsample(t, 2, (4, 6), (4, 2))
    with torch.no_grad():
        assert_close(captured.run(), net(x))


@pytest.mark.parametrize("dialect", DIALECTS)
def test_padded_sides_are_other_ranges(dialect: str) -> None:
    """One more in front and one less behind has as many positions, and other ones."""
    net = Net(lambda _, x: F.pad(x, (1, -1)))
    captured = capture(net, (plane(),), dialect)
    node = next(n for n in captured.module.graph.nodes if "pad" in str(n.target))
    effect = effect_of(GraphContext(captured.module), node)
    assert effect is not None
    assert effect.sources[0].axes == (0, 1, 2, None)


CUTS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "by different numbers": lambda x: patches(x, 2, 3),
    "one axis alone": lambda x: patches(x, 2, 1),
    "by nothing": lambda x: patches(x, 1, 1),
    "heads of text": lambda x: x.flatten(2).mT.unflatten(2, (2, 4)).transpose(1, 2).flatten(2)
    .unflatten(2, (-1, 8)).flatten(1, 2),
    "one range in four": lambda x: x.flatten(2).repeat(1, 1, 2)[..., :96]
    .unflatten(2, (4, 2, 6, 2)).permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2),
}  # fmt: skip


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("name", CUTS)
def test_cuts_that_are_no_patches(name: str, dialect: str) -> None:
    net = Patched(lambda _, x: CUTS[name](x))
    report, _ = rewritten(net, plane(8, 12), dialect)
    assert only_site(report).action == "refused"
