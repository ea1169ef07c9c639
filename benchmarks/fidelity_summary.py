"""The tables of the README and of docs/fidelity.md, from the JSON of all runs of `fidelity.py`.

    python benchmarks/fidelity_summary.py
    python benchmarks/fidelity_summary.py --runs baseline factors-2x --dir benchmarks/results

Where two runs measured one setting at one size, the first run that is named counts. All figures are
those of the JSON; the intervals are 95 % over the prompts.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from common import RESULTS

RUNS = ("baseline", "factors-2x", "tradeoff", "tradeoff-512")
Row = Mapping[str, Any]

IN_README = {
    "nearest 2": "factor 2",
    "nearest 4": "factor 4",
    "nearest 4,2": "factor 4, level 2: 2",
    "nearest 4, last 20% dense": "factor 4, last 2 of 8 steps dense",
    "nearest 4, last 40% dense": "factor 4, last 3 of 8 steps dense",
    "nearest 8": "factor 8",
    "tomesd 0.75": "ToMe (`tomesd`), ratio 0.75",
    "tiles 2": "2 × 2 tiles",
    "all tokens 2": "queries downsampled too, by 2",
    "bf16 noise": "*for scale:* weights in bf16",
    "other seed": "*for scale:* another seed",
    "no attention": "*for scale:* no attention at level 1",
}
"""What a reader of five minutes needs: setting → its name there."""


def main() -> None:
    """Print the tables: the README's, then those of docs/fidelity.md."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--runs", nargs="+", default=RUNS)
    parser.add_argument("--dir", type=Path, default=RESULTS)
    given = parser.parse_args()
    rows = read([given.dir / f"fidelity-{run}.json" for run in given.runs])
    print(readme_table(rows))
    print()
    print(drift_table(rows))
    print()
    print(sampling_table(rows))


def read(paths: Sequence[Path]) -> dict[tuple[str, int], Row]:
    """(setting, side) → its row.

    Raises:
        SystemExit: a file is absent.
    """
    found: dict[tuple[str, int], Row] = {}
    for path in paths:
        if not path.is_file():
            raise SystemExit(f"There is no {path}: run benchmarks/fidelity.py first.")
        for row in json.loads(path.read_text(encoding="utf-8"))["rows"]:
            found.setdefault((row["name"], row["side"]), row)
    return found


def readme_table(rows: Mapping[tuple[str, int], Row]) -> str:
    """The settings of `IN_README`, with what a step takes at the largest size."""
    sides = sorted({side for _, side in rows})
    top = sides[-1]
    lines = [
        f"| setting | a step at {top} px: FLOPs | time | "
        + " | ".join(f"{side} px" for side in sides)
        + " |",
        "|---" * (len(sides) + 3) + "|",
    ]
    for name, label in IN_README.items():
        row: Row = rows.get((name, top), {})
        cost = [
            _less(rows["dense", top], row, *of)
            for of in (("flops", "fewer"), ("seconds", "faster"))
        ]
        cells = [
            _cell(rows[name, side], rows["dense", side], saving=False)
            if (name, side) in rows
            else ""
            for side in sides
        ]
        lines.append(f"| {label} | " + " | ".join([*cost, *cells]) + " |")
    return "\n".join(lines)


def _less(dense: Row, row: Row, name: str, word: str) -> str:
    return f"{dense[name] / row[name]:.2f}× {word}" if row.get(name) else ""


def drift_table(rows: Mapping[tuple[str, int], Row]) -> str:
    """Settings × sizes: drift to dense, change of KID, and what a step takes."""
    sides = sorted({side for _, side in rows})
    names = list(dict.fromkeys(name for name, _ in rows if name != "dense"))
    lines = [
        "| setting | " + " | ".join(f"{side} px" for side in sides) + " |",
        "|---" * (len(sides) + 1) + "|",
    ]
    for name in names:
        cells = [
            _cell(rows[name, side], rows["dense", side]) if (name, side) in rows else ""
            for side in sides
        ]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _cell(row: Row, dense: Row, *, saving: bool = True) -> str:
    mean, low, high = row["mean"]["mse"]
    mantissa, exponent = f"{mean:.1e}".split("e")
    unit = 10.0 ** int(exponent)
    text = f"{mantissa}e{int(exponent)} [{low / unit:.1f}, {high / unit:.1f}]"
    # Another seed's pictures are dense ones of the same prompts: no other distribution.
    if row["name"] != "other seed" and (change := row.get("kid_change")):
        text += "; {:+.3f} [{:+.3f}, {:+.3f}]".format(*change)
    if saving and row.get("attention_flops") and row["kind"] == "todo":
        text += f"; 1/{dense['attention_flops'] / row['attention_flops']:.1f}"
    return text


def sampling_table(rows: Mapping[tuple[str, int], Row]) -> str:
    """Samplings × (size, factor): MSE as a ratio to `nearest`, bold where 1 lies outside."""
    compared = {key: row for key, row in rows.items() if "against_nearest" in row}
    compared = {key: row for key, row in compared.items() if not row["dense_last"]}
    columns = sorted({(row["side"], row["factors"]) for row in compared.values()})
    samplings = list(dict.fromkeys(row["sampling"] for row in compared.values()))
    lines = [
        "| sampling | " + " | ".join(f"{side} px, {factors}" for side, factors in columns) + " |",
        "|---" * (len(columns) + 1) + "|",
    ]
    for sampling in samplings:
        cells = [_ratio(compared.get((f"{sampling} {f}", side))) for side, f in columns]
        lines.append(f"| `{sampling}` | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _ratio(row: Row | None) -> str:
    if row is None:
        return ""
    found = row["against_nearest"]
    text = f"{found['ratio']:.2f} [{found['low']:.2f}, {found['high']:.2f}]"
    return f"**{text}**" if not found["low"] <= 1 <= found["high"] else text


if __name__ == "__main__":
    main()
