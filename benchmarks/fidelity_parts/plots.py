"""Plots: drift by factor, drift against speed, similarity of neighbours over timesteps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from todo_compile import style

# A sampling keeps its colour and shape in every plot.
_SAMPLINGS = ("nearest", "staggered", "average", "nearest-exact", "blend:0.5")
_KINDS = {"todo": ("o", "throughout"), "late": ("s", "last steps dense"), "peer": ("^", "a peer")}
Rows = Sequence[Mapping[str, Any]]
_BAND = 4.6  # inches a side


def plots(rows: Rows, similarity: Mapping[str, Any] | None, path: Path) -> None:
    """Two panels for each side of `rows`; below them the similarities."""
    sides = list(dict.fromkeys(r["side"] for r in rows))
    high = (_BAND * len(sides) + (3.6 if similarity else 0)) or 1.0
    with style.plot(high) as figure:
        figure.set_layout_engine("none")  # what stands where is the same for every run
        top = high
        for side in sides:
            here = [r for r in rows if r["side"] == side]
            bottom, height = (top - _BAND + 1.15) / high, (_BAND - 1.85) / high
            _by_factor(figure.add_axes((0.09, bottom, 0.27, height)), here)
            right = figure.add_axes((0.47, bottom, 0.29, height))
            front = _pareto(figure, right, here)
            _head(figure, _finding(side, here, front), (top - 0.12) / high)
            top -= _BAND
        if similarity:
            axes = figure.add_axes((0.09, 0.55 / high, 0.75, (top - 1.15) / high))
            _head(figure, _similarity(figure, axes, similarity), (top - 0.2) / high)
        style.save(figure, path)


def _head(figure: Any, words: str, height: float) -> None:
    figure.text(0.01, height, words, va="top", fontsize=11, fontweight="bold")


def _look(sampling: str) -> tuple[str, str]:
    """Colour and marker."""
    at = _SAMPLINGS.index(sampling) if sampling in _SAMPLINGS else len(_SAMPLINGS)
    return style.COLOURS[at], style.MARKERS[at]


def _simple(rows: Rows) -> list[Mapping[str, Any]]:
    """One factor at the first level, in all steps."""
    return [
        r for r in rows if r["kind"] == "todo" and r["factors"].isdigit() and not r["dense_last"]
    ]


def _finding(side: int, rows: Rows, front: Rows) -> str:
    """What a person should see, from the numbers."""
    nearest = {
        int(r["factors"]): r["mean"]["mse"][0] for r in _simple(rows) if r["sampling"] == "nearest"
    }
    said = f"{side} px"
    if len(nearest) > 1:
        low, high = min(nearest), max(nearest)
        said += f": factor {high} drifts {nearest[high] / nearest[low]:.0f}× as far as {low}"
    if front and front[-1]["dense_last"]:
        said += "; least with the last steps dense"
    return said


def _by_factor(axes: Any, rows: Rows) -> None:
    """Factors are categories, and samplings lie side by side: their intervals overlap."""
    simple = _simple(rows)
    factors = sorted({int(r["factors"]) for r in simple})
    samplings = list(dict.fromkeys(r["sampling"] for r in simple))
    for index, sampling in enumerate(samplings):
        mine = [r for r in simple if r["sampling"] == sampling]
        mean = np.array([r["mean"]["mse"] for r in mine])
        shift = (index - (len(samplings) - 1) / 2) * 0.12
        colour, marker = _look(sampling)
        axes.errorbar(
            [factors.index(int(r["factors"])) + shift for r in mine], mean[:, 0],
            np.abs(mean[:, 1:].T - mean[:, 0]), marker=marker, linestyle="", label=sampling,
            color=colour,
        )  # fmt: skip
    for row in rows:
        if row["kind"] == "control":
            level = row["mean"]["mse"][0]
            axes.axhline(level, linestyle=":", color=style.QUIET, linewidth=1)
            axes.annotate(
                row["name"], (1, level), xycoords=("axes fraction", "data"), xytext=(0, 2),
                textcoords="offset points", ha="right", fontsize=style.SMALL, color=style.QUIET,
            )  # fmt: skip
    axes.set_yscale("log")
    axes.set_xticks(range(len(factors)), [str(f) for f in factors])
    axes.set_xlim(-0.5, max(len(factors) - 0.5, 0.5))
    axes.set_xlabel("factor of the first level")
    axes.set_ylabel("MSE to dense, 95 % interval over prompts")
    axes.set_title("by factor", fontsize=10)
    axes.grid(axis="y")
    style.legend(axes, bbox_to_anchor=(0, -0.24))


def _pareto(figure: Any, axes: Any, rows: Rows) -> Rows:
    """Drift against the measured speed of a step, with the front of what nothing beats."""
    dense = next((r.get("seconds") for r in rows if r["kind"] == "dense"), None)
    points = [
        (dense / r["seconds"], r["mean"]["mse"][0], r)
        for r in rows
        if dense and r["kind"] in ("todo", "peer") and r.get("seconds")
    ]
    for kind, (marker, name) in _KINDS.items():
        mine = [p for p in points if ("late" if p[2]["dense_last"] else p[2]["kind"]) == kind]
        for speed, error, row in mine:
            axes.plot(speed, error, marker, color=_look(row["sampling"])[0])
        if mine:
            axes.plot([], [], marker, color=style.QUIET, label=name)
    front: list[tuple[float, float, Mapping[str, Any]]] = []
    for point in sorted(points, key=lambda p: (-p[0], p[1])):
        if not front or point[1] < front[-1][1]:
            front.append(point)
    axes.step(
        [p[0] for p in front], [p[1] for p in front], where="post", color=style.INK,
        linewidth=0.8, label="nothing is better in both",
    )  # fmt: skip
    axes.set_yscale("log")
    axes.margins(x=0.22, y=0.1)
    axes.set_xlabel("steps, × faster than dense")
    axes.set_ylabel("MSE to dense")
    axes.set_title("against speed (processor time, all steps)", fontsize=10)
    axes.grid()
    style.legend(axes, bbox_to_anchor=(0, -0.24))
    for speed, error, row in points:
        if row["kind"] == "peer":
            axes.annotate(
                row["name"], (speed, error), xytext=(0, -6), textcoords="offset points",
                ha="center", va="top", fontsize=style.SMALL, color=_look(row["sampling"])[0],
            )  # fmt: skip
    named = [p for p in front if p[2]["kind"] != "peer"]
    figure.draw_without_rendering()
    style.name_ends(axes, [(x, y, r["name"], _look(r["sampling"])[0]) for x, y, r in named])
    return [row for *_, row in front]


def _similarity(figure: Any, axes: Any, similarity: Mapping[str, Any]) -> str:
    """A line a site, named at its end; returns the finding."""
    times = similarity["timesteps"]
    ends: list[tuple[float, float, str, str]] = []
    for index, (name, row) in enumerate(sorted(similarity["sites"].items())):
        colour = style.COLOURS[index % len(style.COLOURS)]
        axes.plot(times, row["similarity"], marker=style.MARKERS[index % 7], color=colour)
        label = f"{_short(name)}, {row['grid'][0]}×{row['grid'][1]}"
        ends.append((times[-1], row["similarity"][-1], label, colour))
    axes.invert_xaxis()
    axes.set_xlabel("timestep (noise on the left)")
    axes.set_ylabel("cosine similarity")
    axes.grid(axis="y")
    most, least = (choose(ends, key=lambda e: e[1]) for choose in (max, min))
    figure.draw_without_rendering()
    style.name_ends(axes, ends)
    return (
        f"Neighbouring tokens are most alike in {most[2]} ({most[1]:.2f} at the end), "
        f"least in {least[2]} ({least[1]:.2f})"
    )


def _short(name: str) -> str:
    """``up_blocks.2.attentions.1.transformer_blocks.0.attn1`` → ``up 2.1``."""
    parts = name.split(".")
    numbers = [p for p in parts if p.isdigit()]
    if parts[0] == "mid_block":
        return "mid"
    return f"{parts[0].removesuffix('_blocks')} {'.'.join(numbers[:2])}"
