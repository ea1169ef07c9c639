"""docs/modules.md from the rows of a run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

PAGE = Path(__file__).parents[2] / "docs" / "modules.md"

_TOP = """# Videos and modules of others

Made by `python benchmarks/modules.py`; do not edit. Each is tiny and random, given to
`compile(module, inputs, …)` as it is; attention over the picture is downsampled by two on each
side, in a video within every frame. Attention over frames (in time) stays as it is.

- *softmaxes*: fused attentions and softmaxes of an eager run, counted before torch's own functions;
  linear attention has two.
- *rewritten*, *cross*, *dense*, *refused*: what became of them, in the graph of `torch.export`; in
  brackets what differs in Dynamo's.
- *error*: of the output, against an eager run whose attention subsamples its own keys and values,
  written apart from the passes; *effect*: how far that is from dense. Both in units of the greatest
  value.
- *ONNX*: the same error of the built file in onnxruntime, or none.

"""


def page(rows: list[dict[str, Any]]) -> str:
    """The document."""
    head = "| module | softmaxes | rewritten | cross | dense | refused | error | effect | ONNX |"
    lines = [head, "|" + "---|" * (head.count("|") - 1), *(_row(row) for row in rows)]
    reasons: dict[str, list[str]] = {}
    for row in rows:
        said = [
            *row["export"].get("reasons", {}),
            *(why for part in ("export", "dynamo") if (why := row[part].get("captured"))),
            *([row["onnx"]["built"]] if "built" in row["onnx"] else []),
        ]
        for reason in dict.fromkeys(said):
            reasons.setdefault(reason, []).append(row["title"])
    why = [f"- {', '.join(titles)}: {_plain(reason)}" for reason, titles in reasons.items()]
    return "\n".join([_TOP + "\n".join(lines), "\n## What is refused, and why\n", *why, ""])


def _row(row: dict[str, Any]) -> str:
    export, dynamo = row["export"], row["dynamo"]
    cells = [row["title"], str(row["softmaxes"])]
    for key in ("rewritten", "cross", "dense", "refused"):
        value, other = export.get(key, "–"), dynamo.get(key, "–")
        cells.append(str(value) if value == other else f"{value} ({other})")
    rewritten = bool(export.get("rewritten"))
    cells += [f"{export[key]:.0e}" if rewritten else "–" for key in ("error", "effect")]
    onnx = row["onnx"]
    cells.append(f"{onnx['error']:.0e}" if "error" in onnx else "–")
    return "| " + " | ".join(cells) + " |"


def _plain(text: str) -> str:
    return text.replace("<", "‹").replace(">", "›").replace("|", "/")
