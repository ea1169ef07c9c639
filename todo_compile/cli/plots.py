"""The plan as a picture: every site's key tokens before and after, and the FLOPs by part."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from todo_compile import packages
from todo_compile.errors import ConfigError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from todo_compile.drift.measure import Drift
    from todo_compile.passes.report import Report

_DENSE, _AFTER, _REST = "#b8bfca", "#1f77b4", "#e3c16f"


def check_plot(path: Path, example: str) -> None:
    """Refuse now what would be refused after minutes of work.

    Args:
        path: of the plot.
        example: a name that would do, for the remedy.

    Raises:
        MissingPackageError: matplotlib is absent.
        ConfigError: the suffix is unknown, or the file cannot be written.
    """
    known = _figure().canvas.get_supported_filetypes()
    suffix = path.suffix.lower().removeprefix(".")  # none: matplotlib adds .png
    if suffix and suffix not in known:
        raise _unwritable(path, f"its format {suffix} is none of {', '.join(known)}", example)
    if not path.parent.is_dir():
        raise _unwritable(path, "its folder does not exist", example)
    if path.is_dir():
        raise _unwritable(path, "it is a folder", example)
    if not os.access(path if path.exists() else path.parent, os.W_OK):
        raise _unwritable(path, "permission denied", example)


def plot_plan(report: Report, path: Path, title: str) -> None:
    """Write a picture of `report` (format by suffix, e.g. .png, .svg).

    Raises:
        MissingPackageError: matplotlib is absent.
        ConfigError: the suffix is unknown, or the file cannot be written.
    """
    sites = [s for s in report.sites if s.kind != "cross"]
    figure = _figure(figsize=(10, 2.2 + 0.24 * max(len(sites), 6)), layout="constrained")
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
    figure.suptitle(title, fontsize=10, parse_math=False)
    _save(figure, path, "plan.png")


def plot_drift(drift: Drift, path: Path, title: str) -> None:
    """Relative error over the timestep: the whole plan, and every site alone.

    Raises:
        ConfigError: as `plot_plan`.
    """
    figure = _figure(figsize=(9, 5), layout="constrained")
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
    figure.suptitle(title, fontsize=10, parse_math=False)
    _save(figure, path, "drift.png")


def _figure(**settings: Any) -> Figure:
    return packages.load("matplotlib.figure", "--plot").Figure(**settings)


def _save(figure: Figure, path: Path, example: str) -> None:
    try:
        figure.savefig(path, dpi=150)
    except (OSError, ValueError) as error:
        raise _unwritable(path, f"{error}", example) from error


def _unwritable(path: Path, why: str, example: str) -> ConfigError:
    return ConfigError(
        f"The plot {path} cannot be written: {why}.",
        remedy=f"Give --plot a file such as {example} in a folder that exists.",
    )
