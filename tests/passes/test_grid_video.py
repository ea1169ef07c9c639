"""Videos: frames × rows × columns in one sequence, pooled over rows and columns in each frame."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import oracle
import pytest
import torch
import torch.nn.functional as F
from graphs import DIALECTS, assert_close, capture, only_site
from torch import nn
from videos import GRID, HALF, SIDES, Make, Video, by_conv3d, video

from todo_compile.errors import ConfigError
from todo_compile.options import PlanOptions, check_token_grids
from todo_compile.passes.report import SiteReport


def views(net: Any, x: torch.Tensor) -> torch.Tensor:
    """Patches by views and a linear layer, each frame by itself."""
    b, c, f, h, w = x.shape
    x = x.view(b, c, f, h // 2, 2, w // 2, 2).permute(0, 2, 3, 5, 4, 6, 1)
    return net.linear(x.flatten(4).flatten(1, 3))


def deep_views(net: Any, x: torch.Tensor) -> torch.Tensor:
    """… of two frames each."""
    b, c, f, h, w = x.shape
    x = x.view(b, c, f // 2, 2, h // 2, 2, w // 2, 2).permute(0, 2, 4, 6, 1, 3, 5, 7)
    return net.deep(x.reshape(b, -1, 32))


def frame_by_frame(net: Any, x: torch.Tensor) -> torch.Tensor:
    """Patches by conv2d with the frames in the batch."""
    b, _, f = x.shape[:3]
    x = net.flat(x.transpose(1, 2).flatten(0, 1)).flatten(2).mT
    return x.unflatten(0, (b, f)).flatten(1, 2)


def rotated(net: Any, x: torch.Tensor) -> torch.Tensor:
    """Tables over frames, rows and columns that multiply every token."""
    f, h, w = GRID
    parts = [
        torch.arange(n).view([n if i == axis else 1 for i in range(4)]).expand(f, h, w, 1)
        for axis, n in enumerate(GRID)
    ]
    table = torch.cat(parts, -1).flatten(0, 2).float().cos().repeat(1, 3)[:, :8]
    return by_conv3d(net, x) * table


PROOFS: dict[str, Make] = {
    "conv3d": by_conv3d,
    "conv3d over frames too": lambda net, x: net.both(x).flatten(2).mT,
    "views": views,
    "views of two frames": deep_views,
    "frame by frame": frame_by_frame,
    "tables": rotated,
    "resized": lambda net, x: net.alone(F.interpolate(x, (3, 5, 7))).flatten(2).mT,
    "mean of neighbours": lambda net, x: net.alone(F.avg_pool3d(x, (1, 2, 2))).flatten(2).mT,
}


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("name", PROOFS)
def test_every_frame_is_pooled_by_itself(name: str, dialect: str) -> None:
    net, x = Video(PROOFS[name]), video(6, *SIDES) if name == "views of two frames" else video()
    captured = capture(net, (x,), dialect)
    site = only_site(captured.rewrite(HALF))
    assert (site.action, site.kind, site.frames, site.grid) == (
        "rewritten", "self", 3, (5, 7),
    ), site.reason  # fmt: skip
    assert (site.key_tokens, site.key_tokens_after) == (105, 3 * 3 * 4)
    net.pool = lambda t: oracle.stand_ins(t, 2, GRID, (2, 2))
    with torch.no_grad():
        assert_close(captured.run(), net(x))
    before = captured.signature()
    assert only_site(captured.rewrite(HALF)).action != "rewritten"
    assert captured.signature() == before


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("text", [(4, 0), (0, 4), (1, 3)])
def test_text_beside_a_video(text: tuple[int, int], dialect: str) -> None:
    net, inputs = Video(by_conv3d, text), (video(), torch.randn(2, 4, 6))
    captured = capture(net, inputs, dialect)
    site = only_site(captured.rewrite(HALF))
    assert (site.action, site.kind, site.frames) == ("rewritten", "joint", 3), site.reason
    assert site.image is not None
    assert site.image.offset == text[0]
    net.pool = lambda t: oracle.stand_ins(t, 2, GRID, (2, 2), offset=text[0])
    with torch.no_grad():
        assert_close(captured.run(), net(*inputs))


@pytest.mark.parametrize("sampling", ["nearest-exact", "average", "blend:0.5", "staggered"])
def test_every_sampling(sampling: str) -> None:
    net, x = Video(by_conv3d), video()
    captured = capture(net, (x,), "export")
    assert captured.rewrite(PlanOptions(factors=((2, 3),), sampling=sampling)).rewritten == 1
    net.pool = lambda t: oracle.stand_ins(t, 2, GRID, (2, 3), sampling)
    with torch.no_grad():
        assert_close(captured.run(), net(x))


def refused(make: Make, x: torch.Tensor, dialect: str = "export") -> SiteReport:
    captured = capture(Video(make), (x,), dialect)
    before = captured.signature()
    site = only_site(captured.rewrite(HALF))
    assert captured.signature() == before
    return site


NO_PROOFS: dict[str, Make] = {
    "frames alone mind their neighbours": lambda net, x: net.frames(x).flatten(2).mT,
    "nothing minds its neighbours": lambda net, x: net.alone(x).flatten(2).mT,
    "frames come last": lambda net, x: net.patches(x).movedim(2, -1).flatten(2).mT,
    "frames between rows and columns": lambda net, x: net.patches(x).transpose(2, 3).flatten(2).mT,
}


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("name", NO_PROOFS)
def test_no_proof(name: str, dialect: str) -> None:
    site = refused(NO_PROOFS[name], video(), dialect)
    assert (site.action, site.grid) == ("refused", None)
    assert "cannot be proved" in site.reason


def test_patches_of_rows_and_frames_are_no_picture() -> None:
    def rows_last(net: Any, x: torch.Tensor) -> torch.Tensor:
        """(frames, columns) are cut, and rows, which come before them, counted last."""
        b, c, f, h, w = x.shape
        x = x.view(b, c, f, h // 2, 2, w // 2, 2).permute(0, 5, 2, 3, 4, 6, 1)
        return net.linear(x.flatten(4).flatten(1, 3))

    site = refused(rows_last, video())
    assert (site.action, site.grid) == ("refused", None)


def in_time(net: Any, x: torch.Tensor) -> torch.Tensor:
    x = net.patches(x)
    return x.flatten(3).permute(0, 3, 2, 1).flatten(0, 1)


@pytest.mark.parametrize("dialect", DIALECTS)
def test_attention_over_frames_says_what_it_is(dialect: str) -> None:
    site = refused(in_time, video(), dialect)
    assert site.action == "refused"
    assert "these are frames, or points in time" in site.reason
    assert "res" not in site.reason.replace("resolution", "res").split()


@pytest.mark.parametrize("dialect", DIALECTS)
def test_packed_tokens_of_a_named_grid(dialect: str) -> None:
    net = Video(lambda _, x: x)
    x = torch.randn(2, 105, 8)
    captured = capture(net, (x,), dialect)
    site = only_site(captured.rewrite(HALF, token_grids={105: GRID}))
    assert (site.action, site.frames, site.grid) == ("rewritten", 3, (5, 7))
    net.pool = lambda t: oracle.stand_ins(t, 2, GRID, (2, 2))
    with torch.no_grad():
        assert_close(captured.run(), net(x))


def test_named_grids_have_as_many_cells_as_tokens() -> None:
    assert check_token_grids({105: [3, 5, 7]}) == {105: (3, 5, 7)}
    for wrong in ((3, 5, 8), (0, 5, 7), (1, 3, 5, 7), (3.0, 5, 7)):
        with pytest.raises(ConfigError, match="105"):
            check_token_grids({105: wrong})


def test_the_bound_is_one_of_each_frame() -> None:
    captured = capture(Video(by_conv3d), (video(),), "export")
    site = only_site(captured.rewrite(PlanOptions(), native_kv_tokens=35))
    assert (site.action, site.factor) == ("dense", (1, 1)), "the native clip keeps its keys"
    site = only_site(captured.rewrite(PlanOptions(), native_kv_tokens=12))
    assert (site.action, site.key_tokens_after) == ("rewritten", 3 * 12)
    assert site.reason == "35 tokens in each of 3 frames, bound 12"


class Written(Video):
    """Keys whose channels `write` puts into new memory, half by half."""

    def __init__(self, write: Callable[[Any, torch.Tensor, torch.Tensor], None]) -> None:
        super().__init__(by_conv3d)
        self.write, self.norm = write, nn.RMSNorm(4)
        self.eval()

    def keys(self, x: torch.Tensor) -> torch.Tensor:
        keys = self.norm(super().keys(x))
        out = torch.empty_like(keys)
        self.write(self, out, keys)
        return out.type_as(keys)


def halves(_: Any, out: torch.Tensor, keys: torch.Tensor) -> None:
    out[..., 0::2] = keys[..., 1::2].cos()
    out[..., 1::2] = -keys[..., 0::2]


def sliced(_: Any, out: torch.Tensor, keys: torch.Tensor) -> None:
    out[:, :, :, :2].copy_(keys[..., 2:])
    out[:, :, :, 2:].copy_(keys[..., :2])


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("write", [halves, sliced])
def test_channels_that_are_written_into_new_memory(write: Any, dialect: str) -> None:
    net, x = Written(write), video()
    captured = capture(net, (x,), dialect)
    site = only_site(captured.rewrite(HALF))
    assert (site.action, site.frames, site.grid) == ("rewritten", 3, (5, 7)), site.reason
    net.pool = lambda t: oracle.stand_ins(t, 2, GRID, (2, 2))
    with torch.no_grad():
        assert_close(captured.run(), net(x))


def other_tokens(_: Any, out: torch.Tensor, keys: torch.Tensor) -> None:
    out[..., :2] = keys[..., :2]
    out[..., 2:] = keys[..., 2:].roll(1, 2)


def tokens_apart(_: Any, out: torch.Tensor, keys: torch.Tensor) -> None:
    out[:, :, :50] = keys[:, :, :50]
    out[:, :, 50:] = keys[:, :, 50:]


def items_apart(_: Any, out: torch.Tensor, keys: torch.Tensor) -> None:
    out[:1] = keys[:1]
    out[1:] = keys[1:]


def overwritten(_: Any, out: torch.Tensor, keys: torch.Tensor) -> None:
    out[..., 0::2] = keys[..., 0::2]
    out[..., 1::2] = keys[..., 1::2]
    torch.mul(keys.roll(1, 2), 2.0, out=out)


def zeroed(_: Any, out: torch.Tensor, keys: torch.Tensor) -> None:
    out.zero_()
    out[..., :2] = keys[..., :2]


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("write", [other_tokens, tokens_apart, items_apart, overwritten, zeroed])
def test_what_is_written_otherwise_proves_nothing(write: Any, dialect: str) -> None:
    captured = capture(Written(write), (video(),), dialect)
    before = captured.signature()
    site = only_site(captured.rewrite(HALF))
    assert (site.action, site.grid) == ("refused", None) or (
        site.action == "refused" and "same grid" in site.reason
    )
    assert captured.signature() == before
