"""One look for every picture: its colours, letters and margins."""

from __future__ import annotations

import re
from itertools import combinations, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from todo_compile import style

ROOT = Path(__file__).parents[1]
DRAWING = ("todo_compile", "benchmarks", "examples")
# Linear RGB as a deuteranope and a protanope see it (Viénot, Brettel and Mollon, 1999).
BLIND = {
    "deutan": [[0.29275, 0.70725, 0], [0.29275, 0.70725, 0], [-0.02234, 0.02234, 1]],
    "protan": [[0.11238, 0.88762, 0], [0.11238, 0.88762, 0], [0.00401, -0.00401, 1]],
}


def _linear(colour: str) -> np.ndarray:
    value = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    return np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4)


def _lab(linear: np.ndarray) -> np.ndarray:
    """CIE L*a*b*, D65."""
    to_xyz = [[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]
    xyz = np.array(to_xyz) @ linear.clip(0, 1) / [0.9505, 1.0, 1.089]
    f = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


@pytest.mark.parametrize("kind", BLIND)
def test_colours_are_told_apart(kind: str) -> None:
    seen = [_lab(np.array(BLIND[kind]) @ _linear(c)) for c in style.COLOURS]
    for (i, one), (j, other) in combinations(enumerate(seen), 2):
        assert np.linalg.norm(one - other) > 14, (style.COLOURS[i], style.COLOURS[j])
    # Red and green of one lightness are not: the measure sees it.
    red, green = (_lab(np.array(BLIND[kind]) @ _linear(c)) for c in ("#b35a00", "#7f7a00"))
    assert np.linalg.norm(red - green) < 14


def test_no_colour_stands_elsewhere() -> None:
    """Whoever draws takes the colours from here."""
    found = {
        f"{path.relative_to(ROOT)}: {colour}"
        for folder in DRAWING
        for path in (ROOT / folder).rglob("*.py")
        if path.name != "style.py"
        for colour in re.findall(
            r"[\"'](#[0-9a-fA-F]{6}|tab:\w+|C\d)[\"']", path.read_text("utf-8")
        )
    }
    assert found <= {"todo_compile/cli/plots.py: #c9a227"}, "the edge of what is hatched"


def test_pillows_letters_have_no_empty_boxes() -> None:
    font = style.letters(16)
    box = font.getmask("\uffff")
    for text, said in (
        ("difference × 8", "difference x 8"), ("4,096 → 256", "4,096 -> 256"), ("café", "cafe"),
        ("“a cat”, 36 dB", "“a cat”, 36 dB"), ("ein Bär 熊\nunten", "ein Bar ?\nunten"),
    ):  # fmt: skip
        assert style.spelled(text, font) == said
        for letter in said.replace("\n", ""):
            mask = font.getmask(letter)
            assert (mask.size, bytes(mask)) != (box.size, bytes(box)), letter


def test_names_in_the_margin_do_not_overlap() -> None:
    with style.plot(3) as figure:
        axes = figure.subplots()
        axes.set_ylim(0, 1)
        ends = [(1.0, y, f"site {y}", style.INK) for y in (0.5, 0.51, 0.52, 0.98, 0.99, 1.0)]
        figure.draw_without_rendering()
        style.name_ends(axes, ends)
        figure.draw_without_rendering()
        boxes = sorted((t.get_window_extent() for t in axes.texts), key=lambda box: box.y0)
        right = axes.get_window_extent().x1
        # Of the words alone: the extent has the leader line too, so heights are compared.
        places: list[Any] = [getattr(text, "xyann") for text in axes.texts]  # noqa: B009
        middles = sorted(y for _, y in places)
    assert len(boxes) == 6
    assert all(x > 1 for x, _ in places)
    assert right < figure.bbox.x1 - 40, "there is room for them"
    assert all(b - a >= 0.0599 for a, b in pairwise(middles))
    assert middles[-1] <= 1.0
