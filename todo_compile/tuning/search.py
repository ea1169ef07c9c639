"""From a budget to a plan that was drawn: what is tried, and which of it is returned.

Whatever is tried is drawn on the same held-out pairs. Of all plans that keep the budget, uniform
ones and the dense one among them, the best is returned; so no uniform plan can be both faster and
closer.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from todo_compile.bundle.plan_parts import Measured, Phase, Point, merged
from todo_compile.errors import ConfigError
from todo_compile.progress import Progress, Step
from todo_compile.tuning.choosing import Choice, Problem, mean_flops
from todo_compile.tuning.drawing import Pair
from todo_compile.tuning.statistics import measure
from todo_compile.tuning.studio import Studio
from todo_compile.tuning.wishes import Budget

_CLOSE = 1.05
"""Limits of the search that are nearer than this are one."""


class Search:
    """Plans that were drawn.

    Args:
        studio: draws.
        problem: plans are chosen from.
        held: pairs that the scores know nothing of.
        progress: receives steps.
    """

    def __init__(
        self, studio: Studio, problem: Problem, held: Sequence[Pair], progress: Progress
    ) -> None:
        self._studio, self._problem, self._held = studio, problem, held
        self._progress = progress
        self._dense = Phase(start=0.0, sites={}, flops=studio.dense_flops)
        self._measured: dict[str, Measured] = {}
        self._drawn: Callable[[float], None] = lambda _: None

    def run(
        self, budget: Budget, curve: int, rounds: int
    ) -> tuple[Point, tuple[Point, ...], tuple[Point, ...], tuple[str, ...]]:
        """The plan for a budget, the curve of tuned ones, the uniform ones, and remarks.

        Args:
            budget: to keep.
            curve: plans to draw for the curve, spread evenly from the dense to the fastest.
            rounds: of the search for a drift.

        Raises:
            ConfigError: no plan has so much speed.
        """
        problem = self._problem
        self._check_speed(budget)
        with self._progress.step("uniform plans") as step:
            uniform = self.uniform(step)
        tuned = [self._point("dense", (self._dense,), 0.0)]
        with self._progress.step("curve") as step:
            least, dense = problem.least_flops, problem.dense_flops
            for index in range(curve):
                limit = dense - (dense - least) * (index + 1) / curve
                self._counts(step, index, curve)
                # Rounding must not put the fastest plan out of reach.
                if (choice := problem.best(limit * (1 + 1e-12))) is not None:
                    tuned.append(self._tuned(choice))
        with self._progress.step("search") as step:
            self._counts(step, 0, 1)
            if budget.kind == "speedup":
                point = self.for_speed(budget.value)
                tuned += [] if point is None else [point]
            else:
                tuned += self._bisected(budget.value, rounds, step)
        everything = [*tuned, *uniform]
        kept = [point for point in everything if _keeps(point, budget)]
        if not kept:  # of a speed alone: its plan failed nothing but the rounding
            raise ConfigError(
                f"No plan that was drawn has a speedup of {budget.value:g}.",
                remedy="Ask for a little less.",
            )
        best = min(kept, key=_rank(budget))
        return best, _frontier(tuned), tuple(uniform), _notes(best, budget)

    def _check_speed(self, budget: Budget) -> None:
        most = self._problem.dense_flops / self._problem.least_flops
        if budget.kind == "speedup" and budget.value > most * (1 + 1e-9):
            raise ConfigError(
                f"A speedup of {budget.value:g} is out of reach: with these candidates it is at "
                f"most {math.floor(most * 1000) / 1000:g} at this size, counted in the denoiser's "
                "FLOPs.",
                remedy="Ask for less, give larger candidates, or a larger --res: there attention's "
                "share is larger.",
            )

    def _bisected(self, drift: float, rounds: int, step: Step) -> list[Point]:
        """Plans for predicted drifts ever nearer to the one whose measured drift is the budget."""
        low, high = 0.0, math.inf
        limit = drift
        found: list[Point] = []
        seen: set[str] = set()
        for number in range(rounds):
            self._counts(step, number, rounds, f"predicted {limit:.1e}")
            choice = self._problem.cheapest(limit)
            if choice is None:
                break
            point = self._tuned(choice)
            known = _text(point.phases)
            if known not in seen:
                found.append(point)
            assert point.measured is not None
            if point.measured.drift.high <= drift:
                low = limit
                fastest = choice.flops <= self._problem.least_flops * (1 + 1e-9)
                if fastest:
                    break
            else:
                high = limit
            if low and high / low < _CLOSE:
                break
            seen.add(known)
            limit = limit * 2 if high == math.inf else (math.sqrt(low * high) if low else high / 3)
        return found

    def for_speed(self, speedup: float) -> Point | None:
        """The plan with the least predicted drift that is so fast, drawn; None if there is none."""
        choice = self._problem.best(self._problem.dense_flops / speedup)
        return None if choice is None else self._tuned(choice)

    def uniform(
        self, step: Step | None = None, *, only: Sequence[str] | None = None
    ) -> list[Point]:
        """Each candidate at the sites of the largest grid, and at all that have room for it.

        Args:
            step: is told how far it is.
            only: names of those that are wanted; None draws all.
        """
        options, sites = self._problem.options, self._studio.sites
        largest = max(s.rows * s.columns for s in sites)
        top = {s.name for s in sites if s.rows * s.columns == largest}
        texts = list(dict.fromkeys(text for site, text in self._problem.saved if site in options))
        found: list[Point] = []
        for number, text in enumerate(texts):
            if step is not None:
                self._counts(step, number, len(texts), text)
            everywhere = {s: text for s in options if (s, text) in self._problem.saved}
            level = {s: t for s, t in everywhere.items() if s in top}
            for where, chosen in (("level 1", level), ("all levels", everywhere)):
                if not chosen or (where == "all levels" and chosen == level):
                    continue
                name = f"uniform {text}, {where}"
                if only is not None and name not in only:
                    continue
                phase = Phase(start=0.0, sites=chosen, flops=0)
                found.append(self._point(name, (phase,), self._sum(phase)))
        return found

    def _counts(self, step: Step, number: int, total: int, what: str = "") -> None:
        """Say that plan `number` of `total` is begun, and how far it is from now on."""
        count, drawn = len(self._held), 0

        def tick(pictures: float) -> None:
            nonlocal drawn
            drawn += pictures
            step.update(number + min(drawn / count, 1), total, what)

        self._drawn = tick
        step.update(number, total, what)

    def _sum(self, phase: Phase) -> float:
        losses, parts = self._problem.losses, range(len(self._problem.parts))
        return sum(losses[s, text, part] for s, text in phase.sites.items() for part in parts)

    def _tuned(self, choice: Choice) -> Point:
        return self._point("tuned", choice.phases, choice.predicted)

    def _point(self, name: str, phases: Sequence[Phase], predicted: float) -> Point:
        counted = merged(
            [
                p.model_copy(update={"flops": self._studio.flops(p.options)})
                if p.sites
                else p.model_copy(update={"flops": self._studio.dense_flops})
                for p in phases
            ]
        )
        problem = self._problem
        flops = mean_flops(counted, problem.dense_flops, problem.parts, problem.lengths)
        return Point(
            name=name,
            speedup=problem.dense_flops / flops,
            predicted=predicted,
            measured=self._measure(counted),
            phases=counted,
        )

    def _measure(self, phases: tuple[Phase, ...]) -> Measured:
        key = _text(phases)
        if key not in self._measured:
            dense = self._studio.draw_dense(self._held)
            drawn = self._studio.draw(phases, self._held, self._drawn)
            prompts = [pair.prompt for pair in self._held]
            self._measured[key] = measure(drawn, dense, prompts)
        return self._measured[key]


def _text(phases: Sequence[Phase]) -> str:
    return repr([(p.start, sorted(p.sites.items())) for p in phases])


def _keeps(point: Point, budget: Budget) -> bool:
    if budget.kind == "speedup":
        return point.speedup >= budget.value * (1 - 1e-9)
    assert point.measured is not None
    return point.measured.drift.high <= budget.value


def _rank(budget: Budget):
    def rank(point: Point) -> tuple[float, float]:
        assert point.measured is not None
        pair = point.measured.drift.mean, -point.speedup
        return pair if budget.kind == "speedup" else (pair[1], pair[0])

    return rank


def _frontier(points: Sequence[Point]) -> tuple[Point, ...]:
    """The plans that no other beats in speed and measured drift, fastest last."""
    found: list[Point] = []
    for point in sorted(points, key=lambda p: (-p.speedup, _drift(p))):
        if not found or _drift(point) < _drift(found[-1]):
            found.append(point)
    return tuple(reversed(found))


def _drift(point: Point) -> float:
    return point.measured.drift.mean if point.measured is not None else math.inf


def _notes(best: Point, budget: Budget) -> tuple[str, ...]:
    notes: list[str] = []
    if best.name == "dense":
        notes.append(
            f"No plan that was tried keeps {budget} on the held-out pairs: the dense one is "
            "returned."
        )
    if best.name.startswith("uniform"):
        notes.append(f"The best that was drawn is a uniform plan: {best.name}.")
    assert best.measured is not None
    if best.measured.prompts < 6:
        notes.append(
            f"Verified with {best.measured.prompts} prompts only: the interval says little."
        )
    return tuple(notes)
