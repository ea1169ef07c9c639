"""Plans and drift as pictures."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from todo_compile import style
from todo_compile.bundle.files import staged
from todo_compile.errors import BundleError, ConfigError, first_line

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from todo_compile.bundle.plan import TunedPlan
    from todo_compile.drift.report import Drift, SiteDrift
    from todo_compile.passes.report import Report, SiteReport

_EDGE = "#c9a227"  # of what is saved
_NAMED = 12  # sites in a plot of drift


def check_plot(path: Path, example: str) -> None:
    """Refuse now what would be refused after minutes of work.

    Args:
        path: of the plot.
        example: a name that would do, for the remedy.

    Raises:
        MissingPackageError: matplotlib is absent.
        ConfigError: the suffix is unknown, or the file cannot be written.
    """
    with style.plot(1, "--plot") as figure:
        known = figure.canvas.get_supported_filetypes()
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
    unit, scale = _unit(max(part.flops for part in parts))
    whole = report.totals.flops or 1
    with style.plot(1.9 + 0.42 * len(parts), "--plot") as figure:
        axes = figure.subplots()
        for place, part in enumerate(parts):
            saved = part.flops - part.flops_after
            colour = style.BLUE if part.sites else style.GREY
            axes.barh(place, part.flops_after / scale, color=colour)
            share = f"{part.flops_after / whole:.1%}"
            if saved:
                axes.barh(
                    place, saved / scale, left=part.flops_after / scale, color=style.SAND,
                    edgecolor=_EDGE, hatch="///", linewidth=0.5,
                )  # fmt: skip
                share = f"{part.flops / whole:.1%} → {share}"
            axes.annotate(
                share, (part.flops / scale, place), xytext=(4, 0), textcoords="offset points",
                va="center", fontsize=style.SMALL,
            )  # fmt: skip
        axes.set_yticks(range(len(parts)), [part.label for part in parts])
        axes.tick_params(axis="y", length=0)
        axes.invert_yaxis()
        axes.margins(x=0.16)
        axes.set_xlabel(f"{unit}FLOPs of a call; hatched: saved; in per cent of the dense call")
        totals = report.totals
        ratio = totals.flops / totals.flops_after if totals.flops_after else 1.0
        sites = f"{report.rewritten} of {len(report.sites)} sites rewritten"
        times = f"{ratio:.1f}" if ratio < 10 else f"{ratio:,.0f}"
        found = f"{times}× fewer FLOPs" if report.rewritten else "nothing is saved"
        style.title(figure, f"{title}: {found}, {sites}")
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
    sites = sorted(drift.sites, key=_most, reverse=True)
    with style.plot(2.4 + 0.22 * min(len(sites), _NAMED), "--plot") as figure:
        axes = figure.subplots()
        times = drift.timesteps
        axes.plot(times, drift.total, "-o", color=style.INK, linewidth=2.4, zorder=3)
        named = [(times[-1], drift.total[-1], "all sites", style.INK)]
        for index, site in enumerate(sites):
            values = site.output or site.local
            if index >= _NAMED:
                axes.plot(times, values, color=style.GREY, linewidth=0.5, zorder=1)
                continue
            colour = style.COLOURS[index % (len(style.COLOURS) - 1)]
            axes.plot(times, values, marker=style.MARKERS[index % 7], color=colour, linewidth=1)
            name = f"{_short(site.module or site.name)}, {site.factor[0]}×{site.factor[1]}"
            named.append((times[-1], values[-1], name, colour))
        positive = any(v > 0 for v in drift.total)
        if positive:
            axes.set_yscale("log")
            axes.grid(axis="y")
        axes.invert_xaxis()
        grey = f"; grey: {len(sites) - _NAMED} sites that move it less" if sites[_NAMED:] else ""
        axes.set_xlabel(f"timestep (noise on the left){grey}")
        axes.set_ylabel("relative error")
        style.title(figure, f"{title}: {_found_drift(drift)}")
        figure.draw_without_rendering()
        style.name_ends(axes, [end for end in named if end[1] > 0 or not positive])
        _save(figure, path, "drift.png")


def _found_drift(drift: Drift) -> str:
    """The finding: how far the plan moves the output, and by which site most."""
    most = max(drift.total, default=0.0)
    if most <= 0:
        return "the output does not move"
    found = f"the output moves by {f'{most:.1%}' if most >= 1e-3 else f'{most:.1e}'} at most"
    if len(drift.sites) > 1:
        worst = max(drift.sites, key=_most)
        found += f", most by {_short(worst.module or worst.name)}"
    return found


def _most(site: SiteDrift) -> float:
    return max(site.output or site.local, default=0.0)


def _short(path: str) -> str:
    """``unet.up_blocks.2.attentions.1.transformer_blocks.0.attn1`` → ``up 2, attention 1``."""
    parts = path.split(".")
    numbers = [part for part in parts if part.isdigit()]
    place = next((part for part in parts if part.endswith(("_blocks", "_block"))), None)
    if place is None:
        return path if len(path) <= 28 else f"…{path[-27:]}"
    side = place.removesuffix("s").removesuffix("_block")
    if side == "mid":
        return "mid"
    if len(numbers) < 2:
        return " ".join((side, *numbers))
    again = f".{numbers[2]}" if len(numbers) > 2 and numbers[2] != "0" else ""
    return f"{side} {numbers[0]}, attention {numbers[1]}{again}"


def plot_tuned(plan: TunedPlan, path: Path, title: str) -> None:
    """Drift against speed: the curve of tuned plans, uniform ones, and the chosen one.

    Raises:
        ConfigError: as `plot_plan`.
    """
    with style.plot(5, "--plot") as figure:
        axes = figure.subplots()
        for points, marker, label in (
            (plan.curve, "o-", "tuned"),
            ([p for p in plan.uniform if p.name.endswith("level 1")], "s--", "uniform, level 1"),
            (
                [p for p in plan.uniform if p.name.endswith("all levels")],
                "^:",
                "uniform, all levels",
            ),
        ):
            # A logarithm has no place for the dense plan.
            drawn = [p for p in points if p.measured is not None and p.measured.drift.mean > 0]
            drawn.sort(key=lambda p: p.speedup)
            spans = [p.measured.drift for p in drawn if p.measured is not None]
            axes.errorbar(
                [p.speedup for p in drawn],
                [s.mean for s in spans],
                yerr=[[s.mean - s.low for s in spans], [s.high - s.mean for s in spans]],
                fmt=marker,
                label=label,
            )
        chosen = plan.chosen.measured
        found = f"{plan.speedup:.2f}× as fast"
        if chosen is not None and chosen.drift.mean > 0:
            axes.plot(
                [plan.speedup], [chosen.drift.mean], "*", color=style.INK, markersize=15,
                label="chosen", linestyle="", zorder=4,
            )  # fmt: skip
            found += (
                f", drift {chosen.drift.mean:.1e} [{chosen.drift.low:.1e}, {chosen.drift.high:.1e}]"
            )
        axes.set_yscale("log")
        axes.set_xlabel(f"speed against dense ({plan.cost})")
        axes.set_ylabel("drift: mean squared error of the pictures")
        axes.grid()
        style.legend(axes, ncols=4)
        style.title(figure, f"{title}: {found}")
        _save(figure, path, "tune.png")


def _save(figure: Figure, path: Path, example: str) -> None:
    suffix = path.suffix.removeprefix(".") or "png"
    if not path.suffix:
        path = path.with_name(f"{path.name}.{suffix}")
    try:
        with staged(path) as stage:
            style.save(figure, stage.publish(path.name), suffix.lower())
    except (OSError, ValueError, BundleError) as error:
        raise _unwritable(path, first_line(error).rstrip("."), example) from error


def _unwritable(path: Path, why: str, example: str) -> ConfigError:
    return ConfigError(
        f"The plot {path} cannot be written: {why}.",
        remedy=f"Give --plot a file such as {example} in a folder that exists.",
    )
