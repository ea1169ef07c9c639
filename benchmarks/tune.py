r"""Tuned plans against uniform ones of the same speed: pictures, dense against each, same seeds.

    python benchmarks/tune.py --sides 128,256 --pairs 64
    python benchmarks/tune.py --sides 512 --pairs 32 --fit 4 --parts 4 --phases 3 --only speeds

Scores are measured on every second prompt of the model, plans are drawn on the others. For the
speed of uniform factor 4 and factor 8 on the largest grid the best plan is chosen for one phase and
for three, and drawn; so are the uniform plans. At 128 px plans are also chosen for ten budgets, on
half of the held-out prompts, and drawn for the other half, which nothing was chosen by. Scores and
pictures are kept in ``build/tune`` and taken up again, so that a run may be stopped at any time.
Writes ``results/tune.json``; sizes and parts that were not asked for stay as they are there.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import DEMO, RESULTS, machine, save
from fidelity_parts.intervals import paired

from todo_compile import models
from todo_compile.bundle.plan_parts import Point
from todo_compile.choices import choice_text, parse_candidates
from todo_compile.progress import SilentProgress
from todo_compile.runtime.metrics import mse
from todo_compile.tuning.choosing import Problem
from todo_compile.tuning.drawing import Pair, Sampling, make_pairs
from todo_compile.tuning.filling import candidate_texts, fill_scores
from todo_compile.tuning.prompts import read_prompts, split
from todo_compile.tuning.run import QUICK, allowed, schedule_parts
from todo_compile.tuning.scores import Scores
from todo_compile.tuning.search import Search
from todo_compile.tuning.statistics import measure
from todo_compile.tuning.studio import Studio
from todo_compile.tuning.wishes import DEFAULT_CANDIDATES, Budget

ROOT = Path(__file__).parent.parent
KEPT = ROOT / "build" / "tune"
SPEEDS = ("nearest:4", "nearest:8")
BUDGETS = (1e-6, 3e-6, 1e-5, 3e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2)


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--sides", default="128", help="pixels, e.g. 128,256")
    parser.add_argument("--pairs", type=int, default=24, help="held-out pairs of prompt and seed")
    parser.add_argument("--fit", type=int, default=8, help="pairs that scores are measured with")
    parser.add_argument("--budget-pairs", type=int, default=16, help="for each half of the prompts")
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--guidance", type=float, default=3.0)
    parser.add_argument("--batch", type=int, default=4, help="pictures at once; 1 above 256 px")
    parser.add_argument("--parts", type=int, default=8, help="of the schedule, in the scores")
    parser.add_argument("--phases", default="1,3", help="of the plans for a speed")
    parser.add_argument("--also", default="", help="more speeds to tune to, e.g. 1.07,1.08")
    parser.add_argument(
        "--only",
        choices=("speeds", "budgets", "also"),
        help="None measures all; also keeps the other plans for a speed as they are",
    )
    parser.add_argument("--name", default="tune", help="of the results")
    return parser.parse_args()


def main() -> None:
    """Measure, choose, draw, write."""
    given = arguments()
    KEPT.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    known = RESULTS / f"{given.name}.json"
    sizes: dict[int, dict[str, Any]] = {}
    if known.is_file():
        sizes = {size["side"]: size for size in json.loads(known.read_text())["sizes"]}
    for side in map(int, given.sides.split(",")):
        before = sizes.get(side, {})
        sizes[side] = {**before, **one_size(side, given, before.get("rows", []))}
        path = save(
            given.name,
            {
                "model": "demo",
                "steps": given.steps,
                "guidance": given.guidance,
                "sizes": [sizes[side] for side in sorted(sizes)],
            },
        )
        print(f"wrote {path}")


def one_size(side: int, given: argparse.Namespace, before: list[dict[str, Any]]) -> dict[str, Any]:
    """Rows of one size; `before` are its plans for a speed as they stand."""
    source = models.resolve("demo")
    resolution = models.Resolution.parse(side)
    batch = given.batch if side <= 256 else 1
    sampling = Sampling(given.steps, given.guidance, None, batch)
    studio = _Kept(source, resolution, sampling)
    fit_prompts, held_prompts = split(read_prompts(None, DEMO, resolution))
    fit = make_pairs(fit_prompts, given.fit, 0)
    held = make_pairs(held_prompts, given.pairs, 10_000)
    options, saved = allowed(studio, parse_candidates([DEFAULT_CANDIDATES]), frozenset())
    parts = schedule_parts(given.steps, given.parts)
    key = {
        "side": side,
        "sampling": dataclasses.asdict(sampling),
        "fit": [[p.prompt, p.seed] for p in fit],
        "parts": given.parts,
        "candidates": {site: [choice_text(c) for c in row] for site, row in options.items()},
    }
    place = KEPT / f"scores-{side}.json"
    known = Scores.load(place, key, strict=False)
    progress = _Said()
    effort = dataclasses.replace(QUICK, fit=given.fit, pairs=given.pairs)
    fill_scores(studio, known, fit, options, parts, place, effort, held, progress)
    starts, lengths = [s for s, _ in parts], [n for _, n in parts]

    def search(phases: int, pairs: list[Pair]) -> Search:
        problem = Problem(
            options=options,
            saved=saved,
            losses=known.losses(list(options), candidate_texts(options), starts),
            parts=starts,
            lengths=lengths,
            dense_flops=studio.dense_flops,
            phases=phases,
        )
        return Search(studio, problem, pairs, progress)

    found: dict[str, Any] = {"side": side}
    if given.only == "also":
        phases = max(map(int, given.phases.split(",")))
        wanted = map(float, given.also.split(","))
        found["rows"] = [*before, *others(search(phases, held), phases, wanted)]
    elif given.only != "budgets":
        by_phases = {phases: search(phases, held) for phases in map(int, given.phases.split(","))}
        found["pairs"], found["prompts"] = len(held), len(set(held_prompts))
        found["fit"], found["parts"] = len(fit), len(parts)
        found["rows"] = speeds(studio, held, by_phases)
    if given.only in (None, "budgets") and side <= 128:
        count = given.budget_pairs
        seen = make_pairs(held_prompts[::2], count, 30_000)
        fresh = make_pairs(held_prompts[1::2], count, 40_000)
        found["budgets"] = [one_budget(search(3, seen), b, studio, fresh) for b in BUDGETS]
    found[f"{given.only or 'all'}_run"] = {"command": sys.argv[1:], **machine()}
    return found


def others(search: Search, phases: int, wanted: Iterable[float]) -> list[dict[str, Any]]:
    """Tuned plans for other speeds."""
    rows: list[dict[str, Any]] = []
    for speed in wanted:
        if (point := search.for_speed(speed)) is not None:
            print(f"{speed:g}: {point.measured}", flush=True)
            rows.append({**row(point), "phases": phases, "at_the_speed_of": f"{speed:g}"})
    return rows


def speeds(studio: Studio, held: list[Pair], by_phases: dict[int, Search]) -> list[dict[str, Any]]:
    """Uniform plans, and tuned ones of so many phases that have the speed of one."""
    side = studio.resolution.width
    first = next(iter(by_phases.values()))
    # Above that size drawing takes minutes a plan: only those whose speed something is held to.
    wanted = None if side <= 128 else [f"uniform {text}, level 1" for text in SPEEDS]
    uniform = first.uniform(only=wanted)
    rows = [row(point) for point in uniform]
    for text in SPEEDS:
        level = next((p for p in uniform if p.name == f"uniform {text}, level 1"), None)
        if level is None:
            continue
        for phases, one in by_phases.items():
            point = one.for_speed(level.speedup)
            if point is None:
                continue
            print(f"{side} px, {phases} phases at the speed of {text}: {point.measured}")
            found = {**row(point), "phases": phases, "at_the_speed_of": level.name}
            found["against_uniform"] = against(studio, held, point, level)
            rows.append(found)
    return rows


def one_budget(search: Search, budget: float, studio: Studio, fresh: list[Pair]) -> dict[str, Any]:
    """The plan for a drift, what it was chosen by, and what it does on pairs of other prompts."""
    chosen = search.run(Budget("drift", budget), curve=8, rounds=6)[0]
    drawn, dense = studio.draw(chosen.phases, fresh), studio.draw_dense(fresh)
    measured = measure(drawn, dense, [pair.prompt for pair in fresh])
    print(f"budget {budget:g}: {chosen.speedup:.4f}, {measured.drift}", flush=True)
    return {"budget": budget, **row(chosen), "fresh": measured.model_dump(mode="json")}


def against(studio: Studio, held: list[Pair], point: Point, base: Point) -> dict[str, Any]:
    """The ratio of mean squared errors on the same pairs, with its interval."""
    dense = studio.draw_dense(held)
    errors = [
        [mse(a, b) for a, b in zip(studio.draw(p.phases, held), dense, strict=True)]
        for p in (point, base)
    ]
    return paired(errors[0], errors[1], [pair.prompt for pair in held])


def row(point: Point) -> dict[str, Any]:
    """A plan as the results have it."""
    return {
        "name": point.name,
        "speedup": point.speedup,
        "predicted": point.predicted,
        "measured": None if point.measured is None else point.measured.model_dump(mode="json"),
        "plan": [{"start": p.start, "sites": p.sites} for p in point.phases],
    }


class _Kept(Studio):
    """Finds the pictures that a run before this one drew."""

    def draw(self, phases: Any, pairs: Any, tick: Any = None) -> list[Any]:
        size = self.sampling.batch
        for start in range(0, len(pairs), size):
            group = pairs[start : start + size]
            place = self._place(phases, group)
            key = tuple((phase.start, phase.options) for phase in phases)
            if place.is_file():
                for pair, picture in zip(group, np.load(place), strict=True):
                    self._pictures.add((key, pair), picture)
            else:
                # A run may be stopped at any time: the file is whole, or absent.
                half = place.with_suffix(".half.npy")
                np.save(half, np.stack(super().draw(phases, group)))
                half.rename(place)
        return super().draw(phases, pairs, tick)

    def _place(self, phases: Any, group: Any) -> Path:
        said = [
            dataclasses.asdict(self.sampling),
            [[p.start, sorted(p.sites.items())] for p in phases],
            [[p.prompt, p.seed] for p in group],
        ]
        name = hashlib.sha256(json.dumps(said).encode()).hexdigest()[:32]
        return KEPT / f"{self.resolution}-{name}.npy"


class _Said(SilentProgress):
    """Says what it is told."""

    def info(self, text: str) -> None:
        print(text, flush=True)


if __name__ == "__main__":
    main()
