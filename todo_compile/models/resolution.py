"""Image sizes as users write them, and the sizes that a model takes."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from todo_compile.errors import ConfigError
from todo_compile.foreign import spelled

MAX_SIDE = 32768
"""Longest side accepted, in pixels: a typing error is likelier than an image beyond it."""


@dataclass(frozen=True, order=True)
class Resolution:
    """An image size in pixels."""

    width: int
    height: int

    @classmethod
    def parse(cls, text: str | int) -> Resolution:
        """Read ``2048`` (square) or ``1920x1080`` (width×height; ``×`` and ``X`` work too).

        Raises:
            ConfigError: not of this form, not positive, or beyond `MAX_SIDE`.
        """
        found = re.fullmatch(r"\s*(-?\d{1,18})\s*(?:[xX×]\s*(-?\d{1,18}))?\s*", spelled(text))
        if found is None:
            raise ConfigError(
                f"{spelled(text)!r:.60} is not a resolution.",
                remedy="Write one side (2048) or width×height (1920x1080), in pixels.",
            )
        width = int(found[1])
        height = int(found[2]) if found[2] is not None else width
        for side in (width, height):
            if not 0 < side <= MAX_SIDE:
                raise ConfigError(
                    f"A side of {side} pixels is not possible.",
                    remedy=f"Sides are 1 to {MAX_SIDE} pixels.",
                )
        return cls(width, height)

    def latent(
        self,
        multiple: int,
        scale: int,
        works: Callable[[Resolution], bool] = lambda _: True,
    ) -> tuple[int, int]:
        """(height, width) in latent cells, for a VAE of `scale` pixels a cell.

        Args:
            multiple: pixels that each side must be a multiple of; itself a multiple of `scale`.
            scale: pixels per latent cell on each axis.
            works: whether the model takes a size whose sides are multiples.

        Raises:
            ConfigError: a side is not a multiple; the message names the nearest that works, below
                and above where there are two.
        """
        if self.width % multiple or self.height % multiple:
            near = self.near(multiple, works)
            raise ConfigError(
                f"This model cannot make {self} pixels: its sides are multiples of {multiple}.",
                remedy=f"The nearest that works: {' or '.join(map(str, near))}."
                if near
                else "Compare the model's config.json with its origin.",
            )
        return self.height // scale, self.width // scale

    def near(
        self, multiple: int, works: Callable[[Resolution], bool] = lambda _: True
    ) -> list[Resolution]:
        """The nearest sizes that work, of multiples of `multiple`: below and above, or one."""
        widths, heights = _around(self.width, multiple), _around(self.height, multiple)
        # Both sides to the same end; else one side has a multiple only below, the other only above.
        for pairs in (zip(widths, heights, strict=True), ((max(widths), max(heights)),)):
            found = {Resolution(w, h) for w, h in pairs if w > 0 and h > 0}
            if near := sorted(size for size in found if works(size)):
                return near
        return []

    def __str__(self) -> str:
        return f"{self.width}x{self.height}"


def _around(side: int, multiple: int) -> tuple[int, int]:
    """The multiples below and above `side`; 0 where there is none that is possible."""
    down = side // multiple * multiple
    up = down if down == side else down + multiple
    return down, up if up <= MAX_SIDE else 0
