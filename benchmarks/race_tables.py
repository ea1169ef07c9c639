"""The race's tables and its plot, from the committed results; `report.py` writes them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from race_parts import quantised
from race_parts.figures import cost_of
from race_parts.peers import ABOUT

from todo_compile import style

RESULTS = Path(__file__).parent / "results"
RUNS = (
    "race-sd15-cpu",
    "race-sd15-onnx-cpu",
    "race-block-cpu",
    "race-others-cpu",
    "race-more-cpu",
    "race-sd15-ours",
    "race-sd15-amd-bf16",
    "race-sd15-old-fp32",
)
_NAMES = {
    "sd15": "SD1.5",
    "block": "one block of it",
    "sdxl": "SDXL",
    "pixart": "PixArt, 4 blocks",
    "sd3": "SD3, 4 blocks",
    "flux": "FLUX, 3 blocks",
    "vae-decode": "SD1.5's decoder",
    "vae-encode": "SD1.5's encoder",
}
_PEERED = 1024


def read(name: str) -> dict[str, Any]:
    """A result of `race.py`."""
    return json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))


def _name(row: dict[str, Any]) -> str:
    return _NAMES[row["workload"]] + (f", batch {row['batch']}" if row["batch"] > 1 else "")


def _table(header: str, rows: list[str]) -> str:
    return "\n".join([f"| {header} |", "|" + "---|" * (header.count("|") + 1), *rows])


def _plans(row: dict[str, Any]) -> list[str]:
    """The variants of ours but dense and bound."""
    return [n for n in row["variants"] if n not in ABOUT and n not in ("dense", "bound")]


def race() -> str:
    """Every heat: dense, the plans, the bound."""
    lines: list[str] = []
    for run in RUNS:
        found = read(run)
        for row in sorted(found["rows"], key=lambda r: (r["runtime"], r["px"])):
            if "dense" not in row["variants"]:
                continue  # a heat of `ours`
            lines += [_line(row, plan, found["machine"]["processor"]) for plan in _plans(row)]
    header = (
        "what | px | runtime | processor | plan | dense | dense / rewritten | dense / bound | "
        "removed | peak memory of a call | rounds"
    )
    return _table(header, lines)


def _line(row: dict[str, Any], plan: str, processor: str) -> str:
    found, bound = row["dense_over"][plan], row["dense_over"].get("bound")
    ratio, removed = found["ratio"], found["removed"]
    spread = f" [{ratio['q1']:.2f}, {ratio['q3']:.2f}]" if ratio["count"] > 1 else ""
    before, after = (_giga(row["variants"][name]["peak_bytes"]) for name in ("dense", plan))
    cells = [
        _name(row),
        f"{row['px']}",
        f"{row['runtime']}, {row['precision']}",
        processor,
        plan,
        _seconds(row["variants"]["dense"]),
        f"**{ratio['median']:.2f}×**{spread}",
        f"{bound['ratio']['median']:.2f}×" if bound else "",
        f"{removed['median']:.0%}" if removed else "",
        f"{before} → {after}",
        f"{ratio['count']:.0f}",
    ]
    return f"| {' | '.join(cells)} |"


def _seconds(facts: dict[str, Any]) -> str:
    cost = cost_of(facts)
    return "–" if cost is None else f"{cost:,.0f} s" if cost >= 1000 else f"{cost:.3g} s"


def _giga(size: float | None) -> str:
    return "–" if size is None else f"{size / 1e9:.2f} GB"


def exponents() -> str:
    """Time over pixels as a power."""
    groups: dict[tuple[str, str, str], dict[str, Any]] = {}
    for run in RUNS:
        for one in read(run)["exponents"]:
            key = (run, _name(one), f"{one['runtime']}, {one['precision']}")
            groups.setdefault(key, {})[one["variant"]] = one
    lines: list[str] = []
    for (_, name, runtime), found in groups.items():
        if not {"dense", "bound"} <= set(found):
            continue
        sizes = "–".join(str(px) for px in (min(found["dense"]["px"]), max(found["dense"]["px"])))
        plans = {k: v for k, v in found.items() if k in ("default", "2", "4,2")}
        said = ", ".join(f"{k}: {v['exponent']:.2f}" for k, v in plans.items())
        lines.append(
            f"| {name} | {runtime} | {sizes} | {found['dense']['exponent']:.2f} | "
            f"{said} | {found['bound']['exponent']:.2f} |"
        )
    return _table("what | runtime | px | dense | rewritten | bound", lines)


def ours() -> str:
    """What the compiler itself costs, where the attentions were timed alone too."""
    lines: list[str] = []
    for row in sorted(read("race-sd15-ours")["rows"], key=lambda r: r["px"]):
        for plan, found in row["ours"].items():
            ratio = found["ratio"]
            lines.append(
                f"| {_NAMES[row['workload']]} | {row['px']} | {plan} | "
                f"{_seconds(row['variants'][plan])} | {_seconds(row['variants']['bound'])} | "
                f"{found['attentions']['median']:.3g} s | **{ratio['median']:.3f}** "
                f"[{ratio['q1']:.3f}, {ratio['q3']:.3f}] |"
            )
    header = "what | px | plan | rewritten | bound | its attentions | rewritten / both together"
    return _table(header, lines)


def torchao() -> str:
    """int8 linear layers, alone and together with a plan."""
    (row,) = read("race-torchao")["rows"]
    lines: list[str] = []
    for name, about in (
        ("4,2", "factors 4 and 2"),
        ("torchao int8", quantised.ABOUT),
        ("torchao int8; 4,2", "both"),
        ("bound", "the bound"),
    ):
        ratio = row["dense_over"][name]["ratio"]
        lines.append(f"| {about} | {ratio['median']:.2f}× [{ratio['q1']:.2f}, {ratio['q3']:.2f}] |")
    return _table("method | dense / it", lines)


def onnx() -> str:
    """onnxruntime on the CPU, as `load` runs a file and as the file is, beside eager torch."""
    lines: list[str] = []
    for run in ("race-block-cpu", "race-sd15-onnx-cpu"):
        rows = {(r["px"], r["runtime"]): r for r in read(run)["rows"]}
        for px in sorted({px for px, _ in rows}):
            for runtime, name in (
                ("onnxruntime-plain", "onnxruntime, the file as it is"),
                ("onnxruntime", "onnxruntime, as `load` runs it"),
                ("eager", "torch, eagerly"),
            ):
                row = rows.get((px, runtime))
                if row is not None:
                    lines.append(f"| {_NAMES[row['workload']]} | {px} | {name} | {_onnx(row)} |")
    return _table("what | px | | dense | factor 2 | bound", lines)


def _onnx(row: dict[str, Any]) -> str:
    cells: list[str] = []
    for plan in ("dense", "2" if "2" in row["variants"] else "default", "bound"):
        facts = row["variants"][plan]
        cells.append(f"{_seconds(facts)}, {_giga(facts['peak_bytes'])}")
    return " | ".join(cells)


def peers() -> str:
    """Time on SD1.5's UNet, drift on the demo model, and what each method can be used with."""
    times: dict[str, dict[str, Any]] = {}
    for row in read("race-sd15-cpu")["rows"]:
        if row["px"] == _PEERED:
            times.update(row["dense_over"])
    drift = {row["name"]: row for row in read("fidelity-peers")["rows"]}
    fit = {row["name"]: row for row in read("race-fits")["rows"]}
    ours = {
        "2": ("nearest 2", "factor 2, this compiler"),
        "4,2": ("nearest 4,2", "factors 4 and 2, this compiler"),
    }
    every = [(key, name, about) for key, (name, about) in ours.items()]
    every += [(name, name, about) for name, about in ABOUT.items()]
    lines: list[str] = []
    for key, name, about in every:
        mse, low, high = drift[name]["mean"]["mse"]
        ratio = times.get(key)
        fits = fit.get(name) or _ours()
        said = [
            fits[way] if fits[way] in ("yes", "runs, with other numbers") else "no"
            for way in ("fullgraph", "onnx")
        ]
        lines.append(
            f"| {about} | {'' if ratio is None else '{:.2f}×'.format(ratio['ratio']['median'])} | "
            f"{mse:.1e} [{low:.1e}, {high:.1e}] | {said[0]} | {said[1]} |"
        )
    apart = read("race-hidiffusion")
    assert apart["px"] == _PEERED
    said = ["yes" if apart["fits"][way] == "yes" else "no" for way in ("fullgraph", "onnx")]
    lines.append(
        "| windows in the largest blocks, inner blocks at half size in the first 40 % of the steps "
        f"(HiDiffusion, `hidiffusion`) | {apart['ratio']:.2f}× | not for this model | "
        f"{said[0]} | {said[1]} |"
    )
    header = "method | dense / it | squared error | one graph a step | exports to ONNX"
    return _table(header, lines)


def _ours() -> dict[str, str]:
    """Whether rewritten models ran in the race as one compiled graph, and as a file."""
    ran = {row["runtime"] for run in RUNS for row in read(run)["rows"] if _plans(row)}
    ways = {"fullgraph": "inductor", "onnx": "onnxruntime"}
    return {way: "yes" if runtime in ran else "not measured" for way, runtime in ways.items()}


def points() -> dict[str, dict[str, dict[int, float]]]:
    """Line → variant → px → speed-up: what the plot draws."""
    found: dict[str, dict[str, dict[int, float]]] = {}
    for run in RUNS:
        data = read(run)
        for row in data["rows"]:
            if row["workload"] != "sd15" or row["batch"] > 1:
                continue
            line = f"{row['runtime']}, {row['precision']}, {data['machine']['processor']}"
            for name, ratio in row["dense_over"].items():
                if name not in ABOUT:
                    drawn = "bound" if name == "bound" else "rewritten"
                    best = found.setdefault(line, {}).setdefault(drawn, {})
                    best[row["px"]] = max(best.get(row["px"], 0.0), ratio["ratio"]["median"])
    # One size alone is no line.
    return {line: v for line, v in found.items() if all(len(sizes) > 1 for sizes in v.values())}


def plot(path: Path) -> None:
    """Speed-up over resolution, with the bound drawn in."""
    lines = points()
    with style.plot(4.6) as figure:
        axes: Any = figure.add_subplot()
        ends: list[tuple[float, float, str, str]] = []
        for index, (line, variants) in enumerate(lines.items()):
            colour, marker = style.COLOURS[index], style.MARKERS[index]
            for name, dashes in (("rewritten", "-"), ("bound", ":")):
                values = dict(sorted(variants.get(name, {}).items()))
                axes.plot(list(values), list(values.values()), dashes, marker=marker, color=colour)
                last = max(values)
                if name == "rewritten" and last == 2048:
                    ends.append((last, values[last], _short(line), colour))
                elif name == "rewritten":  # in the middle, where a line to the margin would cross
                    axes.annotate(
                        _short(line), (last, values[last]), xytext=(0, 9), color=colour,
                        textcoords="offset points", ha="center", fontsize=style.SMALL,
                    )  # fmt: skip
        axes.set_xscale("log", base=2)
        axes.set_yscale("log", base=2)
        axes.set_xticks([512, 768, 1024, 2048], ["512", "768", "1024", "2048"])
        axes.set_yticks([1, 2, 4, 8, 16], ["1×", "2×", "4×", "8×", "16×"])
        axes.minorticks_off()
        axes.set_xlabel("pixels a side")
        axes.set_ylabel("dense / it, processor time")
        axes.grid()
        best = max((v["rewritten"][px], px, v) for v in lines.values() for px in v["rewritten"])
        style.title(
            figure,
            f"At {best[1]} px a rewritten UNet takes {best[0]:.1f}× less processor time on a CPU, "
            f"of {best[2]['bound'][best[1]]:.1f}× if self-attention were free",
            "SD1.5; solid: the fastest plan measured; dotted: the bound, self-attention left out",
        )
        figure.draw_without_rendering()
        style.name_ends(axes, ends)
        style.save(figure, path)


def _short(line: str) -> str:
    """``inductor, bf16, Intel(R) Xeon(R) Processor`` → ``inductor, bf16, Intel Xeon``."""
    return line.replace("(R)", "").replace(" Processor", "")
