"""What was decided on measurements still agrees with them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results"


def _ratios(rows: list[dict[str, Any]], sampling: str, where: str) -> list[float]:
    """Error of the divisor to that of the factor which leaves smaller cells."""
    return sorted(
        row["errors"][f"divisor {where}"]["median"] / row["errors"][f"ragged {where}"]["median"]
        for row in rows
        if row["sampling"] == sampling
    )


def test_factors_that_leave_smaller_cells_are_nearer_to_dense_than_divisors() -> None:
    """So `smallest_factors` prefers no divisor; the document has the figures."""
    rows = json.loads((RESULTS / "soundness-ragged.json").read_text(encoding="utf-8"))["rows"]
    assert {(row["side"], row["factor"], row["divisor"]) for row in rows} == {
        (136, 3, 4),
        (160, 3, 4),
        (176, 3, 4),
    }
    document = (ROOT / "docs" / "fidelity.md").read_text(encoding="utf-8")
    for sampling in ("nearest", "average"):
        ratios = _ratios(rows, sampling, "anywhere")
        assert min(*ratios, *_ratios(rows, sampling, "edge")) > 1.1
        said = f"{ratios[0]:.1f} to {ratios[-1]:.1f} times"
        assert said in " ".join(document.split()), said


def _rewritten(sites: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [site for site in sites if site["action"] == "rewritten"]


def test_full_size_plans_lost_nothing() -> None:
    """The models' sites and factors are those of before the proofs were asked for (fbdf5f8)."""
    rows = json.loads((RESULTS / "passes.json").read_text(encoding="utf-8"))["rows"]
    by_model = {row["model"]: row for row in rows}
    assert {"sd15", "sd21", "sdxl", "pixart", "sd3", "flux"} <= by_model.keys()
    for name, row in by_model.items():
        before, after = row["before"]["sites"], row["after"]["sites"]
        assert _rewritten(after) == _rewritten(before), name
        assert _rewritten(after), name
        assert sum(s["count"] for s in after) == sum(s["count"] for s in before), name
        assert not [s for s in after if s["action"] == "refused"], name
    assert by_model["sd15"]["before"]["commit"] == "fbdf5f8"


def test_the_passes_are_linear_in_depth() -> None:
    """Twice and four times the transformer layers cost about twice and four times the time."""
    rows = json.loads((RESULTS / "passes.json").read_text(encoding="utf-8"))["rows"]
    seconds = {row["model"]: row["after"]["seconds"]["median"] for row in rows}
    for depth in (2, 4):
        assert seconds[f"sd15 ×{depth}"] < 1.2 * depth * seconds["sd15"]
