"""How our pictures look: colours, letters and sizes, for plots and for captions of drawn pictures.

Colours are those of Okabe and Ito (jfly.uni-koeln.de/color), which the colour-blind tell apart;
their order here differs in lightness too, so that prints in grey work. Sizes are for a picture that
a README shows 830 pixels wide: a plot is `WIDTH` inches, whose smallest letters are 12 pixels then.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from todo_compile import packages

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from PIL.ImageFont import FreeTypeFont, ImageFont

INK, QUIET, PAPER = "#222222", "#666666", "#ffffff"
# What stays, what is ours, what is saved.
GREY, BLUE, SAND = "#999999", "#0072b2", "#f3e6c4"
COLOURS = (BLUE, "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#000000")
# Lines and points differ in shape too.
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
WIDTH = 9.0
SMALL = 9  # points

_PLOTS: dict[str, Any] = {
    "font.family": "DejaVu Sans",  # comes with matplotlib
    "font.size": 10,
    "figure.facecolor": PAPER,
    "savefig.dpi": 150,
    "text.color": INK,
    "axes.edgecolor": QUIET,
    "axes.labelcolor": INK,
    "axes.titlesize": 11,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "grid.color": "#dddddd",
    "grid.linewidth": 0.8,
    "xtick.color": QUIET,
    "ytick.color": QUIET,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "legend.frameon": False,
    "legend.fontsize": SMALL,
    "lines.linewidth": 1.6,
    "lines.markersize": 5,
    "errorbar.capsize": 3,
    "hatch.linewidth": 0.6,
    "svg.fonttype": "none",
}


@contextmanager
def plot(height: float, purpose: str = "A plot") -> Generator[Figure]:
    """A figure in our style, `WIDTH` × `height` inches; draw and save it inside.

    Args:
        height: in inches.
        purpose: what needs matplotlib, see `packages.need`.

    Raises:
        MissingPackageError: matplotlib is absent.
    """
    figures = packages.load("matplotlib.figure", purpose)
    cycler = packages.load("cycler", purpose).cycler
    settings = {**_PLOTS, "axes.prop_cycle": cycler(color=COLOURS)}
    with packages.load("matplotlib", purpose).rc_context(settings):
        yield figures.Figure(figsize=(WIDTH, height), layout="constrained")


def title(figure: Figure, finding: str, where: str = "") -> None:
    """Say what a plot shows, in a sentence; in quieter letters below, of what.

    Long ones are broken to the plot's width.
    """
    import textwrap

    lines = [*textwrap.wrap(finding, 84)]
    figure.suptitle(
        "\n".join(lines), x=0.01, ha="left", fontsize=12, fontweight="bold", parse_math=False
    )  # names from elsewhere
    if where:
        figure.axes[0].set_title("\n".join(textwrap.wrap(where, 110)), fontsize=10, color=QUIET)


def legend(axes: Any, **options: Any) -> None:
    """A legend below the axes, where no data are."""
    handles, _ = axes.get_legend_handles_labels()
    if handles:
        settings = {"loc": "upper left", "bbox_to_anchor": (0, -0.16), "borderaxespad": 0.0}
        axes.legend(**{"ncols": 2, **settings, **options})


def name_ends(axes: Any, ends: list[tuple[float, float, str, str]], *, least: float = 0.06) -> None:
    """Write names into the margin at the right of what they name, without overlaps.

    Args:
        axes: with its final limits and scales.
        ends: x and y of the point, name and colour.
        least: distance of two names, as a share of the axes' height.
    """
    inverse = axes.transAxes.inverted()
    at = [(axes.transData.transform((x, y)), name, colour) for x, y, name, colour in ends]
    placed = sorted((inverse.transform(p)[1], tuple(p), name, colour) for p, name, colour in at)
    # From below upwards, then moved down together where the top is passed.
    heights: list[float] = []
    for wanted, *_ in placed:
        heights.append(max(wanted, heights[-1] + least) if heights else wanted)
    for i in range(len(heights) - 1, -1, -1):
        most = 1.0 if i == len(heights) - 1 else heights[i + 1] - least
        heights[i] = min(heights[i], most)
    for height, (_, point, name, colour) in zip(heights, placed, strict=True):
        axes.annotate(
            name, inverse.transform(point), xycoords="axes fraction", xytext=(1.03, height),
            textcoords="axes fraction", va="center", fontsize=SMALL, color=colour,
            annotation_clip=False, parse_math=False,
            arrowprops={
                "arrowstyle": "-", "color": "#bbbbbb", "linewidth": 0.7, "shrinkB": 4,
                "relpos": (0, 0.5),
            },
        )  # fmt: skip


def letters(size: int) -> FreeTypeFont | ImageFont:
    """Pillow's own letters, in pixels; what they lack is spelled by `spelled`."""
    from PIL import ImageFont

    return ImageFont.load_default(size)


_SPELLED = {"×": "x", "→": "->", "²": "2", "–": "-", "≤": "<=", "…": "..."}


def spelled(text: str, font: Any) -> str:
    """`text` with every letter that `font` has no picture of spelled by ones that it has.

    Accents are left out; what has no spelling becomes a question mark instead of an empty box.
    """
    absent = _picture(font, "\uffff")

    def one(letter: str) -> str:
        if letter == "\n" or _picture(font, letter) != absent:
            return letter
        base = unicodedata.normalize("NFKD", letter)[0]
        return _SPELLED.get(letter) or (base if _picture(font, base) != absent else "?")

    return "".join(map(one, text))


def _picture(font: Any, letter: str) -> bytes:
    mask = font.getmask(letter)
    return bytes(mask) + bytes(str(mask.size), "ascii")


def save(figure: Figure, path: Path, kind: str | None = None) -> None:
    """Write a plot, the same bytes for the same data; `kind` is its format if not the suffix."""
    kind = kind or path.suffix.removeprefix(".").lower()
    figure.savefig(path, format=kind, metadata={"Software": None} if kind == "png" else None)
