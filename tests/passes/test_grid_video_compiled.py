"""Clips of other lengths and sizes in one compiled module: each with a plan of its own."""

from __future__ import annotations

import oracle
import torch
from videos import Video, by_conv3d

import todo_compile


def test_every_clip_is_pooled_within_its_frames() -> None:
    torch.compiler.reset()
    todo_compile.clear_reports()
    net, truth = Video(by_conv3d), Video(by_conv3d)
    run = torch.compile(net, backend="todo_inductor", options={"factors": "2", "inner": "eager"})
    clips = ((2, 3, 5, 7), (2, 4, 5, 7), (3, 4, 6, 7), (1, 6, 4, 4))
    for batch, *grid in clips:
        x = torch.randn(batch, 4, grid[0], 2 * grid[1], 2 * grid[2])
        truth.pool = lambda t, grid=tuple(grid): oracle.stand_ins(t, 2, grid, (2, 2))
        with torch.no_grad():
            torch.testing.assert_close(run(x), truth(x), rtol=1e-5, atol=1e-5)
    done = [(s.action, s.frames, s.grid) for r in todo_compile.reports() for s in r.sites]
    assert done == [("rewritten", f, (h, w)) for _, f, h, w in clips]
