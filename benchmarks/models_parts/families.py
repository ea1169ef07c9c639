"""The families that are measured: a tiny pipeline each, and where its picture lies in attention.

The geometry is written here by hand, from how each architecture orders its tokens: the passes must
find it by themselves.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

Grid = tuple[int, ...]
Segment = tuple[int, Grid]
"""(keys before it, (rows, columns)); of a video (frames, rows, columns)."""
Segments = Callable[[int, int], list[Segment]]
"""(queries, keys) of an attention → the pictures among its keys; none where it is of text."""


def alone(*grids: Grid) -> Segments:
    """Pictures by themselves."""

    def found(queries: int, keys: int) -> list[Segment]:
        return [(0, g) for g in grids if queries == keys == math.prod(g)]

    return found


def first(grid: Grid) -> Segments:
    """The picture's tokens, then text."""

    def found(queries: int, keys: int) -> list[Segment]:
        tokens = math.prod(grid)
        return [(0, grid)] if keys > tokens and queries in (keys, tokens) else []

    return found


def last(*grids: Grid) -> Segments:
    """Text, then the picture's tokens, then those of pictures to look at."""
    each = [math.prod(grid) for grid in grids]
    tokens = sum(each)

    def found(queries: int, keys: int) -> list[Segment]:
        if keys <= tokens or queries not in (keys, tokens):
            return []
        return [(keys - tokens + sum(each[:i]), grid) for i, grid in enumerate(grids)]

    return found


def any_of(*rules: Segments) -> Segments:
    """The first rule that finds a picture."""

    def found(queries: int, keys: int) -> list[Segment]:
        return next((s for rule in rules if (s := rule(queries, keys))), [])

    return found


@dataclass(frozen=True)
class Family:
    """One row.

    Attributes:
        name: of a pipeline in `tests/models/pipeline_zoo.py`.
        title: as people call it.
        size: of the picture, "WIDTHxHEIGHT".
        segments: where its picture is.
        component: which part, as ``--component`` has it.
        factors: as ``--factors`` has them.
        controlnet: its residuals are asked for.
        frames: of a video; None for the pipeline's own number, or a picture.
        pictured: it draws from a picture, this much smaller on each side; 0: from text alone.
    """

    name: str
    title: str
    size: str
    segments: Segments
    component: str = "unet"
    factors: str = "2"
    controlnet: bool = False
    frames: int | None = None
    pictured: int = 0

    @property
    def key(self) -> str:
        """Name of the row."""
        return self.name if self.component == "unet" else f"{self.name} {self.component}"


GRID, PATCHED = (16, 24), (8, 12)  # cells of 192×128 pixels; patches of 2×2 cells
SIZE = "192x128"
REFERENCE = (52, 78)  # Kontext looks at pictures of 3:2 in 1248×832 pixels
SMALL, CLIP = "96x64", (3, 4, 6)  # nine frames are three of latents, of patches of 2×2 cells

FAMILIES: tuple[Family, ...] = (
    Family("sd15", "Stable Diffusion 1.5", SIZE, alone(GRID)),
    Family("sdxl", "SDXL", SIZE, alone(PATCHED)),
    Family("refiner", "SDXL refiner", SIZE, alone(GRID), pictured=1),
    Family(
        "controlled",
        "Stable Diffusion with a ControlNet",
        SIZE,
        alone(GRID),
        controlnet=True,
        pictured=1,
    ),
    Family("sd15", "decoder of AutoencoderKL", SIZE, alone(GRID), component="vae-decoder"),
    Family("sd3", "Stable Diffusion 3", SIZE, first(PATCHED)),
    Family("sd35", "Stable Diffusion 3.5", SIZE, any_of(alone(PATCHED), first(PATCHED))),
    Family("flux", "FLUX.1 dev", SIZE, last(PATCHED)),
    Family("schnell", "FLUX.1 schnell", SIZE, last(PATCHED)),
    Family("kontext", "FLUX.1 Kontext", SIZE, last(PATCHED, REFERENCE), pictured=1),
    Family("flux_fill", "FLUX.1 Fill", SIZE, last(PATCHED), pictured=1),
    Family("flux_control", "FLUX.1 Control", SIZE, last(PATCHED), pictured=1),
    Family("flux2", "FLUX.2 klein", SIZE, last(PATCHED)),
    Family("chroma", "Chroma", SIZE, last(PATCHED)),
    Family("qwen_image", "Qwen-Image", "96x64", last(PATCHED)),
    Family("z_image", "Z-Image", SIZE, any_of(alone(PATCHED), first(PATCHED))),
    Family("pixart", "PixArt-Σ", SIZE, alone(PATCHED)),
    Family("hunyuan_dit", "HunyuanDiT", SIZE, alone(PATCHED)),
    Family("aura_flow", "AuraFlow", SIZE, last(PATCHED)),
    Family("lumina_next", "Lumina Next", SIZE, alone(PATCHED)),
    Family("lumina", "Lumina 2", SIZE, any_of(alone(PATCHED), last(PATCHED))),
    Family("sana", "Sana", SIZE, alone()),
    Family("deepfloyd", "DeepFloyd IF, first stage", "48x32", last((16, 24))),
    Family("deepfloyd_2", "DeepFloyd IF, second stage", "64x32", last((16, 32)), pictured=1),
    Family("upscaler", "DeepFloyd IF, third stage (upscaler)", SIZE, alone((32, 48)), pictured=4),
    Family("kandinsky22", "Kandinsky 2.2", SIZE, last(PATCHED)),
    Family("kandinsky3", "Kandinsky 3", SIZE, alone(GRID)),
    Family("karlo", "Karlo unCLIP, decoder", "64x64", last((32, 32))),
    Family("cascade", "Stable Cascade", "256x128", first((8, 16))),
    Family("animate_diff", "AnimateDiff", SIZE, alone(GRID)),
    Family("svd", "Stable Video Diffusion", SIZE, alone(GRID), pictured=1),
    Family("ltx", "LTX-Video", SMALL, alone((5, 8, 12)), frames=9),
    Family("wan", "Wan 2.1", SMALL, alone(CLIP), frames=9),
    Family("cogvideox", "CogVideoX", SMALL, last(CLIP), frames=9),
    Family("hunyuan_video", "HunyuanVideo", SMALL, first(CLIP), frames=9),
    Family("mochi", "Mochi", SMALL, first((2, 4, 6)), frames=7),
    Family("allegro", "Allegro", SMALL, alone((2, 4, 6)), frames=8),
    Family("latte", "Latte", SMALL, alone((4, 6)), frames=2),
)
