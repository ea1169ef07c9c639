"""Plots: drift by factor, drift against speed, similarity of neighbours over timesteps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

_COLOURS = {
    "nearest": "#333333", "nearest-exact": "#1f77b4", "average": "#e0912f",
    "blend:0.5": "#2ca02c", "staggered": "#d62728",
}  # fmt: skip


def plots(
    rows: Sequence[Mapping[str, Any]], similarity: Mapping[str, Any] | None, path: Path
) -> None:
    """A row of panels for each side of `rows`; the similarities stand in the first."""
    from matplotlib.figure import Figure

    sides = list(dict.fromkeys(r["side"] for r in rows))
    figure = Figure(figsize=(14, 4 * len(sides)), layout="constrained")
    grid = figure.subplots(len(sides), 3, squeeze=False)
    for axes, side in zip(grid, sides, strict=True):
        here = [r for r in rows if r["side"] == side]
        _by_factor(axes[0], here, f"{side} px: drift by factor, first level")
        _pareto(axes[1], here, f"{side} px: drift against speed")
        axes[2].axis("off")
    if similarity:
        _similarity(grid[0][2], similarity)
    figure.savefig(path, dpi=110)


def _by_factor(axes: Any, rows: Sequence[Mapping[str, Any]], title: str) -> None:
    """Factors are categories, and samplings lie side by side: their intervals overlap."""
    simple = [
        r for r in rows if r["kind"] == "todo" and r["factors"].isdigit() and not r["dense_last"]
    ]
    factors = sorted({int(r["factors"]) for r in simple})
    samplings = list(dict.fromkeys(r["sampling"] for r in simple))
    for index, sampling in enumerate(samplings):
        mine = [r for r in simple if r["sampling"] == sampling]
        mean = np.array([r["mean"]["mse"] for r in mine])
        shift = (index - (len(samplings) - 1) / 2) * 0.12
        axes.errorbar(
            [factors.index(int(r["factors"])) + shift for r in mine], mean[:, 0],
            np.abs(mean[:, 1:].T - mean[:, 0]), marker="o", markersize=5, linestyle="", capsize=3,
            label=sampling, color=_COLOURS.get(sampling),
        )  # fmt: skip
    for row in rows:
        if row["kind"] == "control":
            level = row["mean"]["mse"][0]
            axes.axhline(level, linestyle=":", color="grey", linewidth=1)
            axes.annotate(
                row["name"], (0.99, level), xycoords=("axes fraction", "data"),
                xytext=(0, 2), textcoords="offset points", ha="right", fontsize=8, color="grey",
            )  # fmt: skip
    axes.set_yscale("log")
    axes.set_xticks(range(len(factors)), [str(f) for f in factors])
    axes.set_xlabel("factor")
    axes.set_ylabel("MSE to dense, 95 % interval over prompts")
    axes.set_title(title, fontsize=10)
    if simple:
        axes.legend(fontsize=8, loc="lower right")


def _pareto(axes: Any, rows: Sequence[Mapping[str, Any]], title: str) -> None:
    """Drift against the measured speed of a step, with the front of what nothing beats."""
    dense = next((r.get("seconds") for r in rows if r["kind"] == "dense"), None)
    points = [
        (dense / r["seconds"], r["mean"]["mse"][0], r)
        for r in rows
        if dense and r["kind"] in ("todo", "peer") and r.get("seconds")
    ]
    for speed, error, row in points:
        marker = "^" if row["kind"] == "peer" else "s" if row["dense_last"] else "o"
        colour = _COLOURS.get(row["sampling"], "#9467bd")
        axes.plot(speed, error, marker, markersize=5, color=colour)
    front: list[tuple[float, float, Mapping[str, Any]]] = []
    for point in sorted(points, key=lambda p: (-p[0], p[1])):
        if not front or point[1] < front[-1][1]:
            front.append(point)
    axes.step(
        [p[0] for p in front], [p[1] for p in front],
        where="post", color="black", linewidth=0.8, label="nothing is better in both",
    )  # fmt: skip
    named = [*front, *(p for p in points if p[2]["kind"] == "peer" and p not in front)]
    for speed, error, row in named:
        axes.annotate(
            row["name"], (speed, error), xytext=(-5, 5), textcoords="offset points",
            ha="right", fontsize=8,
        )  # fmt: skip
    axes.set_yscale("log")
    axes.margins(x=0.25, y=0.15)
    axes.set_xlabel("steps, × faster than dense (processor time, all steps)")
    axes.set_ylabel("MSE to dense")
    axes.set_title(title + " (squares: last steps dense; triangles: peers)", fontsize=10)
    if front:
        axes.legend(fontsize=8, loc="upper left")


def _similarity(axes: Any, similarity: Mapping[str, Any]) -> None:
    """A line a site, named at its end."""
    axes.axis("on")
    times = similarity["timesteps"]
    named = sorted(similarity["sites"].items(), key=lambda item: item[1]["similarity"][-1])
    low = min(min(row["similarity"]) for _, row in named)
    high = max(max(row["similarity"]) for _, row in named)
    at = -1.0
    for name, row in named:
        (line,) = axes.plot(times, row["similarity"], linewidth=1.5)
        at = max(row["similarity"][-1], at + 0.035 * (high - low))  # names must not overlap
        label = f"{_short(name)}, {row['grid'][0]}×{row['grid'][1]}"
        axes.annotate(
            label, (times[-1], at), xytext=(5, 0), textcoords="offset points", va="center",
            fontsize=8, color=line.get_color(), annotation_clip=False,
        )  # fmt: skip
    axes.set_xlim(max(times), min(times) - 0.38 * (max(times) - min(times)))
    axes.set_xticks([t for t in (1000, 800, 600, 400, 200) if min(times) <= t <= max(times)])
    axes.set_xlabel("timestep (noise on the left)")
    axes.set_ylabel("cosine similarity of neighbouring tokens")
    axes.set_title("how alike neighbours are, by site", fontsize=10)


def _short(name: str) -> str:
    """``up_blocks.2.attentions.1.transformer_blocks.0.attn1`` → ``up 2.1``."""
    parts = name.split(".")
    numbers = [p for p in parts if p.isdigit()]
    if parts[0] == "mid_block":
        return "mid"
    return f"{parts[0].removesuffix('_blocks')} {'.'.join(numbers[:2])}"
