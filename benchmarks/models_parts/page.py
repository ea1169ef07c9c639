"""docs/models.md from the rows of a run, and whether a row got worse."""

from __future__ import annotations

from pathlib import Path
from typing import Any

PAGE = Path(__file__).parents[2] / "docs" / "models.md"
WRONG = 2e-3
"""Greatest error of a rewrite that is right, in units of the greatest value: fp32's rounding
through a model whose attention is far from uniform."""

STATES = ("refused", "failed", "built", "drawn")
"""Of a bundle, the worst first."""

_TOP = """# Models

Made by `python benchmarks/models.py`; do not edit. Every family is a tiny random pipeline of
diffusers with the real classes, saved and loaded as the command does it; attention over the picture
is downsampled by two on each side.

- *attentions*: how many an eager run does, counted before torch's own functions (products that make
  up attention or linear attention are pairs of two).
- *rewritten*, *cross*, *dense*, *refused*: what became of them, in the graph of `torch.export`; in
  brackets what differs in Dynamo's. Cross-attention to text has no picture among its keys. Dense
  are the sites that no factor was asked for.
- *error*: of the whole model's output, against an eager run whose keys and values are subsampled by
  an oracle that knows nothing of the passes; *effect*: how far that is from dense. Both in units of
  the greatest value.
- *ONNX*: the same error of the command's file in onnxruntime; "built" where there is nothing to
  compare with, a dash where there is no file.
- *bundle*: what `--out FOLDER/` makes of the whole pipeline: drawn (all parts built, and a picture
  of a short prompt drawn by the pipeline that was loaded again), built (loaded, but not drawn
  with), refused before any work, or failed in it.

"""


def page(rows: list[dict[str, Any]]) -> str:
    """The document."""
    head = (
        "| family | attentions | rewritten | cross | dense | refused | error | effect | ONNX "
        "| bundle |"
    )
    lines = [head, "|" + "---|" * (head.count("|") - 1), *(_row(row) for row in rows)]
    reasons: dict[str, list[str]] = {}
    for row in rows:
        said = [*row.get("export", {}).get("reasons", {}), *_stopped(row)]
        for reason in dict.fromkeys(said):
            reasons.setdefault(reason, []).append(row["title"])
    why = [f"- {', '.join(titles)}: {_plain(reason)}" for reason, titles in reasons.items()]
    states = [(row["title"], row["bundle"]) for row in rows if "bundle" in row]
    stages = [
        f"- {title}, {said['state']}: {_plain(said['why'])}"
        for title, said in states
        if said["why"]
    ]
    return "\n".join(
        [
            _TOP + "\n".join(lines),
            "\n## What is refused, and why\n",
            *why,
            "\n## Whole pipelines\n",
            "Parts that are not compiled stay in torch, inside the bundle. The pictures of SD3, "
            "FLUX, PixArt, DeepFloyd IF, Kandinsky 2.2 and SDXL's refiner are compared with "
            "torch's in [the tests](../tests/runtime/test_runtime_every_pipeline.py).",
            "",
            *stages,
            "",
        ]
    )


def _stopped(row: dict[str, Any]) -> list[str]:
    """Why a whole model could not be had."""
    found = [row.get("command"), row.get("export", {}).get("captured")]
    return [reason for reason in (*found, row.get("onnx", {}).get("built")) if reason]


def _row(row: dict[str, Any]) -> str:
    export, dynamo = row.get("export", {}), row.get("dynamo", {})
    cells = [row["title"]]
    if "fused" not in row:
        return f"| {row['title']} |" + " – |" * 9
    cells.append(str(row["fused"] + row["products"] // 2))
    for key in ("rewritten", "cross", "dense", "refused"):
        value, other = export.get(key, "–"), dynamo.get(key, "–")
        cells.append(str(value) if value == other else f"{value} ({other})")
    error, effect = export.get("error"), export.get("effect")
    rewritten = bool(export.get("rewritten"))
    cells += [f"{v:.0e}" if rewritten and v is not None else "–" for v in (error, effect)]
    onnx = row.get("onnx", {})
    if "error" not in onnx:
        cells.append("–")
    else:
        cells.append("built" if onnx["error"] is None else f"{onnx['error']:.0e}")
    cells.append(row.get("bundle", {}).get("state", "–"))
    return "| " + " | ".join(cells) + " |"


def _plain(text: str) -> str:
    return text.replace("<", "‹").replace(">", "›").replace("|", "/")


def worse(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """What a row measured anew lacks of the committed one; of the parts that it has."""
    found: list[str] = []
    if "command" in new and "command" not in old:
        return [f"the command refuses it: {new['command']}"]
    for part in ("export", "dynamo"):
        if part not in new or "command" in old:
            continue
        before, now = old.get(part, {}), new[part]
        if "captured" in now and "captured" not in before:
            found.append(f"{part}: not captured: {now['captured']}")
        elif "captured" not in now:
            found += _worse_graph(part, before, now)
            attentions = new["fused"] + new["products"] // 2
            if now["found"] < attentions:
                found.append(f"{part}: {now['found']} of {attentions} attentions in the report")
    if "onnx" in new and "error" in old.get("onnx", {}):
        error = new["onnx"].get("error")
        if error is None:
            found.append(f"onnx: {new['onnx'].get('built')}")
        elif error > WRONG:
            found.append(f"onnx: an error of {error}")
    if "bundle" in new and "bundle" in old:
        before, now = (STATES.index(row["bundle"]["state"]) for row in (old, new))
        if now < before:
            found.append(f"bundle: {new['bundle']['why']}")
    return found


def _worse_graph(part: str, before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    found: list[str] = []
    if now.get("wrong"):
        found.append(f"{part}: rewritten where there is no picture: {now['wrong']}")
    if now["error"] > WRONG:
        found.append(f"{part}: an error of {now['error']}")
    if now["rewritten"] < before.get("rewritten", 0):
        found.append(f"{part}: {now['rewritten']} rewritten instead of {before['rewritten']}")
    return found
