"""A tiny video and attention over its tokens, however they are made."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from graphs import ImageAttention
from torch import nn

from todo_compile.options import PlanOptions

HALF = PlanOptions(factors=((2, 2),))
FRAMES, SIDES = 3, (10, 14)
GRID = (FRAMES, 5, 7)  # tokens of 2×2 cells; neither side is a multiple of two
Make = Callable[[Any, torch.Tensor], torch.Tensor]


class Video(ImageAttention):
    """Attention over the tokens (B, N, 8) that `make` makes of (B, 4, frames, rows, columns)."""

    def __init__(self, make: Make, text: tuple[int, int] = (0, 0)) -> None:
        super().__init__()
        self.make, self.text = make, text
        self.patches = nn.Conv3d(4, 8, (1, 2, 2), (1, 2, 2))
        self.both = nn.Conv3d(4, 8, (3, 2, 2), (1, 2, 2), padding=(1, 0, 0))
        self.frames = nn.Conv3d(4, 8, (3, 1, 1), padding=(1, 0, 0))
        self.alone = nn.Conv3d(4, 8, 1)
        self.flat = nn.Conv2d(4, 8, 2, stride=2)
        self.linear = nn.Linear(16, 8)
        self.deep = nn.Linear(32, 8)
        self.words = nn.Linear(6, 8)
        self.eval()

    def tokens(self, image: torch.Tensor) -> torch.Tensor:
        return self.make(self, image)

    def forward(self, image: torch.Tensor, words: torch.Tensor | None = None) -> torch.Tensor:
        x = self.tokens(image)
        if words is not None:
            before, after = self.words(words).split(self.text, 1)
            x = torch.cat([before, x, after], 1)
        q, k, v = self.split(self.to_q(x)), self.keys(x), self.values(x)
        out = self.attend(q, self.pool(k), self.pool(v))
        return self.to_out(out.transpose(1, 2).flatten(2))


def video(*sides: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(2, 4, *(sides or (FRAMES, *SIDES)), generator=generator)


def by_conv3d(net: Any, x: torch.Tensor) -> torch.Tensor:
    return net.patches(x).flatten(2).mT
