"""The documents' tables come out of the runs' JSON as they stand there."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))

import race_tables
import report
from fidelity_summary import RUNS, drift_table, read, readme_table, sampling_table


def row(name: str, side: int, mse: tuple[float, float, float], **more: Any) -> dict[str, Any]:
    sampling, _, factors = name.partition(" ")
    return {
        "name": name, "side": side, "kind": "todo", "mean": {"mse": mse}, "attention_flops": 25,
        "sampling": sampling, "factors": factors, "dense_last": 0.0, **more,
    }  # fmt: skip


def test_tables(tmp_path: Path) -> None:
    dense = row("dense", 128, (0.0, 0.0, 0.0), kind="dense", attention_flops=100)
    first = row("nearest 4", 128, (2.04e-4, 1.57e-4, 3.0e-4), kid_change=(0.0012, -0.002, 0.004))
    sure = {"ratio": 0.5, "low": 0.4, "high": 0.7}
    unsure = {"ratio": 0.9, "low": 0.7, "high": 1.1}
    other = row("blend:0.5 4", 128, (1e-4, 9e-5, 1.1e-4), against_nearest=sure)
    late = row("average 4", 128, (1e-4, 9e-5, 1.1e-4), against_nearest=unsure)
    for name, rows in (
        ("a", [dense, first, other, late]),
        ("b", [row("nearest 4", 128, (9, 8, 10))]),
    ):
        (tmp_path / f"{name}.json").write_text(json.dumps({"rows": rows}))
    rows = read([tmp_path / "a.json", tmp_path / "b.json"])
    lines = drift_table(rows).splitlines()
    assert lines[0] == "| setting | 128 px |"
    assert lines[2] == "| nearest 4 | 2.0e-4 [1.6, 3.0]; +0.001 [-0.002, +0.004]; 1/4.0 |"
    assert len(lines) == 5, "dense is what they are compared with"
    ratios = sampling_table(rows).splitlines()
    assert ratios[0] == "| sampling | 128 px, 4 |"
    assert ratios[2:] == [
        "| `blend:0.5` | **0.50 [0.40, 0.70]** |",
        "| `average` | 0.90 [0.70, 1.10] |",
    ]
    with pytest.raises(SystemExit, match=r"no .*c\.json"):
        read([tmp_path / "c.json"])


def test_the_documents_hold_what_was_measured() -> None:
    """Nobody forgot to copy a table after measuring anew."""
    root = Path(__file__).parents[2]
    rows = read([root / "benchmarks" / "results" / f"fidelity-{run}.json" for run in RUNS])
    details = (root / "docs" / "fidelity.md").read_text(encoding="utf-8")
    assert readme_table(rows) in details
    assert drift_table(rows) in details
    assert sampling_table(rows) in details


def test_tables_of_the_reports() -> None:
    """README's and docs' other tables too; figures in running text are among theirs."""
    for path in report.DOCUMENTS:
        text = path.read_text(encoding="utf-8")
        assert "<!-- end -->" in text
        assert report.filled(text) == text, f"run benchmarks/report.py: {path.name}"
    readme = report.DOCUMENTS[0].read_text(encoding="utf-8")
    said = re.findall(r"(\d\.\d\d)× less processor time|and (\d\.\d\d)× at 2048 px", readme)
    assert [a or b for a, b in said] == re.findall(r"bf16 \| \*\*([\d.]+)×", report.speed())


def test_the_race_is_told_as_it_was_run() -> None:
    """The plot draws the rows' ratios, and a plan is beyond the bound by noise at most."""
    drawn = race_tables.points()
    assert len(drawn) >= 3
    for run in race_tables.RUNS:
        for row in race_tables.read(run)["rows"]:
            bound = row["dense_over"].get("bound")
            for name, found in row["dense_over"].items():
                assert found["ratio"]["median"] > 0.8, f"{row['px']} {name}"
                if bound is not None and name in ("default", "2", "4", "4,2"):
                    assert found["ratio"]["median"] < 1.05 * bound["ratio"]["median"]
    lines = [v for variants in drawn.values() for v in variants["bound"].values()]
    assert max(lines) > 10
    assert (report.ROOT / "docs" / "race.png").stat().st_size < 200_000


def test_what_the_compiler_costs_is_told() -> None:
    rows = race_tables.read("race-sd15-ours")["rows"]
    found = {(r["px"], n): o["ratio"]["median"] for r in rows for n, o in r["ours"].items()}
    assert {px for px, _ in found} == {1024, 2048}
    assert max(found.values()) < 1.025, "docs/performance.md says some two percent at most"
    default, by = (
        next(r for r in rows if r["px"] == 1024)["dense_over"][name]["removed"]["median"]
        for name in ("default", "4,2")
    )
    assert default == pytest.approx(2 / 3, abs=0.04)
    assert by == pytest.approx(0.9, abs=0.04)


def test_peers_have_all_their_columns() -> None:
    rows = race_tables.peers().splitlines()[2:]
    assert len(rows) == len(race_tables.ABOUT) + 3
    cells = [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]
    assert all(row[1].endswith("×") for row in cells), "all were timed"
    assert cells[-1][3:] == ["no", "no"], "HiDiffusion draws its windows at random"
    same = {row[2] for row in cells if "every 2nd key" in row[0] or row[0].startswith("factor 2")}
    assert len(same) == 1, "the paper's processor and the rewrite draw the same pictures"


def test_what_is_said_of_sdxls_default_plan() -> None:
    """Of the attentions that `4,2` takes, 60 are of a grid that the default plan leaves dense."""
    rows = race_tables.read("race-others-cpu")["rows"]
    variants = [r["variants"] for r in rows if (r["workload"], r["px"]) == ("sdxl", 2048)][-1]
    by, default = variants["4,2"], variants["default"]
    assert (by["factors"], default["factors"]) == ([[1, [4, 4]], [2, [2, 2]]], [[1, [2, 2]]])
    assert by["sites"]["rewritten"] - default["sites"]["rewritten"] == 60
    assert "leaves its 60 attentions of 4,096 tokens dense" in (
        Path(__file__).parents[2] / "docs" / "performance.md"
    ).read_text(encoding="utf-8").replace("\n", " ")
