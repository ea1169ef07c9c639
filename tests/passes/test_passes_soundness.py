"""Random cases of `benchmarks/soundness.py`, and whether its judge sees what is wrong."""

from __future__ import annotations

import gc
import json
import re
import sys
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))

from soundness_parts import judge as judging
from soundness_parts.capturing import DIALECTS
from soundness_parts.case import LATER, Case, draw, repaired
from soundness_parts.judge import Verdict, judge
from soundness_parts.shrinking import as_test, explains, shrink
from soundness_parts.tally import Tally

FIRST, CASES, PART = 1_000_000, 120, 20
"""Seeds that no large run has; the dialects take turns."""

RATES: dict[str, float] = {
    "another order or windows": 0.33,
    "dynamic batch or another dtype": 0.75,
    "joint": 0.57,
    "masked text": 0.75,
    "nested": 0.25,
    "other projections": 0.71,
    "packed or named": 0.8,
    "plain": 0.4,
    "small bias": 0.25,
    "tokens see each other": 0.5,
    "two attentions": 0.33,
    "views and heads": 0.75,
    "written in place": 0.34,
}
"""Least share of rewritten cases in each class: who refuses more fails here."""


@cache
def verdicts(first: int) -> tuple[Verdict, ...]:
    """Those of a part of the cases, with the collector at rest: it takes a third of the time."""
    gc.collect()
    gc.disable()
    try:
        indices = range(first, first + PART)
        return tuple(judge(draw(FIRST + i), DIALECTS[i % 2]) for i in indices)
    finally:
        gc.enable()


@pytest.fixture(scope="module")
def tally() -> Tally:
    """All of them."""
    counts = Tally()
    for first in range(0, CASES, PART):
        for verdict in verdicts(first):
            counts.add(verdict)
    return counts


@pytest.mark.parametrize("first", range(0, CASES, PART))
def test_nothing_is_wrong_and_nothing_crashes(first: int) -> None:
    failures = [v for v in verdicts(first) if v.failed]
    assert not failures, "\n".join(as_test(v) for v in failures)


def test_nor_with_choices_that_came_later() -> None:
    """Tokens put elsewhere by writing, and pictures changed before tokens are made of them."""
    drawn = [judge(draw(LATER + FIRST + i), DIALECTS[i % 2]) for i in range(16)]
    assert not [v for v in drawn if v.failed], "\n".join(as_test(v) for v in drawn if v.failed)
    assert {"rewritten", "refused"} <= {v.outcome for v in drawn}


@pytest.mark.parametrize(("target", "moved"), [("key", True), ("query", False)])
def test_the_judge_sees_tokens_put_elsewhere(target: str, moved: bool) -> None:
    case = Case(write="copy_sorted", target=target, moment="after")
    assert judging.Trial(case, "export").moved_by_writing() == [moved]


def test_as_much_is_rewritten_as_before(tally: Tally) -> None:
    rates = tally.rates()
    less = {
        name: rates.get(name, 0.0) for name, least in RATES.items() if rates.get(name, 0.0) < least
    }
    assert not less, f"fewer sites than {RATES} are rewritten: {less}; why: {tally.reasons}"


def test_what_is_tried_shows(tally: Tally) -> None:
    """Rewritten cases differ from dense ones, laws are tried, and torch captures nearly all."""
    assert tally.invisible <= 0.05 * tally.outcomes["rewritten"]
    assert tally.outcomes["uncaptured"] <= 0.05 * CASES
    assert {"factor 1", "equal tokens"} <= set(tally.laws)


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"sampling": "nearest-exact"}, "numbers"),
        ({"factors": ((2, 1),)}, "factor"),
    ],
)
def test_the_judge_sees_a_wrong_rewrite(
    dialect: str, wrong: dict[str, Any], says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = judging.rewrite

    def broken(captured: Any, options: Any, case: Case) -> Any:
        return right(captured, replace(options, **wrong), case)

    case = Case(seed=1, detour="permuted", spelling="product")
    assert judge(case, dialect).outcome == "rewritten"
    monkeypatch.setattr(judging, "rewrite", broken)
    verdict = judge(case, dialect)
    assert (verdict.outcome, says in verdict.detail) == ("wrong", True), verdict


def test_the_judge_sees_a_crash(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> Any:
        raise IndexError("list index out of range")

    monkeypatch.setattr(judging, "rewrite", broken)
    assert judge(Case(), "export").outcome == "crash"


def test_a_case_is_its_seeds_and_prints_as_itself() -> None:
    for seed in (*range(300), *range(LATER, LATER + 60)):
        case = draw(seed)
        assert case == draw(seed) == repaired(case)
        assert eval(str(case), {"Case": Case}) == case


RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"


def test_the_long_run_found_nothing() -> None:
    """The committed run of 10,000 cases, at the commit that it names."""
    found = json.loads((RESULTS / "soundness.json").read_text(encoding="utf-8"))
    assert sum(found["outcomes"].values()) == len(DIALECTS) * found["cases"]
    assert found["cases"] == 10_000
    assert (found["wrong"], found["crash"], found["missing"]) == (0, 0, 0)
    assert found["outcomes"]["uncaptured"] <= 0.03 * len(DIALECTS) * found["cases"]
    assert not [name for name in RATES if not found["classes"][name]["rate"]]


def test_nor_did_the_run_of_choices_that_came_later() -> None:
    found = json.loads((RESULTS / "soundness-later.json").read_text(encoding="utf-8"))
    assert sum(found["outcomes"].values()) == len(DIALECTS) * found["cases"]
    assert (found["first_seed"], found["cases"] >= 500) == (LATER, True)
    assert (found["wrong"], found["crash"], found["missing"]) == (0, 0, 0)


def test_what_the_run_before_found_is_right_now() -> None:
    """All that failed in it; docs/proof.md says why."""
    found = json.loads((RESULTS / "soundness-found.json").read_text(encoding="utf-8"))
    assert len(found["cases"]) == 15
    for one in found["cases"]:
        verdict = judge(eval(one["case"], {"Case": Case}), one["dialect"])
        assert not verdict.failed, as_test(verdict)


def test_failures_become_small() -> None:
    """What does not matter becomes plain; what does stays."""

    def fails(case: Case, dialect: str) -> Verdict:
        bad = case.write == "mul_" and case.side != "none"
        return Verdict(case, dialect, "wrong" if bad else "rewritten", "numbers: off by 0.1")

    large = Case(
        seed=5, write="mul_", alias="mT", side="text_after", spelling="product", norm="layer_norm"
    )
    small = shrink(fails(large, "export"), run=fails)
    assert small.case == Case(write="mul_", side="text_after")
    assert explains(small, fails(large, "export"))
    text = as_test(small)
    assert re.match(r"def test_export_text_after_mul_?\(\) -> None:\n", text)
    assert "Case(side='text_after', write='mul_')" in text
