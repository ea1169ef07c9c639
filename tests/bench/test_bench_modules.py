"""docs/modules.md is what was measured, and nothing in it is wrong."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.append(str(Path(__file__).parents[2]))
sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))

import modules
from models_parts.page import WRONG
from modules_parts.page import PAGE, page

ROOT = Path(__file__).parents[2]
ROWS: dict[str, dict[str, Any]] = {
    row["family"]: row
    for row in json.loads((ROOT / "benchmarks/results/modules.json").read_text("utf-8"))["rows"]
}


def test_the_page_is_the_result() -> None:
    assert PAGE.read_text(encoding="utf-8") == page(list(ROWS.values()))
    assert list(ROWS) == [*(row.key for row in modules.VIDEOS), *modules.peers.PEERS]


@pytest.mark.parametrize("name", ROWS)
def test_nothing_committed_is_wrong(name: str) -> None:
    row = ROWS[name]
    for part in ("export", "dynamo"):
        found = row[part]
        assert found["error"] <= WRONG
        assert found["rewritten"] == found["subsampled"], "the oracle pooled the same number"
        if found["rewritten"]:
            assert found["effect"] > 10 * found["error"], "pooling must matter"
        linear = sum(n for why, n in found["reasons"].items() if "linear attention" in why)
        assert found["found"] + linear == row["softmaxes"], "none is missing from the report"
    assert row["onnx"].get("error", 0.0) <= WRONG


@pytest.mark.slow
@pytest.mark.parametrize("row", modules.VIDEOS, ids=lambda row: row.key)
def test_no_video_gets_worse(row: modules.Row, tmp_path: Path) -> None:
    old, new = ROWS[row.key], modules.measure(row, tmp_path)
    for part in ("export", "dynamo"):
        assert new[part]["error"] <= WRONG
        assert new[part]["rewritten"] >= old[part]["rewritten"]
    assert ("error" in new["onnx"]) >= ("error" in old["onnx"])
    assert new["onnx"].get("error", 0.0) <= WRONG


def test_linear_attention_is_refused_with_its_reason() -> None:
    reasons = " ".join(ROWS["imagen linear"]["export"]["reasons"])
    assert "linear attention" in reasons
