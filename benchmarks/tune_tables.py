"""Tables of tuned plans, from the JSON of `tune.py` and `correction.py`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"


def sizes(name: str) -> list[dict[str, Any]]:
    """What was measured, size by size."""
    return json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))["sizes"]


def tuned_rows() -> list[tuple[dict[str, Any], dict[str, Any], dict[str, Any]]]:
    """(size, tuned row, the uniform row whose speed it has)."""
    found: list[tuple[dict[str, Any], dict[str, Any], dict[str, Any]]] = []
    for size in sizes("tune"):
        named = {row["name"]: row for row in size["rows"]}
        found += [
            (size, row, named[row["at_the_speed_of"]])
            for row in size["rows"]
            if row.get("at_the_speed_of") in named
        ]
    return found


def readme_rows() -> list[tuple[str, str, str]]:
    """(setting, FLOPs, squared error) of plans of three phases at 512 px."""
    found: list[tuple[str, str, str]] = []
    for size, row, base in tuned_rows():
        if row["phases"] == 3 and size["side"] == 512:
            factor = base["name"].removeprefix("uniform nearest:").partition(",")[0]
            drift = row["measured"]["drift"]
            mean, low, high = (drift[part] * 1e5 for part in ("mean", "low", "high"))
            found.append(
                (
                    f"**tuned** to the FLOPs of factor {factor}, 3 phases",
                    f"{row['speedup']:.2f}× fewer",
                    f"{mean:.1f}e-5 [{low:.1f}, {high:.1f}]",
                )
            )
    return found


def tuned() -> str:
    """Tuned plans and the uniform ones whose speed they have."""
    rows = [
        f"| {size['side']} | {base['name']} | {base['speedup']:.4f}× | "
        f"{base['measured']['drift']['mean']:.1e} | {row['phases']} | {row['speedup']:.4f}× | "
        f"{row['measured']['drift']['mean']:.1e} | "
        f"**{row['against_uniform']['ratio']:.3f}** [{row['against_uniform']['low']:.3f}, "
        f"{row['against_uniform']['high']:.3f}] | {row['measured']['pairs']} |"
        for size, row, base in tuned_rows()
    ]
    header = (
        "px | uniform plan | its speed | its drift | phases | tuned speed | tuned drift | "
        "tuned / uniform | pairs"
    )
    return table(header, rows)


def budgets() -> str:
    """What was asked for, what was held to it, and what pairs of other prompts say."""
    rows: list[str] = []
    for size in sizes("tune"):
        for row in size.get("budgets", []):
            held, fresh = row["measured"]["drift"], row["fresh"]["drift"]
            said = "dense" if row["name"] == "dense" else f"{row['speedup']:.4f}×"
            if row["name"].startswith("uniform"):
                said += f" ({row['name']})"
            rows.append(
                f"| {row['budget']:.0e} | {said} | {held['mean']:.1e} [{held['low']:.1e}, "
                f"{held['high']:.1e}] | {fresh['mean']:.1e} [{fresh['low']:.1e}, "
                f"{fresh['high']:.1e}] |"
            )
    return table("budget | speed | held-out prompts | other prompts", rows)


def correction() -> str:
    """Plans without and with a fitted correction."""
    rows: list[str] = []
    for size in sizes("correction"):
        for row in size["rows"]:
            for rank, after in row["corrected"].items():
                best = after["best_as_fast"]
                equal = "none" if best is None else f"{_bold(best['ratio'])} ({best['plan']})"
                rows.append(
                    f"| {size['side']} | {row['plan']} | {row['speedup']:.4f}× | "
                    f"{row['drift']['mean']:.1e} | {rank} | {after['speedup']:.4f}× | "
                    f"{after['drift']['mean']:.1e} | {_bold(after['against_plain'])} | {equal} |"
                )
    header = (
        "px | plan | speed | drift | B's rank | speed, corrected | drift, corrected | "
        "corrected / plain | "
        "corrected / best of those as fast"
    )
    return table(header, rows)


def table(header: str, rows: list[str]) -> str:
    """A table in Markdown; cells are separated by bars."""
    return "\n".join([f"| {header} |", "|" + "---|" * (header.count("|") + 1), *rows])


def large() -> str:
    """Steps of a run at full size: time of the clock and of the processor, and memory."""
    found = json.loads((RESULTS / "tune-large.json").read_text(encoding="utf-8"))
    parts = [("", found["rows"]), ("compile: ", found["compiled"])]
    rows = [
        f"| {prefix}{row['step']} | {row['seconds']:.0f} s | {row['processor_seconds']:.0f} s | "
        f"{row['peak_bytes'] / 2**30:.1f} GiB |"
        for prefix, steps in parts
        for row in steps
        if row["seconds"] >= 0.5
    ]
    every = [row for _, steps in parts for row in steps]
    rows.append(
        f"| {'all' if found['finished'] else 'so far'} | "
        f"{sum(r['seconds'] for r in every):.0f} s | "
        f"{sum(r['processor_seconds'] for r in every):.0f} s | "
        f"{max(r['peak_bytes'] for r in every) / 2**30:.1f} GiB |"
    )
    return table("step | time | processor | most memory of the process", rows)


def _bold(ratio: dict[str, Any]) -> str:
    """Bold where 1 lies outside of the interval."""
    mark = "**" if ratio["high"] < 1 or ratio["low"] > 1 else ""
    return f"{mark}{ratio['ratio']:.2f}{mark} [{ratio['low']:.2f}, {ratio['high']:.2f}]"
