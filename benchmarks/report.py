"""Write the tables of the documents from the committed results: ``python benchmarks/report.py``.

A table stands between ``<!-- NAME -->`` and ``<!-- end -->``; NAME is a function here. The tests
compare, so nobody forgets to run this after measuring anew.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import race_tables
import tool_tables
import tune_tables
from tune_tables import table

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
DOCUMENTS = (
    ROOT / "README.md",
    *(ROOT / "docs" / f"{name}.md" for name in ("performance", "tune", "tools", "proof")),
)
_INDUCTOR = (("race-sd15-amd-bf16", "bf16"), ("race-sd15-old-fp32", "fp32, no bf16 units"))
"""Races through Inductor, and what their machines have."""
_FOR_VISITORS = (
    "factor 2", "factor 4", "factor 4, last 2 of 8 steps dense", "factor 8",
    "ToMe (`tomesd`), ratio 0.75",
)  # fmt: skip
"""Rows of docs/fidelity.md that the README has too."""


def read(name: str) -> list[dict[str, Any]]:
    """The rows of a result."""
    return json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))["rows"]


def _pairs(name: str) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """Dense and default plan of each size at the newest opset."""
    rows = [row for row in read(name) if row["opset"] == 23]
    dense = {row["px"]: row for row in rows if row["plan"] == "off"}
    return [(dense[row["px"]], row) for row in rows if row["plan"] == "default"]


def _tera(flops: float) -> str:
    return f"{flops / 1e12:,.1f} T" if flops < 1e14 else f"{flops / 1e12:,.0f} T"


def _ratio(before: float, after: float) -> str:
    return f"{before / after:.1f}×"


def savings() -> str:
    """SD1.5's UNet: FLOPs, scores and memory, dense against the default plan."""
    rows: list[str] = []
    for dense, ours in _pairs("build-sd15"):
        old, new = ours["totals"], ours["memory"]
        rows.append(
            f"| {ours['px']} | {_tera(old['attention_flops'])} → "
            f"{_tera(old['attention_flops_after'])} "
            f"({_ratio(old['attention_flops'], old['attention_flops_after'])}) | "
            f"{_tera(old['flops'])} → {_tera(old['flops_after'])} "
            f"(**{_ratio(old['flops'], old['flops_after'])}**) | "
            f"{old['score_elements'] / old['tensor_limit']:,.1f} → "
            f"{old['score_elements_after'] / old['tensor_limit']:.1f} | "
            f"{dense['memory']['activation'] / 1e9:.2f} → {new['activation'] / 1e9:.2f} GB |"
        )
    header = (
        "px | attention FLOPs | all FLOPs | largest QKᵀ over TensorRT's 2³¹ limit | activations"
    )
    return table(header, rows)


def decoder() -> str:
    """SD1.5's VAE decoder: what an engine needs as scratch memory."""
    found = {(row["px"], row["plan"]): row for row in read("vae-sd15")}
    rows: list[str] = []
    for px in sorted({size for size, _ in found}):
        cells = [found.get((px, plan), {}).get("memory") for plan in ("off", "default")]
        said = [f"{cell['scratch'] / 1e9:.1f} GB" if cell else "does not build" for cell in cells]
        rows.append(f"| {px} | {said[0]} | **{said[1]}** |")
    return table("px | dense | default plan", rows)


def speed() -> str:
    """Processor time of a call under Inductor: median [quartiles] of dense over rewritten."""
    rows: list[str] = []
    for name, precision in _INDUCTOR:
        for row in read(name):
            ours, bound = (row["dense_over"][k]["ratio"] for k in ("default", "bound"))
            spread = f" [{ours['q1']:.2f}, {ours['q3']:.2f}]" if ours["count"] > 1 else ""
            rows.append(
                f"| {row['px']} | {precision} | **{ours['median']:.2f}×**{spread} | "
                f"{bound['median']:.2f}× | {ours['count']:.0f} |"
            )
    header = "px | precision | dense / rewritten | dense / self-attention almost free | rounds"
    return table(header, rows)


def pictures() -> str:
    """What a visitor wants to know of `fidelity_summary.readme_table`: cost and error at 512 px."""
    import fidelity_summary

    rows = fidelity_summary.read(
        [RESULTS / f"fidelity-{run}.json" for run in fidelity_summary.RUNS]
    )
    cells = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in fidelity_summary.readme_table(rows).splitlines()[2:]
    ]
    kept = [(c[0], c[1], c[-1].split("; ")[0]) for c in cells if c[0] in _FOR_VISITORS]
    kept += tune_tables.readme_rows()
    return table(
        "setting | a step at 512 px: FLOPs | squared error to the dense picture",
        [f"| {name} | {flops} | {error} |" for name, flops, error in kept],
    )


def providers() -> str:
    """The demo model's UNet in onnxruntime, plain against OpenVINO."""
    rows: list[str] = []
    for row in read("providers"):
        plan = "dense" if row["factors"] == "off" else f"factor {row['factors']}"
        cpu, other = (row["seconds"][name]["median"] for name in ("cpu", "openvino"))
        ratio = row["ratio"]
        rows.append(
            f"| {row['px']} | {plan} | {cpu:.3f} s | {other:.3f} s | **{ratio['median']:.2f}×** "
            f"[{ratio['min']:.2f}, {ratio['max']:.2f}] | {row['relative_l2']:.0e} |"
        )
    return table("px | plan | plain | OpenVINO | ratio | difference", rows)


def features() -> str:
    """diffusers' features together with `accelerate`."""
    rows: list[str] = []
    for row in read("features"):
        if "absent" in row:
            rows.append(f"| {row['name']} | not tried: not installed here | | |")
        elif "error" in row:
            rows.append(f"| {row['name']} | error: {row['error']} | | |")
        else:
            what = "rewritten" if row["rewritten"] else "**runs, dense**: the graph is split"
            rows.append(f"| {row['name']} | {what} | {row['graphs']} | {row['relative_l2']:.1g} |")
    return table("feature | attention | graphs | difference to accelerate alone", rows)


def soundness() -> str:
    """Random modules in both dialects, by class (`benchmarks/soundness.py`)."""
    found: Any = json.loads((RESULTS / "soundness.json").read_text(encoding="utf-8"))
    rows: list[str] = []
    for name, one in sorted(found["classes"].items()):
        failed = one.get("wrong", 0) + one.get("crash", 0)
        numbers = (one.get("rewritten", 0), one.get("refused", 0), one.get("dense", 0), failed)
        rows.append(f"| {name} | " + " | ".join(f"{n:,}" for n in numbers) + " |")
    outcomes = found["outcomes"]
    numbers = [outcomes.get(name, 0) for name in ("rewritten", "refused", "dense")]
    failed = outcomes.get("wrong", 0) + outcomes.get("crash", 0)
    rows.append("| **all** | " + " | ".join(f"**{n:,}**" for n in (*numbers, failed)) + " |")
    return table("class | rewritten | refused | dense | wrong or crashed", rows)


def soundness_later() -> str:
    """The same, with choices that came later, without their classes."""
    found: Any = json.loads((RESULTS / "soundness-later.json").read_text(encoding="utf-8"))
    names = ("rewritten", "refused", "dense", "uncaptured", "wrong", "crash", "missing")
    numbers = (found["cases"], *(found["outcomes"].get(name, 0) for name in names))
    head = "cases | rewritten | refused | dense | not captured | wrong | crashed | no row"
    return table(head, ["| " + " | ".join(f"{n:,}" for n in numbers) + " |"])


def passes() -> str:
    """Processor time of the passes on full-size graphs, before the proofs and now."""
    rows: list[str] = []
    for row in read("passes"):
        before, after = (row[when]["seconds"]["median"] for when in ("before", "after"))
        rewritten = sum(s["count"] for s in row["after"]["sites"] if s["action"] == "rewritten")
        rows.append(
            f"| {row['model']} | {row['after']['nodes']:,} | {rewritten} | {before:.2f} s | "
            f"{after:.2f} s |"
        )
    return table("model | nodes | rewritten sites | before the proofs | now", rows)


def plan_time() -> str:
    """Processor time and memory of `todo-compile plan`, of several commits in turn."""
    rows = [
        f"| {row['model']} | {row['commit']} | {row['processor_seconds']['median']:.1f} s "
        f"[{row['processor_seconds']['min']:.1f}, {row['processor_seconds']['max']:.1f}] | "
        f"{row['peak_bytes']['median'] / 1e9:.2f} GB |"
        for row in read("plan-time")
    ]
    return table("model | commit | processor time | peak memory", rows)


def builds() -> str:
    """What building an engine takes, of two commits in turn."""
    rows = [
        f"| {row['model']} | {row['px']} | {row['commit']} | {row['seconds']:.0f} s | "
        f"{row['steps']['load model']:.1f} s, {row['steps']['onnx']:.1f} s | "
        f"{row['processor_seconds']:.0f} s | {row['peak_rss_bytes'] / 1e9:.1f} GB | "
        f"{row['peak_anonymous_bytes'] / 1e9:.1f} GB |"
        for row in (*read("build-turns"), *read("build-turns-sdxl"))
    ]
    return table(
        "model | px | commit | time | of it loading, translating | processor time | peak memory | "
        "of it not pages of files",
        rows,
    )


def fuzz() -> str:
    """Damaged files and mistaken command lines, by reader (`tests/fuzz`)."""
    found: Any = json.loads((RESULTS / "fuzz.json").read_text(encoding="utf-8"))
    rows: list[str] = []
    for reader, outcomes in found["outcomes"].items():
        accepted = outcomes.get("accepted", 0)
        refused = sum(outcomes.values()) - accepted
        rows.append(f"| {reader} | {refused + accepted:,} | {refused:,} |")
    begun = found["statuses"]["exit 130"] + found["statuses"]["exit 0"]
    lines = found["command_lines"]
    rows.append(f"| command lines | {lines:,} | {lines - begun:,} |")
    return table("what was damaged | tried | refused", rows)


def faults() -> str:
    """Builds that met a fault, by kind (`tests/faults`)."""
    found: Any = json.loads((RESULTS / "faults.json").read_text(encoding="utf-8"))
    names = list(dict.fromkeys(row["fault"] for row in found["rows"]))
    by = {(row["kind"], row["fault"]): row for row in found["rows"]}
    rows: list[str] = []
    for kind, about in found["kinds"].items():
        cells = [f"{about['tried']} of {about['cells']:,}"]
        cells.append(f"{about['phases_tried']} of {about['phases']}")
        cells += [f"{by[kind, n]['survived']}/{by[kind, n]['tried']}" for n in names]
        rows.append(f"| {kind} | {' | '.join(cells)} |")
    every = [f"**{found['tried']} of {found['cells']:,}**", ""]
    for name in names:
        own = [row for row in found["rows"] if row["fault"] == name]
        survived, tried = (sum(row[key] for row in own) for key in ("survived", "tried"))
        every.append(f"**{survived}/{tried}**")
    rows.append(f"| **all** | {' | '.join(every)} |")
    return table(f"output | cells tried | phases met | {' | '.join(names)}", rows)


def large() -> str:
    """Denoisers and SD1.5's decoder at 4096 and 8192 px, by `plan` alone."""
    rows: list[str] = []
    for row in read("large"):
        decoder = row["component"] == "vae-decoder"
        cells = [f"{row['model']}{' decoder' if decoder else ''}", str(row["px"])]
        if "refused" in row:
            why = row["refused"].rpartition("captured: ")[2]
            rows.append(f"| {' | '.join(cells)} | – | – | – | {why} |")
            continue
        limit = row["limit"]
        cells += [
            f"{_tera(row['flops'])} → {_tera(row['flops_after'])} "
            f"({_ratio(row['flops'], row['flops_after'])})",
            f"{row['scores'] / limit:,.0f} → {row['scores_after'] / limit:,.1f}",
            f"{row['tensor'] / limit:.2f}",
            _stops_first(row),
        ]
        rows.append(f"| {' | '.join(cells)} |")
    return table(
        "model | px | FLOPs, dense → default plan | largest scores | largest other tensor | "
        "over the limit",
        rows,
    )


def _stops_first(row: dict[str, Any]) -> str:
    """The first of what is over the limit; scores are held only where attention is not fused."""
    if row["tensor"] > row["limit"]:
        return "an activation"
    return "nothing" if row["scores_after"] <= row["limit"] else "scores, if not fused"


TABLES: dict[str, Callable[[], str]] = {
    "savings": savings,
    "decoder": decoder,
    "speed": speed,
    "race": race_tables.race,
    "exponents": race_tables.exponents,
    "ours": race_tables.ours,
    "torchao": race_tables.torchao,
    "onnx": race_tables.onnx,
    "peers": race_tables.peers,
    "pictures": pictures,
    "tuned": tune_tables.tuned,
    "budgets": tune_tables.budgets,
    "correction": tune_tables.correction,
    "tune_large": tune_tables.large,
    "providers": providers,
    "features": features,
    "comfyui": tool_tables.comfyui,
    "comfyui_nodes": tool_tables.comfyui_nodes,
    "suites": tool_tables.suites,
    "suites_refused": tool_tables.suites_refused,
    "large": large,
    "soundness": soundness,
    "soundness_later": soundness_later,
    "passes": passes,
    "fuzz": fuzz,
    "plan_time": plan_time,
    "builds": builds,
    "faults": faults,
}


def filled(text: str) -> str:
    """A document with its tables made anew."""

    def fill(found: re.Match[str]) -> str:
        name = found[1]
        return f"<!-- {name} -->\n{TABLES[name]()}\n<!-- end -->" if name in TABLES else found[0]

    return re.sub(r"<!-- (\w+) -->\n.*?<!-- end -->", fill, text, flags=re.DOTALL)


if __name__ == "__main__":
    race_tables.plot(ROOT / "docs" / "race.png")
    for path in DOCUMENTS:
        path.write_text(filled(path.read_text(encoding="utf-8")), encoding="utf-8")
        print(f"wrote the tables of {path.relative_to(ROOT)}")
