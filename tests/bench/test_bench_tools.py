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


BY_CLASS = "test_StableDiffusionMixin_component"
"""Asks by isinstance whether the UNet is diffusers' own class."""


def test_diffusers_suites() -> None:
    """What passes as it is passes with our file too, or is refused in our words; one by class."""
    rows = tool_tables.read("suites")["rows"]
    assert {row["name"] for row in rows} >= {
        "text to image", "image to image", "inpainting", "ControlNet", "SDXL",
    }  # fmt: skip
    for row in rows:
        assert {test.rpartition("::")[2] for test in row["differ"]} <= {BY_CLASS}, row
        told = row["passed"] + sum(row["refused"].values()) + len(row["differ"])
        assert told == row["baseline_passed"] > 10
        assert row["calls"] > 50
        assert row["most"] < 1e-4
        assert all("compiled" in said or "built for" in said for said in row["refused"]), row
