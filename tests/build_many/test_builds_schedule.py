"""Who may start: a pure function, and what always holds for it."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from todo_compile.build.many.schedule import Need, startable


def start(waiting: list[float], running: list[float], budget: float, jobs: int = 9) -> list[int]:
    needs = {number: Need(size) for number, size in enumerate(waiting)}
    return startable(needs, [Need(size) for size in running], budget=budget, jobs=jobs)


@pytest.mark.parametrize(
    ("waiting", "running", "budget", "jobs", "expected"),
    [
        ([4, 4, 4], [], 10, 9, [0, 1]),
        ([4, 4, 4], [], 12, 9, [0, 1, 2]),
        ([4, 4, 4], [], 12, 2, [0, 1]),
        ([4, 4], [4, 4], 12, 9, [0]),
        ([9, 2, 2], [4], 10, 9, [1, 2]),  # smaller ones overtake
        ([20, 2], [], 10, 9, [0]),  # never fits: alone
        ([20, 2], [2], 10, 9, [1]),  # and not beside others
        ([math.inf, 1], [], 10, 9, [0]),
        ([1, math.inf], [], 10, 9, [0]),
        ([], [1], 10, 9, []),
    ],
)
def test_decisions(
    waiting: list[float], running: list[float], budget: float, jobs: int, expected: list[int]
) -> None:
    assert start(waiting, running, budget, jobs) == expected


def test_one_at_a_time_measures_the_gpu() -> None:
    waiting = {3: Need(1, timed=True), 5: Need(1, timed=True), 7: Need(1)}
    assert startable(waiting, [], budget=10, jobs=9) == [3, 7]
    assert startable(waiting, [Need(1, timed=True)], budget=10, jobs=9) == [7]


sizes = st.lists(st.integers(1, 30), max_size=8)


@given(waiting=sizes, budget=st.integers(1, 40), jobs=st.integers(1, 4), data=st.data())
def test_all_run_in_the_end_and_never_too_many(
    waiting: list[int], budget: int, jobs: int, data: st.DataObject
) -> None:
    left = dict(enumerate(map(Need, waiting)))
    running: dict[int, Need] = {}
    while left or running:
        for number in startable(left, list(running.values()), budget=budget, jobs=jobs):
            running[number] = left.pop(number)
        assert running, "nothing runs, and something waits"
        assert len(running) <= jobs
        assert len(running) == 1 or sum(n.bytes for n in running.values()) <= budget
        del running[data.draw(st.sampled_from(sorted(running)))]


def test_estimates_cover_what_was_measured() -> None:
    """Against the benchmarks: never less than what a build took, at most 15 % more."""
    import json

    from todo_compile.build.many.memory import need
    from todo_compile.build.request import BuildRequest

    results = Path(__file__).parents[2] / "benchmarks" / "results"
    for name, file in (("sd15", "build-turns"), ("sdxl", "build-turns-sdxl")):
        rows = json.loads((results / f"{file}.json").read_text())["rows"]
        measured = rows[-1]["peak_rss_bytes"]  # the newest commit comes last
        request = BuildRequest(
            model=name, res=("1024",), out="x.plan", weights="random", target="sm89"
        )
        estimate = need(request.resolve(look=True).parts).bytes
        assert measured <= estimate <= 1.15 * measured


def test_needs_of_bundles_and_verified_builds(tmp_path: Path) -> None:
    from todo_compile.build.many.memory import need
    from todo_compile.build.request import BuildRequest

    def needs(request: BuildRequest) -> Need:
        return need(request.resolve(look=True).parts)

    unet = BuildRequest(model="sd15", res=("512",), out="x.onnx", weights="random")
    whole = unet.model_copy(update={"out": f"{tmp_path}/b/", "format": "onnx"})
    assert needs(whole) == need(unet.resolve(look=True).parts)  # one after the other: the largest
    single = unet.model_copy(update={"precision": "fp32"})
    assert needs(single).bytes > needs(unet).bytes
    alone = needs(unet.model_copy(update={"verify": True}))
    assert alone == replace(needs(unet), alone=True)
    assert startable({0: alone, 1: Need(1)}, [], budget=1e12, jobs=9) == [0]
    assert startable({0: alone, 1: Need(1)}, [Need(1)], budget=1e12, jobs=9) == [1]


@pytest.mark.parametrize(
    ("text", "size"),
    [("12GB", 12e9), ("1.5 gb", 1.5e9), ("16GiB", 2**34), ("800 MB", 8e8), ("64kb", 64e3)],
)
def test_memory(text: str, size: float) -> None:
    from todo_compile.build.many.memory import parse_memory

    assert parse_memory(text) == size


@pytest.mark.parametrize("text", ["", "12", "lots", "-1GB", "0GB", "1e9", "12GB more"])
def test_no_memory(text: str) -> None:
    from todo_compile.build.many.memory import parse_memory
    from todo_compile.errors import ConfigError

    with pytest.raises(ConfigError, match="is not a size of memory"):
        parse_memory(text)
