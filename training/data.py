"""Pictures with prompts: emoji on plain grounds, alone, in rows and in patterns.

The pictures are Microsoft's Fluent Emoji (MIT), 256 px with transparency, from npm. A *tile* is
128 px; canvases are whole tiles, and objects have about one tile, or two in the large singles.
"""

from __future__ import annotations

import json
import random
import shutil
import subprocess
import tarfile
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

from training.subjects import BACKGROUNDS, PLAIN, SUBJECTS, Subject

TILE = 128
"""Side of one object's cell in pixels."""

Array = np.ndarray
OBJECT = 112
"""Side of an object in pixels. Objects move by whole latent cells (8 px), and their size is fixed:
the model is to learn a few pictures well on little compute, not to generalise."""
_CELL = 8


def download(folder: Path) -> Path:
    """The folder of WebP files, fetched from npm (16 MB) where it is missing.

    Raises:
        RuntimeError: npm is missing or fails.
    """
    return _npm(folder, "@lobehub/fluent-emoji-3d", "1.1.0") / "assets"


def download_names(folder: Path) -> Path:
    """The JSON file of all emoji's names, fetched from npm (72 kB) where it is missing.

    Raises:
        RuntimeError: npm is missing or fails.
    """
    return _npm(folder, "unicode-emoji-json", "0.9.0") / "data-by-emoji.json"


def _npm(folder: Path, name: str, version: str) -> Path:
    home = folder / name.rpartition("/")[2]
    if (home / "package").is_dir():
        return home / "package"
    folder.mkdir(parents=True, exist_ok=True)
    npm = shutil.which("npm")
    if npm is None:
        raise RuntimeError("npm is needed to fetch the pictures: install Node.js.")
    done = subprocess.run(
        [npm, "pack", "--json", f"{name}@{version}"],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"npm pack failed: {done.stderr.strip()[-300:]}")
    archive = folder / json.loads(done.stdout)[0]["filename"]
    unpacked = home.with_name(home.name + ".partial")
    shutil.rmtree(unpacked, ignore_errors=True)
    with tarfile.open(archive) as tar:
        tar.extractall(unpacked, filter="data")
    unpacked.rename(home)
    return home / "package"


@dataclass
class Scenes:
    """Draws canvases and their prompts; every draw depends on the generator given alone.

    Attributes:
        assets: folder of the WebP files.
        subjects: what may be drawn.
        large: share of large single objects among the canvases of 2 × 2 tiles.
        reach: how far objects move from the middle of their cell, in latent cells.
        named: share of canvases with a background that the prompt names.
    """

    assets: Path
    subjects: tuple[Subject, ...] = SUBJECTS
    large: float = 0.0
    reach: int = 0
    named: float = 0.15
    _cache: dict[tuple[str, int], Array] = field(default_factory=dict, repr=False)

    def deal(self, number: int) -> Subject:
        """Subject `number` of an endless sequence in which each comes once in every round."""
        turn, place = divmod(number, len(self.subjects))
        order = list(self.subjects)
        random.Random(turn).shuffle(order)
        return order[place]

    def draw(
        self, rng: random.Random, rows: int, columns: int, subject: Subject | None = None
    ) -> tuple[Array, str]:
        """One canvas of `rows` × `columns` tiles.

        A single tile holds one object, everything else a pattern of one subject; but a share
        `large` of the squares of 2 × 2 holds one object of twice the size.

        Returns:
            (canvas, prompt) of `subject`, by default any; float32 (3, H, W) in [-1, 1].
        """
        subject = subject or rng.choice(self.subjects)
        ground, name = PLAIN, ""
        if rng.random() < self.named:
            name, ground = rng.choice(list(BACKGROUNDS.items()))
        suffix = f" on a {name} background" if name else ""
        if (rows, columns) == (1, 1) or (rows == columns == 2 and rng.random() < self.large):
            canvas = self.single(rng, subject, ground, rows * TILE)
            phrase = rng.choice(
                (subject.one, subject.one, subject.bare, f"a picture of {subject.one}")
            )
            return canvas, phrase + suffix
        canvas = self.pattern(rng, subject, ground, rows, columns)
        return canvas, subject.pattern + suffix

    def single(
        self, rng: random.Random, subject: Subject, ground: tuple[int, int, int], side: int
    ) -> Array:
        """One object on a square canvas of `side` pixels, a multiple of `TILE`."""
        canvas = _ground(ground, side, side)
        scale = side // TILE
        self._paste(rng, canvas, subject, OBJECT * scale, (0, 0), side)
        return _signed(canvas)

    def pattern(
        self,
        rng: random.Random,
        subject: Subject,
        ground: tuple[int, int, int],
        rows: int,
        columns: int,
    ) -> Array:
        """The same object in every tile, each a little off its place."""
        canvas = _ground(ground, rows * TILE, columns * TILE)
        for row in range(rows):
            for column in range(columns):
                self._paste(rng, canvas, subject, OBJECT, (row * TILE, column * TILE), TILE)
        return _signed(canvas)

    def _paste(
        self,
        rng: random.Random,
        canvas: Array,
        subject: Subject,
        side: int,
        corner: tuple[int, int],
        cell: int,
    ) -> None:
        picture = self._picture(subject.code, side)
        middle = (cell - side) // (2 * _CELL)
        reach = min(middle, self.reach)
        top = corner[0] + _CELL * (middle + rng.randint(-reach, reach))
        left = corner[1] + _CELL * (middle + rng.randint(-reach, reach))
        target = canvas[top : top + side, left : left + side]
        alpha = picture[..., 3:]
        target *= 1 - alpha
        target += picture[..., :3] * alpha

    def _picture(self, code: str, side: int) -> Array:
        """RGBA in [0, 1], (side, side, 4)."""
        found = self._cache.get((code, side))
        if found is None:
            with Image.open(self.assets / f"{code}.webp") as image:
                # Premultiplied while resizing, or the colour of clear pixels bleeds in.
                resized = image.convert("RGBa").resize((side, side), Image.Resampling.LANCZOS)
            found = np.asarray(resized.convert("RGBA"), dtype=np.float32) / 255
            self._cache[code, side] = found
        return found


def _ground(colour: tuple[int, int, int], height: int, width: int) -> Array:
    canvas = np.empty((height, width, 3), np.float32)
    canvas[:] = np.asarray(colour, np.float32) / 255
    return canvas


def _signed(canvas: Array) -> Array:
    return np.ascontiguousarray(canvas.transpose(2, 0, 1)) * 2 - 1
