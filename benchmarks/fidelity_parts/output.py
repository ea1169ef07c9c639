"""Tables, plots and contact sheets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fidelity_parts.harness import Drawn
from fidelity_parts.model import Pair

_COLOURS = {
    "nearest": "#444444", "nearest-exact": "#1f77b4", "average": "#e3a44f",
    "blend:0.5": "#2ca02c", "staggered": "#d62728",
}  # fmt: skip


def markdown(rows: Sequence[Mapping[str, Any]]) -> str:
    """One table a size: mean [95 % interval, over prompts]."""
    lines: list[str] = []
    for side in dict.fromkeys(r["side"] for r in rows):
        here = [r for r in rows if r["side"] == side]
        lines += [
            f"### {side} px, {here[0]['pairs']} prompt × seed pairs",
            "",
            "| setting | MSE | PSNR | HPF / dense | SSIM | MS-SSIM | perceptual "
            "| KID to real (change) | MSE / nearest | attention FLOPs |",
            "|---|---|---|---|---|---|---|---|---|---|",
        ]
        dense = next((r["attention_flops"] for r in here if r["kind"] == "dense"), None)
        for row in here:
            mean = row["mean"]
            low_high = "{:.2e} [{:.2e}, {:.2e}]".format(*mean["mse"])
            cells = [
                row["name"], low_high, f"{mean['psnr'][0]:.1f}", _hpf(row),
                _cell(mean, "ssim"), _cell(mean, "ms_ssim"), _cell(mean, "perceptual"),
                _kid(row), _ratio(row.get("against_nearest")),
                f"{dense / row['attention_flops']:.1f}× fewer"
                if dense and row["attention_flops"] else "–",
            ]  # fmt: skip
            lines.append("| " + " | ".join(cells) + " |")
        lines.append("")
    return "\n".join(lines)


def _cell(mean: Mapping[str, Any], name: str) -> str:
    return f"{mean[name][0]:.4f}" if name in mean else "–"


def _hpf(row: Mapping[str, Any]) -> str:
    low, high = row["hpf_interval"]
    return f"{row['hpf_ratio']:.4f} [{low:.4f}, {high:.4f}]"


def _kid(row: Mapping[str, Any]) -> str:
    if "kid" not in row:
        return "–"
    change = row.get("kid_change")
    told = "" if change is None or row["kind"] == "dense" else " ({:+.4f} [{:+.4f}, {:+.4f}])"
    return f"{row['kid']:.4f}" + (told.format(*change) if told else "")


def _ratio(found: Mapping[str, Any] | None) -> str:
    if found is None:
        return "–"
    p = f", p = {found['p']:.1e}" if found["p"] is not None else ""
    return f"{found['ratio']:.2f} [{found['low']:.2f}, {found['high']:.2f}]{p}"


def plots(
    rows: Sequence[Mapping[str, Any]], similarity: Mapping[str, Any] | None, path: Path
) -> None:
    """Drift over factor by sampling; drift against attention FLOPs; similarity over timesteps."""
    from matplotlib.figure import Figure

    sides = list(dict.fromkeys(r["side"] for r in rows))
    figure = Figure(figsize=(13, 3.6 * len(sides)), layout="constrained")
    grid = figure.subplots(len(sides), 3, squeeze=False)
    for axes, side in zip(grid, sides, strict=True):
        here = [r for r in rows if r["side"] == side]
        _by_factor(axes[0], here, side)
        _pareto(axes[1], here)
        axes[2].axis("off")
    if similarity:
        axes = grid[0][2]
        axes.axis("on")
        for name, row in similarity["sites"].items():
            label = f"{name.replace('.transformer_blocks', '')} {row['grid'][0]}×{row['grid'][1]}"
            axes.plot(similarity["timesteps"], row["similarity"], label=label)
        axes.invert_xaxis()
        axes.set_xlabel("timestep (noise on the left)")
        axes.set_ylabel("cosine similarity of neighbours")
        axes.legend(fontsize=5)
    figure.savefig(path, dpi=130)


def _by_factor(axes: Any, rows: Sequence[Mapping[str, Any]], side: int) -> None:
    simple = [
        r for r in rows if r["kind"] == "todo" and r["factors"].isdigit() and not r["dense_last"]
    ]
    for sampling in dict.fromkeys(r["sampling"] for r in simple):
        mine = sorted(
            (r for r in simple if r["sampling"] == sampling), key=lambda r: int(r["factors"])
        )
        mean = np.array([r["mean"]["mse"] for r in mine])
        axes.errorbar(
            [int(r["factors"]) for r in mine], mean[:, 0],
            np.abs(mean[:, 1:].T - mean[:, 0]), marker="o", capsize=3, label=sampling,
            color=_COLOURS.get(sampling),
        )  # fmt: skip
    for row in rows:
        if row["kind"] == "control":
            axes.axhline(row["mean"]["mse"][0], linestyle=":", color="grey", linewidth=1)
            at = (1, row["mean"]["mse"][0])
            axes.annotate(
                row["name"], at, xycoords=("axes fraction", "data"), ha="right", fontsize=6
            )
    axes.set_yscale("log")
    axes.set_xlabel("factor")
    axes.set_ylabel("MSE to dense")
    axes.set_title(f"{side} px", fontsize=9)
    if simple:
        axes.legend(fontsize=6)


def _pareto(axes: Any, rows: Sequence[Mapping[str, Any]]) -> None:
    """Drift against the FLOPs of a denoising step, with the front of what nothing beats."""
    points = [r for r in rows if r["kind"] == "todo" and r["flops"]]
    for row in points:
        axes.plot(row["flops"] / 1e9, row["mean"]["mse"][0], "o", markersize=4,
                  color=_COLOURS.get(row["sampling"]))  # fmt: skip
        axes.annotate(row["name"], (row["flops"] / 1e9, row["mean"]["mse"][0]), fontsize=4)
    front: list[Mapping[str, Any]] = []
    for row in sorted(points, key=lambda r: (r["flops"], r["mean"]["mse"][0])):
        if not front or row["mean"]["mse"][0] < front[-1]["mean"]["mse"][0]:
            front.append(row)
    axes.step([r["flops"] / 1e9 for r in front], [r["mean"]["mse"][0] for r in front],
              where="post", color="black", linewidth=0.8, label="Pareto front")  # fmt: skip
    axes.set_yscale("log")
    axes.set_xlabel("GFLOPs of a step with guidance")
    axes.set_ylabel("MSE to dense")
    axes.legend(fontsize=6)


def contact_sheet(
    drawn: Mapping[tuple[int, str], Drawn],
    side: int,
    pairs: Sequence[Pair],
    path: Path,
    limit: int = 6,
) -> None:
    """A row a setting: the first pictures, each with its difference from dense × 8 below it."""
    from PIL import Image, ImageDraw

    names = [name for s, name in drawn if s == side and drawn[s, name].pictures]
    shown = [p for p in pairs if p.key in drawn[side, "dense"].pictures][:limit]
    cell = min(side, 192)
    label = 150
    sheet = Image.new("RGB", (label + cell * len(shown), cell * (2 * len(names) - 1)), "white")
    draw = ImageDraw.Draw(sheet)
    top = 0
    for name in names:
        draw.text(
            (4, top + 4),
            f"{name}\n\nbelow: difference\nfrom dense x 8" if top else name,
            fill="black",
        )
        for column, pair in enumerate(shown):
            picture = np.asarray(drawn[side, name].pictures[pair.key], np.float32)
            dense = np.asarray(drawn[side, "dense"].pictures[pair.key], np.float32)
            layers = (
                [picture]
                if name == "dense"
                else [picture, (np.abs(picture - dense) * 8).clip(0, 1)]
            )
            for row, layer in enumerate(layers):
                image = Image.fromarray((layer * 255).round().astype(np.uint8)).resize((cell, cell))
                sheet.paste(image, (label + column * cell, top + row * cell))
        top += cell * (1 if name == "dense" else 2)
    sheet.save(path, quality=72)
