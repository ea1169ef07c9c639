"""The plan as a picture: every site's key tokens before and after, and the FLOPs by part."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from todo_compile.errors import ConfigError

if TYPE_CHECKING:
    from todo_compile.drift import Drift
    from todo_compile.passes.report import Report

_DENSE, _AFTER, _REST = "#b8bfca", "#1f77b4", "#e3c16f"


def plot_plan(report: Report, path: Path, title: str) -> None:
    """Write a picture of `report` (format by suffix, e.g. .png, .svg).

    Raises:
        ConfigError: matplotlib is absent, the suffix is unknown, or the file cannot be written.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ConfigError(
            "--plot needs matplotlib.", remedy='Install it: pip install "todo-compile[plot]"'
        ) from error
    sites = [s for s in report.sites if s.kind != "cross"]
    figure = Figure(figsize=(10, 2.2 + 0.24 * max(len(sites), 6)), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(3, 1))
    positions = list(range(len(sites)))
    left.barh(positions, [s.key_tokens for s in sites], color=_DENSE, label="dense")
    left.barh(
        positions, [s.key_tokens_after for s in sites], color=_AFTER, height=0.45, label="rewritten"
    )
    left.set_yticks(positions, [f"{s.module or s.name}" for s in sites], fontsize=6)
    left.invert_yaxis()
    left.set_xscale("log")
    left.set_xlabel("key/value tokens")
    left.legend(loc="lower right", fontsize=7)
    totals = report.totals
    attention = (totals.attention_flops, totals.attention_flops_after)
    rest = (totals.flops - attention[0], totals.flops_after - attention[1])
    scale = 1e12
    right.bar((0, 1), [r / scale for r in rest], color=_REST, label="everything else")
    right.bar(
        (0, 1),
        [a / scale for a in attention],
        bottom=[r / scale for r in rest],
        color=_AFTER,
        label="attention",
    )
    right.set_xticks((0, 1), ("dense", "rewritten"))
    right.set_ylabel("TFLOPs per call")
    right.legend(fontsize=7)
    figure.suptitle(title, fontsize=10)
    try:
        figure.savefig(path, dpi=150)
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"The plot {path} cannot be written: {error}.",
            remedy="Give --plot a file such as plan.png in a folder that exists.",
        ) from error


def plot_drift(drift: Drift, path: Path, title: str) -> None:
    """Relative error over the timestep: the whole plan, and every site alone.

    Raises:
        ConfigError: as `plot_plan`.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ConfigError(
            "--plot needs matplotlib.", remedy='Install it: pip install "todo-compile[plot]"'
        ) from error
    figure = Figure(figsize=(9, 5), layout="constrained")
    axes = figure.subplots()
    axes.plot(drift.timesteps, drift.total, "k-o", linewidth=2, label="all sites")
    for site in drift.sites:
        axes.plot(
            drift.timesteps,
            site.output or site.local,
            "-o",
            markersize=3,
            label=f"{site.module or site.name}, {site.factor[0]}×{site.factor[1]}",
        )
    if any(v > 0 for v in drift.total):
        axes.set_yscale("log")
    axes.invert_xaxis()
    axes.set_xlabel("timestep (noise on the left)")
    axes.set_ylabel("relative error")
    axes.legend(fontsize=6, loc="center left", bbox_to_anchor=(1, 0.5))
    figure.suptitle(title, fontsize=10)
    try:
        figure.savefig(path, dpi=150)
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"The plot {path} cannot be written: {error}.",
            remedy="Give --plot a file such as drift.png in a folder that exists.",
        ) from error
