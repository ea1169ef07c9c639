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
