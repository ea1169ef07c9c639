"""What docs/tools.md says of other people's programs is in the runs' JSON."""

from __future__ import annotations

import tool_tables


def test_comfyui() -> None:
    """Rewritten wholly where attention is torch's or written out, and then right."""
    found = tool_tables.read("comfyui")
    assert {row["attention"] for row in found["rows"]} > {"pytorch", "sub-quadratic"}
    for row in found["rows"]:
        traced = row["attention"] in ("pytorch", "basic")
        assert row["rewritten"] == (row["self_attentions"] if traced else 0), row
        assert row["split"] == (not traced), row
        assert row["error"] < row["moved"] / 10, row
    nodes = {row["node"].partition(",")[0] for row in found["nodes"]}
    assert nodes == {"ToDo patch", "ToDo compile", "Load ToDo bundle"}
    for row in found["nodes"]:
        assert row["error"] < 1e-4, row
        assert row.get("the_given_model_stays", True), row
