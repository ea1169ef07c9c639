"""Tables keep every number and every word at any width."""

from __future__ import annotations

import dataclasses
import re

import pytest
from rich.console import Group

from todo_compile.cli.screen import Screen
from todo_compile.cli.tables import drift_table, sites_table, stops_table, wrapped
from todo_compile.drift.measure import Drift, SiteDrift
from todo_compile.passes.report import HoistStop, Report, SiteReport, Totals

TOTALS = Totals(1000, 500, 800, 300, 10, 5, 70, 7, 2**31)


def _site(index: int, **changes: object) -> SiteReport:
    module = f"unet.down_blocks.{index}.attentions.0.transformer_blocks.0.attn1"
    values: dict[str, object] = {
        "name": f"sdpa_{index}", "module": module, "kind": "self", "spelling": "sdpa",
        "grid": (256, 256), "level": 1, "heads": 16, "head_dim": 40, "query_tokens": 65536,
        "key_tokens": 65536, "key_tokens_after": 4096, "factor": (4, 2), "action": "rewritten",
        "reason": "65,536 tokens, bound 4,096", "flops": 100, "flops_after": 10, "share": 0.13,
        "sampling": "nearest-exact",
    }  # fmt: skip
    return SiteReport(**{**values, **changes})  # type: ignore[arg-type]


REFUSED = {
    "action": "refused", "factor": (1, 1), "key_tokens_after": 65536, "kind": "joint",
    "reason": "its tokens may be hidden by a mask, and what hides them is not known before it runs",
}  # fmt: skip
STOP = HoistStop("key", "linear_12", "a norm over all tokens stands between", 123_000)


def _report() -> Report:
    cross = _site(9, kind="cross", action="dense", grid=None, level=0)
    sites = (_site(0), _site(1, stops=(STOP,)), _site(2, **REFUSED), cross)
    return Report(sites, (), TOTALS, {"factors": None}, 10)


def _printed(table: Group | None, width: int, capsys: pytest.CaptureFixture[str]) -> list[str]:
    assert table is not None
    Screen(width=width).print(table)
    return capsys.readouterr().out.splitlines()


@pytest.mark.parametrize("width", [76, 80, 100, 120, 140, 160, 200])
def test_nothing_is_lost(width: int, capsys: pytest.CaptureFixture[str]) -> None:
    lines = _printed(sites_table(_report(), width), width, capsys)
    assert max(map(len, lines)) <= width
    text = re.sub(r"\s+", " ", " ".join(lines))
    assert text.count("65,536 → 4,096") == 2
    assert text.count("4×2") == 2
    assert "1 of cross-attention" in text
    for site in range(3):
        assert f"unet.down_blocks.{site}.attn.0.blocks.0.attn1" in text
    # Word by word: a sentence goes on in the next line, beside or below the numbers.
    for word in (
        "nearest-exact;",
        "refused",
        "joint",
        "attention;",
        *str(REFUSED["reason"]).split(),
    ):
        assert word in text


def test_one_line_a_site_where_there_is_room(capsys: pytest.CaptureFixture[str]) -> None:
    plain = dataclasses.replace(_report(), sites=(_site(0), _site(1)))
    assert len(_printed(sites_table(plain, 170), 170, capsys)) == 3
    assert len(_printed(sites_table(plain, 80), 80, capsys)) == 1 + 2 * 3


@pytest.mark.parametrize("width", [60, 80, 140])
def test_stops_and_drift(width: int, capsys: pytest.CaptureFixture[str]) -> None:
    text = " ".join(" ".join(_printed(stops_table(_report(), width), width, capsys)).split())
    assert "linear_12" in text
    assert "123 kFLOP" in text
    errors = (0.0012, 0.0034, 0.0056)
    module = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1"
    site = SiteDrift("sdpa", module, 1, (64, 64), (4, 4), "nearest", 0.1, errors, errors)
    drift = Drift((900.0, 500.0, 100.0), errors, (site,), 4, {"sampling": "nearest"})
    lines = _printed(drift_table(drift, width), width, capsys)
    assert max(map(len, lines)) <= width
    assert module in "".join("".join(lines).split())  # it may break at a dot
    assert all(" ".join(lines).count(f"{e:.2e}") >= 2 for e in errors)


def test_long_paths_break_at_dots() -> None:
    path = "a_model.of.many.modules.0.with.long.names.attn1"
    lines = wrapped(f"see {path} there", 20)
    assert all(len(line) <= 20 for line in lines)
    assert "".join(lines).replace(" ", "") == f"see{path}there"
    assert all(line.endswith((".", "see", "there")) for line in lines)
