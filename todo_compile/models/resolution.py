"""Image sizes as users write them, and the sizes that a model takes."""

from __future__ import annotations

import re
from dataclasses import dataclass

from todo_compile.errors import ConfigError

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
        found = re.fullmatch(r"\s*(-?\d+)\s*(?:[xX×]\s*(-?\d+))?\s*", str(text))
        if found is None:
            raise ConfigError(
                f"{str(text)!r} is not a resolution.",
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

    def latent(self, multiple: int, scale: int) -> tuple[int, int]:
        """(height, width) in latent cells, for a VAE of `scale` pixels a cell.

        Args:
            multiple: pixels that each side must be a multiple of; itself a multiple of `scale`.
            scale: pixels per latent cell on each axis.

        Raises:
            ConfigError: a side is not a multiple; the message names the nearest that works, on
                both sides where there are two.
        """
        if self.width % multiple or self.height % multiple:
            below, above = _around(self.width, multiple), _around(self.height, multiple)
            choices = {
                Resolution(w, h)
                for w, h in ((below[0], above[0]), (below[1], above[1]))
                if w > 0 and h > 0
            }
            if not choices:  # one side has a multiple only below, the other only above; or none has
                choices = {Resolution(max(below), max(above))}
            named = " or ".join(str(choice) for choice in sorted(choices))
            raise ConfigError(
                f"This model cannot make {self} pixels: its sides are multiples of {multiple}.",
                remedy=f"The nearest that works: {named}."
                if max(below) and max(above)
                else "Compare the model's config.json with its origin.",
            )
        return self.height // scale, self.width // scale

    def __str__(self) -> str:
        return f"{self.width}x{self.height}"


def _around(side: int, multiple: int) -> tuple[int, int]:
    """The multiples below and above `side`; 0 where there is none that is possible."""
    down = side // multiple * multiple
    up = down if down == side else down + multiple
    return down, up if up <= MAX_SIDE else 0
