"""Frames among the tokens in every order that somebody may write: right, or refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import oracle
import pytest
import torch
import torch.nn.functional as F
from graphs import DIALECTS, assert_close, capture, only_site
from torch import Tensor, nn
from videos import GRID, HALF, Make, Video, by_conv3d, video

from todo_compile.passes.report import SiteReport

FRAMES_OR_TIME = "these are frames, or points in time"
NO_PICTURE = "nothing tells that they are the rows and columns of a picture"


def rewritten(net: Video, inputs: tuple[Tensor, ...], dialect: str, **named: Any) -> SiteReport:
    """The only site, with what it did to the graph compared with the oracle or with nothing."""
    captured = capture(net, inputs, dialect)
    before = captured.signature()
    site = only_site(captured.rewrite(HALF, **named))
    if site.action != "rewritten":
        assert captured.signature() == before
        return site
    assert site.image is not None
    assert site.grid is not None
    rows, columns = reversed(site.grid) if site.image.column_major else site.grid
    offset, keys = site.image.offset, (site.frames, rows, columns)
    net.pool = lambda t: oracle.stand_ins(t, 2, keys, (2, 2), offset=offset)
    with torch.no_grad():
        assert_close(captured.run(), net(*inputs))
    net.pool = lambda t: t
    return site


class More(Video):
    """… with more layers for `make`."""

    def __init__(self, make: Make) -> None:
        super().__init__(make)
        self.in_time = nn.Conv3d(8, 8, (3, 1, 1), padding=(1, 0, 0))
        self.pairs = nn.Conv3d(4, 8, (2, 1, 1), (2, 1, 1))
        self.doubled = nn.Conv3d(8, 8, (1, 2, 2), (1, 2, 2))
        self.plane = nn.Conv2d(8, 8, 3, padding=1)
        self.eval()


def reordered(*order: int) -> Make:
    """Tokens of (B, C, frames, rows, columns) in another order of its axes."""
    return lambda net, x: net.patches(x).permute(0, *order, 1).flatten(1, 3)


def axial(batch: tuple[int, ...], tokens: tuple[int, ...]) -> Make:
    """Attention over some of the axes, the others in the batch."""

    def make(net: Any, x: Tensor) -> Tensor:
        x = net.patches(x).permute(0, *batch, *tokens, 1)
        return x.flatten(0, len(batch)).flatten(1, len(tokens))

    return make


def reinterpreted(net: Any, x: Tensor) -> Tensor:
    """Frames and rows are read as rows and frames, and then turned."""
    x = net.patches(x)
    b, c, f, h, w = x.shape
    return x.reshape(b, c, h, f, w).transpose(2, 3).flatten(2).mT


def half_frames(net: Any, x: Tensor) -> Tensor:
    """Half as many frames of twice as many rows, turned."""
    x = net.patches(x)
    b, c, f, h, w = x.shape
    return x.reshape(b, c, f // 2, h * 2, w).transpose(2, 3).flatten(2).mT


def unshuffled(net: Any, x: Tensor) -> Tensor:
    """Two frames in the channels of one."""
    b, c, f, h, w = x.shape
    return net.doubled(x.view(b, c, f // 2, 2, h, w).transpose(2, 3).flatten(1, 2)).flatten(2).mT


def side_by_side(net: Any, x: Tensor) -> Tensor:
    """The frames of one wide picture, behind the kernel."""
    x = net.patches(x)
    b, c, f, h, w = x.shape
    return x.transpose(2, 3).reshape(b, c, h, f * w).flatten(2).mT


def over_frames_and_rows(net: Any, x: Tensor) -> Tensor:
    """A kernel over frames and rows, beside that over rows and columns."""
    x = net.patches(x)
    b, c, f, h, w = x.shape
    planes = net.plane(x.permute(0, 4, 1, 2, 3).flatten(0, 1))
    return planes.view(b, w, c, f, h).permute(0, 2, 3, 4, 1).flatten(2).mT


CUBE = (4, 8, 8)
RIGHT: dict[str, tuple[Make, tuple[int, ...], tuple[int, ...]]] = {
    "as many frames as rows": (by_conv3d, (5, 10, 14), (5, 5, 7)),
    "a cube": (by_conv3d, CUBE, (4, 4, 4)),
    "columns first": (reordered(2, 4, 3), (3, 10, 14), GRID),
    "a cube, columns first": (reordered(2, 4, 3), CUBE, (4, 4, 4)),
    "rolled frames": (lambda net, x: by_conv3d(net, x.roll(1, 2)), (3, 10, 14), GRID),
    "every second frame": (
        lambda net, x: net.patches(x)[:, :, ::2].flatten(2).mT, (3, 10, 14), (2, 5, 7),
    ),
    "time in channels": (unshuffled, (6, 10, 14), GRID),
    "a kernel in time": (
        lambda net, x: net.in_time(net.patches(x)).flatten(2).mT, (3, 10, 14), GRID,
    ),
    "sums over frames": (lambda net, x: net.patches(x).cumsum(2).flatten(2).mT, (3, 10, 14), GRID),
    "frames in the batch": (axial((2,), (3, 4)), CUBE, (1, 4, 4)),
}  # fmt: skip


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("name", RIGHT)
def test_frames_stay_whole(name: str, dialect: str) -> None:
    make, sides, expected = RIGHT[name]
    site = rewritten(More(make), (video(*sides),), dialect)
    assert (site.action, site.frames, site.grid) == ("rewritten", expected[0], expected[1:])


REFUSED: dict[str, tuple[Make, str]] = {
    "rows, frames, columns": (reordered(3, 2, 4), NO_PICTURE),
    "rows, columns, frames": (reordered(3, 4, 2), NO_PICTURE),
    "reinterpreted": (reinterpreted, NO_PICTURE),
    "half as many frames": (half_frames, NO_PICTURE),
    "rolled tokens": (lambda net, x: by_conv3d(net, x).roll(1, 1), NO_PICTURE),
    "side by side": (side_by_side, NO_PICTURE),
    "patches in time": (lambda net, x: net.pairs(x).flatten(2).mT, NO_PICTURE),
    "a kernel over frames and rows": (over_frames_and_rows, NO_PICTURE),
    "frames": (axial((3, 4), (2,)), FRAMES_OR_TIME),
    "frames and rows": (axial((4,), (2, 3)), NO_PICTURE),
    "frames and columns": (axial((3,), (2, 4)), NO_PICTURE),
    "columns": (axial((2, 3), (4,)), NO_PICTURE),
}


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("name", REFUSED)
def test_orders_that_are_no_pictures(name: str, dialect: str) -> None:
    """All sides are equal, so that no number of tokens tells them apart."""
    make, why = REFUSED[name]
    site = rewritten(More(make), (video(*CUBE),), dialect)
    assert (site.action, site.grid) == ("refused", None)
    assert why in site.reason


NAMED: dict[str, tuple[Make, tuple[int, ...]]] = {
    "frames in the batch": (lambda _, x: x.unflatten(1, (4, 16)).flatten(0, 1), (1, 4, 4)),
    "frames": (lambda _, x: x.unflatten(1, (4, 16)).transpose(1, 2).flatten(0, 1), ()),
    "rows, columns, frames": (
        lambda _, x: x.unflatten(1, (4, 16)).transpose(1, 2).flatten(1, 2), (),
    ),
    "frames and rows": (
        lambda _, x: x.unflatten(1, (16, 4)).transpose(1, 2).flatten(0, 1), (),
    ),
}  # fmt: skip


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("name", NAMED)
def test_packed_frames_in_other_orders(name: str, dialect: str) -> None:
    make, expected = NAMED[name]
    tokens = torch.randn(2, 64, 8)
    site = rewritten(Video(make), (tokens,), dialect, token_grids={64: (4, 4, 4)})
    if expected:
        assert (site.action, site.frames, site.grid) == ("rewritten", expected[0], expected[1:])
    else:
        assert (site.action, site.grid) == ("refused", None)


# Keys and values of other frames ------------------------------------------------------------------
Part = Callable[[Tensor], Tensor]


def unchanged(x: Tensor) -> Tensor:
    return x


class Others(Video):
    """Queries, keys and values from other parts of the tokens, under a mask."""

    def __init__(
        self, query: Part = unchanged, key: Part = unchanged, value: Part = unchanged,
        mask: Callable[[], Tensor] | None = None, *, causal: bool = False,
    ) -> None:  # fmt: skip
        super().__init__(by_conv3d)
        self.query, self.key, self.value, self.mask = query, key, value, mask
        self.causal = causal
        self.eval()

    def forward(self, image: Tensor, words: Tensor | None = None) -> Tensor:
        del words
        x = self.tokens(image)
        q = self.split(self.to_q(self.query(x)))
        k, v = self.split(self.to_k(self.key(x))), self.split(self.to_v(self.value(x)))
        mask = self.mask() if self.mask is not None else None
        out = F.scaled_dot_product_attention(
            q, self.pool(k), self.pool(v), attn_mask=mask, is_causal=self.causal
        )
        return self.to_out(out.transpose(1, 2).flatten(2))


def framed(x: Tensor) -> Tensor:
    return x.unflatten(1, (3, 35))


def first(x: Tensor) -> Tensor:
    return framed(x)[:, 0]


def two(x: Tensor) -> Tensor:
    return framed(x)[:, :2].flatten(1, 2)


def mean(x: Tensor) -> Tensor:
    return framed(x).mean(1)


OTHERS: dict[str, Others] = {
    "the first frame's keys": Others(key=first, value=first),
    "two frames' keys": Others(key=two, value=two),
    "the mean frame's keys": Others(key=mean, value=mean),
    "the last frame's queries": Others(query=lambda x: framed(x)[:, -1]),
}


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("name", OTHERS)
def test_keys_of_other_frames_are_another_pictures(name: str, dialect: str) -> None:
    site = rewritten(OTHERS[name], (video(),), dialect)
    assert (site.action, site.kind) == ("dense", "cross")


def before(x: Tensor) -> Tensor:
    return framed(x).roll(1, 1).flatten(1, 2)


def swapped(x: Tensor) -> Tensor:
    return x.unflatten(1, GRID).transpose(1, 2).flatten(1, 3)


def frame_of() -> Tensor:
    return torch.arange(105) // 35


MIXED: dict[str, tuple[Others, str]] = {
    "keys of the frame before": (Others(key=before), "cannot be proved"),
    "values of the frame before": (Others(value=before), "not lie on the same grid"),
    "values in rows, frames, columns": (Others(value=swapped), "not lie on the same grid"),
    "no key of a later frame": (
        Others(mask=lambda: frame_of()[:, None] >= frame_of()[None]), "could hide image keys",
    ),
    "… as numbers": (
        Others(
            mask=lambda: torch.full((3, 3), -torch.inf)
            .triu(1).repeat_interleave(35, 0).repeat_interleave(35, 1)
        ),
        "could hide image keys",
    ),
    "each frame by itself": (
        Others(mask=lambda: frame_of()[:, None] == frame_of()[None]), "could hide image keys",
    ),
    "causal": (Others(causal=True), "keys are ordered in time"),
}  # fmt: skip


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("name", MIXED)
def test_frames_that_see_some_frames_only(name: str, dialect: str) -> None:
    net, why = MIXED[name]
    site = rewritten(net, (video(),), dialect)
    assert site.action == "refused"
    assert why in site.reason


# Masks of text beside a video ---------------------------------------------------------------------
class Masked(Video):
    """Text before the video, or after it, under a mask made of which words there are."""

    def __init__(self, mask: Callable[[Tensor], Tensor], text: tuple[int, int]) -> None:
        super().__init__(by_conv3d, text)
        self.mask = mask
        self.eval()

    def forward(
        self, image: Tensor, words: Tensor | None = None, there: Tensor | None = None
    ) -> Tensor:
        assert words is not None
        assert there is not None
        ahead, behind = self.words(words).split(self.text, 1)
        x = torch.cat([ahead, self.tokens(image), behind], 1)
        q, k, v = self.split(self.to_q(x)), self.split(self.to_k(x)), self.split(self.to_v(x))
        out = F.scaled_dot_product_attention(
            q, self.pool(k), self.pool(v), attn_mask=self.mask(there)[:, None, None]
        )
        return self.to_out(out.transpose(1, 2).flatten(2))


def up_to(count: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    return lambda there: torch.arange(109) < count(there)[:, None]


MASKS: dict[str, tuple[Callable[[Tensor], Tensor], tuple[int, int], bool]] = {
    "padded": (lambda t: F.pad(t, (0, 105), value=True), (4, 0), True),
    "joined": (lambda t: torch.cat([t, t.new_ones(2, 105)], 1), (4, 0), True),
    "by length": (up_to(lambda t: 105 + t.sum(1)), (0, 4), True),
    "by a sum made whole": (up_to(lambda t: 105 + t.float().sum(1, dtype=torch.int)), (0, 4), True),
    "by a sum that is rounded": (up_to(lambda t: 105 + t.float().sum(1)), (0, 4), False),
    "by a length that is too short": (up_to(lambda t: 101 + t.sum(1)), (0, 4), False),
    "by a number of frames": (up_to(lambda t: 35 * t.sum(1)), (0, 4), False),
    "frames too": (
        lambda t: torch.cat([t, t[:, :3].repeat_interleave(35, 1)], 1), (4, 0), False,
    ),
}  # fmt: skip


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("name", MASKS)
def test_masks_of_text_spare_the_video_or_are_refused(name: str, dialect: str) -> None:
    mask, text, spares = MASKS[name]
    there = torch.tensor([[True, True, True, False], [True, True, False, False]])
    inputs = video(), torch.randn(2, 4, 6), there
    site = rewritten(Masked(mask, text), inputs, dialect)
    assert (site.action, site.kind) == ("rewritten" if spares else "refused", "joint")
    assert spares or "could hide image keys" in site.reason


class Overwritten(Video):
    """Keys in whose place another operation puts others, with new memory as its operand."""

    def forward(self, image: Tensor, words: Tensor | None = None) -> Tensor:
        del words
        x = self.tokens(image)
        q, k, v = (layer(x)[:, None] for layer in (self.to_q, self.to_k, self.to_v))
        new = torch.empty_like(k)
        new.copy_(k.roll(1, 2))
        torch.mul(new, 2.0, out=k)
        out = F.scaled_dot_product_attention(q, self.pool(k), self.pool(v))
        return self.to_out(out.transpose(1, 2).flatten(2))


@pytest.mark.parametrize("dialect", DIALECTS)
def test_keys_that_new_memory_is_multiplied_into(dialect: str) -> None:
    site = rewritten(Overwritten(by_conv3d), (video(),), dialect)
    assert (site.action, site.grid) == ("refused", None)
