"""docs/models.md is what was measured, nothing in it is wrong, and no row gets worse."""

from __future__ import annotations

import copy
import json
import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.append(str(Path(__file__).parents[2]))
sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))

from models_parts.families import FAMILIES
from models_parts.measure import measure
from models_parts.page import PAGE, WRONG, page, worse

ROOT = Path(__file__).parents[2]
ROWS: dict[str, dict[str, Any]] = {
    row["family"]: row
    for row in json.loads((ROOT / "benchmarks/results/models.json").read_text("utf-8"))["rows"]
}
QUICK = ("sd3", "flux")


def test_the_page_is_the_result() -> None:
    assert PAGE.read_text(encoding="utf-8") == page(list(ROWS.values()))
    assert list(ROWS) == [family.key for family in FAMILIES]


@pytest.mark.parametrize("name", ROWS)
def test_nothing_committed_is_wrong(name: str) -> None:
    row = ROWS[name]
    assert worse(row, row) == []
    for part in ("export", "dynamo", "onnx"):
        assert row.get(part, {}).get("error", 0.0) <= WRONG
    if row.get("export", {}).get("rewritten"):
        assert row["export"]["effect"] > 10 * row["export"]["error"], "pooling must matter"


def test_what_is_worse() -> None:
    row = {
        "fused": 4, "products": 2, "onnx": {"error": 1e-6},
        "bundle": {"state": "built", "why": ""},
        "export": {"found": 5, "rewritten": 3, "error": 1e-6},
    }  # fmt: skip

    def changed(part: str, **values: Any) -> list[str]:
        new = copy.deepcopy(row)
        new[part] = {**new[part], **values}  # type: ignore[dict-item]
        return worse(row, new)

    assert changed("export", found=4) == ["export: 4 of 5 attentions in the report"]
    assert changed("export", rewritten=2) == ["export: 2 rewritten instead of 3"]
    assert changed("export", error=0.1) == ["export: an error of 0.1"]
    assert changed("export", wrong=["x"]) == ["export: rewritten where there is no picture: ['x']"]
    assert changed("export", captured="no") == ["export: not captured: no"]
    assert changed("onnx", error=0.1) == ["onnx: an error of 0.1"]
    assert worse(row, {**row, "onnx": {"built": "no"}}) == ["onnx: no"]
    assert changed("bundle", state="refused", why="no") == ["bundle: no"]
    assert changed("bundle", state="failed", why="no") == ["bundle: no"]
    assert changed("bundle", state="drawn") == []
    assert worse(row, {"command": "no"}) == ["the command refuses it: no"]
    assert changed("export", rewritten=5, found=7) == []


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        *((name, ("export",)) for name in QUICK),
        *(
            pytest.param(f.key, ("export", "dynamo", "onnx", "bundle"), marks=pytest.mark.slow)
            for f in FAMILIES
        ),
    ],
)
def test_no_row_gets_worse(name: str, parts: tuple[str, ...], tmp_path: Path) -> None:
    family = next(one for one in FAMILIES if one.key == name)
    assert worse(ROWS[name], measure(family, tmp_path, parts)) == []
