"""Plans and drift as pictures."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from todo_compile import packages
from todo_compile.errors import ConfigError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from todo_compile.drift.measure import Drift
    from todo_compile.passes.report import Report, SiteReport
    from todo_compile.tuning.plan_file import TunedPlan

# Told apart by the colour-blind, and in grey.
_AFTER, _REST, _SAVED, _EDGE = "#0072b2", "#999999", "#f3e6c4", "#c9a227"


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
    if path.exists() and not path.is_file():
        what = "a folder" if path.is_dir() else "no regular file"
        raise _unwritable(path, f"it is {what}", example)
    if not os.access(path if path.exists() else path.parent, os.W_OK):
        raise _unwritable(path, "permission denied", example)


def plot_plan(report: Report, path: Path, title: str) -> None:
    """Draw where the work of a call goes and how much is saved (format by suffix: .png, .svg, …).

    Raises:
        MissingPackageError: matplotlib is absent.
        ConfigError: the suffix is unknown, or the file cannot be written.
    """
    parts = _parts(report)
    figure = _figure(figsize=(9, 1.6 + 0.42 * len(parts)), layout="constrained")
    axes = figure.subplots()
    unit, scale = _unit(max(part.flops for part in parts))
    whole = report.totals.flops or 1
    for place, part in enumerate(parts):
        saved = part.flops - part.flops_after
        axes.barh(place, part.flops_after / scale, color=_AFTER if part.sites else _REST)
        share = f"{part.flops_after / whole:.1%}"
        if saved:
            axes.barh(
                place, saved / scale, left=part.flops_after / scale, color=_SAVED,
                edgecolor=_EDGE, hatch="///", linewidth=0.5,
            )  # fmt: skip
            share = f"{part.flops / whole:.1%} → {share}"
        axes.annotate(
            share, (part.flops / scale, place), xytext=(4, 0), textcoords="offset points",
            va="center", fontsize=8,
        )  # fmt: skip
    axes.set_yticks(range(len(parts)), [part.label for part in parts], fontsize=9)
    axes.invert_yaxis()
    axes.margins(x=0.14)
    axes.set_xlabel(f"{unit}FLOPs of a call; hatched: saved; in per cent of the dense call")
    axes.spines[["top", "right"]].set_visible(False)
    totals = report.totals
    ratio = totals.flops / totals.flops_after if totals.flops_after else 1.0
    found = f"{ratio:.2g}× fewer FLOPs, {report.rewritten} of {len(report.sites)} sites rewritten"
    figure.suptitle(f"{title}: {found}", fontsize=11, parse_math=False)
    _save(figure, path, "plan.png")


@dataclass(frozen=True)
class _Part:
    label: str
    sites: int
    flops: int
    flops_after: int


def _parts(report: Report) -> list[_Part]:
    """Attention by grid and factor, the most expensive first; then cross-attention and the rest."""
    groups: dict[tuple[object, ...], list[SiteReport]] = {}
    for site in report.sites:
        key = (site.kind, site.grid, site.key_tokens, site.key_tokens_after)
        groups.setdefault(("cross",) if site.kind == "cross" else key, []).append(site)
    parts = [
        _Part(
            _label(sites),
            len(sites),
            sum(s.flops for s in sites),
            sum(s.flops_after for s in sites),
        )
        for sites in groups.values()
    ]
    parts.sort(key=lambda part: -part.flops)
    totals = report.totals
    rest = totals.flops - sum(part.flops for part in parts)
    after = totals.flops_after - sum(part.flops_after for part in parts)
    return [*parts, _Part("everything else", 0, rest, after)]


def _label(sites: list[SiteReport]) -> str:
    first = sites[0]
    count = f"{len(sites)} site{'s' if len(sites) > 1 else ''}"
    if first.kind == "cross":
        return f"cross-attention, {count}"
    keys = f"{first.key_tokens:,}"
    if first.key_tokens_after != first.key_tokens:
        keys += f" → {first.key_tokens_after:,}"
    kind = "" if first.kind == "self" else f"{first.kind} "
    return f"{kind}attention, {count}, {keys} keys"


def _unit(most: float) -> tuple[str, float]:
    return next(
        ((name, scale) for name, scale in (("T", 1e12), ("G", 1e9), ("M", 1e6)) if most >= scale),
        ("", 1.0),
    )


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


def plot_tuned(plan: TunedPlan, path: Path, title: str) -> None:
    """Drift against speed: the curve of tuned plans, uniform ones, and the chosen one.

    Raises:
        ConfigError: as `plot_plan`.
    """
    figure = _figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    for points, style, label in (
        (plan.curve, "o-", "tuned"),
        ([p for p in plan.uniform if p.name.endswith("level 1")], "s--", "uniform, level 1"),
        ([p for p in plan.uniform if p.name.endswith("all levels")], "^--", "uniform, all levels"),
    ):
        # A logarithm has no place for the dense plan.
        drawn = [p for p in points if p.measured is not None and p.measured.drift.mean > 0]
        drawn.sort(key=lambda p: p.speedup)
        spans = [p.measured.drift for p in drawn if p.measured is not None]
        axes.errorbar(
            [p.speedup for p in drawn],
            [s.mean for s in spans],
            yerr=[[s.mean - s.low for s in spans], [s.high - s.mean for s in spans]],
            fmt=style,
            markersize=4,
            linewidth=1,
            capsize=2,
            label=label,
        )
    chosen = plan.chosen.measured
    if chosen is not None and chosen.drift.mean > 0:
        axes.plot(
            [plan.speedup], [chosen.drift.mean], "*", color="black", markersize=13, label="chosen"
        )
    axes.set_yscale("log")
    axes.set_xlabel(f"speed against dense ({plan.cost})")
    axes.set_ylabel("drift: mean squared error of the pictures")
    axes.legend(fontsize=8)
    axes.grid(alpha=0.3)
    figure.suptitle(title, fontsize=10, parse_math=False)
    _save(figure, path, "tune.png")


def _figure(**settings: Any) -> Figure:
    return packages.load("matplotlib.figure", "--plot").Figure(**settings)


def _save(figure: Figure, path: Path, example: str) -> None:
    from todo_compile.bundle.files import staged

    suffix = path.suffix.removeprefix(".") or "png"
    if not path.suffix:
        path = path.with_name(f"{path.name}.{suffix}")
    try:
        with staged(path) as stage:
            figure.savefig(stage.publish(path.name), dpi=150, format=suffix.lower())
    except (OSError, ValueError) as error:
        raise _unwritable(path, f"{error}", example) from error


def _unwritable(path: Path, why: str, example: str) -> ConfigError:
    return ConfigError(
        f"The plot {path} cannot be written: {why}.",
        remedy=f"Give --plot a file such as {example} in a folder that exists.",
    )
