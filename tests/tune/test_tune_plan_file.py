"""Plan files: written whole, read by a gate, and refused for what they were not made for."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tune_helpers import Small, with_phases

from todo_compile.bundle.plan import TunedPlan, read_plan, single_phase
from todo_compile.bundle.plan_entry import PlanEntry
from todo_compile.errors import ConfigError


@pytest.fixture(scope="module")
def written(small: Small, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small.plan.save(tmp_path_factory.mktemp("plan") / "plan.json")


def test_a_file_gives_the_plan_back(small: Small, written: Path) -> None:
    plan = TunedPlan.load(written)
    assert plan == small.plan
    assert plan.digest == small.plan.digest
    assert read_plan(str(written)) == plan
    assert read_plan(plan) is plan
    for phase, options in zip(plan.phases, plan.options, strict=True):
        assert options.factors == ()
        assert len(options.sites) == len(phase.sites)
    last = len(plan.phases)
    facts = plan.entry([last])
    assert PlanEntry.model_validate(json.loads(facts.model_dump_json())) == facts
    assert facts.measured == plan.chosen.measured
    assert facts.settings["steps"] == 4
    assert f"tuned for {plan.budget}" in facts.lines()[0]
    with pytest.raises(ValueError, match="no such phase"):
        plan.entry([last + 1])


def test_it_is_held_to_what_it_was_tuned_for(small: Small) -> None:
    plan = small.plan
    plan.check(component="unet", resolution="64x64", weights=plan.weights)
    plan.check(component="unet")
    for wrong, words in (
        ({"component": "transformer"}, "component unet, and this is transformer"),
        ({"component": "unet", "resolution": "128x128"}, "size 64x64, and this is 128x128"),
        ({"component": "unet", "weights": "sha256:abc"}, "other weights"),
    ):
        with pytest.raises(ConfigError, match=words) as caught:
            plan.check(**wrong)
        assert caught.value.remedy


def test_how_many_phases_a_place_has(small: Small) -> None:
    name = small.plan.sites[0].name
    one = with_phases(small.plan, (0.0, {name: "nearest:2"}))
    two = with_phases(small.plan, (0.0, {name: "nearest:4"}), (0.5, {name: "nearest:2"}))
    assert single_phase(one, "x").sites == ((name, (2, 2, "nearest")),)
    with pytest.raises(ConfigError, match="2 phases, and a thing has one graph"):
        single_phase(two, "a thing")


def paths(value: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Where values stand in a document."""
    found = [at]
    if isinstance(value, (dict, list)):
        for key, below in value.items() if isinstance(value, dict) else enumerate(value):
            found += paths(below, (*at, key))
    return found


ODD = st.sampled_from(
    [None, True, -1, 0, 1e30, 10**15, "", "x" * 2000, "nearest:9999", "dense", [], {}, [[]]]
)


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_a_changed_file_is_a_plan_or_an_error(data: st.DataObject, written: Path) -> None:
    document = json.loads(written.read_text())
    document["settings"], document["curve"] = {}, document["curve"][:2]
    *way, last = data.draw(st.sampled_from(paths(document)[1:]))
    place: Any = document
    for key in way:
        place = place[key]
    what = data.draw(st.sampled_from(["replace", "remove", "add"]))
    if what == "replace":
        place[last] = data.draw(ODD)
    elif what == "remove":
        del place[last]
    elif isinstance(place, dict):
        place["another"] = 1
    other = written.with_name("changed.json")
    other.write_text(json.dumps(document))
    plan = None
    with contextlib.suppress(ConfigError):  # anything else that is raised is a bug
        plan = TunedPlan.load(other)
    if plan is not None:
        assert TunedPlan.load(plan.save(other)) == plan
        assert all(options.factors == () for options in plan.options)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "damaged"), ("{", "damaged"), ("[]", "damaged"), ("{}", "no plan"),
        ('{"format": "todo-compile plan", "version": 2}', "another version"),
        ('{"format": "todo-compile plan", "version": 1}', "damaged"),
        ('{"format": "todo-compile plan", "format": "x"}', "given twice"),
        ('{"format": NaN}', "damaged"), ("\x00", "damaged"),
    ],
)  # fmt: skip
def test_what_is_no_plan(text: str, words: str, tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    path.write_text(text)
    with pytest.raises(ConfigError, match=words):
        TunedPlan.load(path)


def test_places_that_hold_no_plan(tmp_path: Path) -> None:
    for path in (tmp_path / "absent.json", tmp_path, Path("/dev/null")):
        with pytest.raises(ConfigError):
            TunedPlan.load(path)


@pytest.mark.parametrize(
    "wrong",
    [
        {"start": 0.5}, {"start": -0.1}, {"start": 1.0}, {"sites": {"nowhere": "nearest:2"}},
        {"sites": {"SITE": "nearest:999"}}, {"sites": {"SITE": "nearest"}},
        {"sites": {"SITE": "nearest:2,4"}}, {"flops": -1},
    ],
)  # fmt: skip
def test_phases_that_make_no_sense(wrong: dict[str, Any], small: Small, tmp_path: Path) -> None:
    text = json.dumps(small.plan.model_dump(mode="json"))
    data = json.loads(text)
    changed = json.loads(json.dumps(wrong).replace("SITE", small.plan.sites[0].name))
    data["chosen"]["phases"][0] |= changed
    path = tmp_path / "plan.json"
    path.write_text(json.dumps(data))
    with pytest.raises(ConfigError, match="damaged"):
        TunedPlan.load(path)
