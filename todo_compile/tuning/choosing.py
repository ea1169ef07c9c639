"""From scores to plans: the best choice for every site in every phase, and where phases begin.

The schedule has parts, the finest that was measured. A phase is a run of neighbouring parts with
one choice for each site. All ways to cut the parts into so many phases are tried, each solved
exactly (`solve.choose`).
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from todo_compile.bundle.plan_parts import Phase, merged
from todo_compile.choices import DENSE, choice_text
from todo_compile.options import SiteChoice
from todo_compile.tuning.solve import choose

MAX_CUTS = 400


@dataclass(frozen=True)
class Problem:
    """What a plan is chosen from.

    Args:
        options: site → candidates, the dense one left out.
        saved: (site, candidate's text) → FLOPs that it saves in one call.
        losses: (site, candidate's text, part) → predicted squared error of pictures.
        parts: shares of the schedule at which its parts begin.
        lengths: share of the steps of each part; they add up to 1.
        dense_flops: of one call of the dense denoiser.
        phases: most phases.
        dense_last: the last phase is dense.
    """

    options: Mapping[str, Sequence[SiteChoice]]
    saved: Mapping[tuple[str, str], int]
    losses: Mapping[tuple[str, str, int], float]
    parts: Sequence[float]
    lengths: Sequence[float]
    dense_flops: int
    phases: int
    dense_last: bool = False
    _texts: dict[str, tuple[str, ...]] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        texts = {
            site: (choice_text(DENSE), *map(choice_text, row)) for site, row in self.options.items()
        }
        object.__setattr__(self, "_texts", texts)

    def cheapest(self, drift: float) -> Choice | None:
        """The least FLOPs within a predicted drift."""
        found = (self._solve(cut, None, drift) for cut in self._cuts())
        return min(
            (c for c in found if c is not None),
            key=lambda c: (round(c.flops / self.dense_flops, 9), c.predicted),
            default=None,
        )

    def best(self, flops: float) -> Choice | None:
        """The least predicted drift within FLOPs a call, the mean over the steps."""
        found = (self._solve(cut, flops, None) for cut in self._cuts())
        return min(
            (c for c in found if c is not None), key=lambda c: (c.predicted, c.flops), default=None
        )

    @property
    def least_flops(self) -> float:
        """The least FLOPs a call, the mean over the steps."""
        saved = sum(
            max([0, *(self.saved[site, text] for text in row[1:])])
            for site, row in self._texts.items()
        )
        # A dense last phase takes one part at least.
        return self.dense_flops - saved * (1 - (self.lengths[-1] if self.dense_last else 0))

    def _cuts(self) -> Iterator[tuple[int, ...]]:
        """Ways to cut the parts into phases, as indexes of the parts that begin one."""
        count = min(self.phases, len(self.parts))
        if self.dense_last:
            count = max(count, min(2, len(self.parts)))
        every = itertools.combinations(range(1, len(self.parts)), count - 1)
        return ((0, *rest) for rest in itertools.islice(every, MAX_CUTS))

    def _solve(
        self, cut: tuple[int, ...], flops: float | None, drift: float | None
    ) -> Choice | None:
        groups: list[tuple[str, int]] = []
        loss: list[list[float]] = []
        cost: list[list[float]] = []
        ends = (*cut[1:], len(self.parts))
        total = 0.0
        for phase, (start, end) in enumerate(zip(cut, ends, strict=True)):
            length = sum(self.lengths[start:end])
            dense = self.dense_last and phase == len(cut) - 1
            for site, texts in self._texts.items():
                allowed = texts[:1] if dense else texts
                top = max([0, *(self.saved[site, text] for text in texts[1:])])
                groups.append((site, phase))
                total += length * top
                loss.append(
                    [0.0]
                    + [
                        sum(self.losses[site, text, part] for part in range(start, end))
                        for text in allowed[1:]
                    ]
                )
                # Against the most that can be saved, so that none is negative.
                cost.append(
                    [length * top] + [length * (top - self.saved[site, t]) for t in allowed[1:]]
                )
        base = self.dense_flops - total
        if flops is not None:
            picked = choose(loss, cost, flops - base)
        else:
            assert drift is not None
            picked = choose(cost, loss, drift)
        if picked is None:
            return None
        sites: list[dict[str, str]] = [{} for _ in cut]
        for (site, phase), index in zip(groups, picked, strict=True):
            if index:
                sites[phase][site] = self._texts[site][index]
        return Choice(
            tuple(self.parts[i] for i in cut),
            tuple(sites),
            base + sum(row[i] for row, i in zip(cost, picked, strict=True)),
            sum(row[i] for row, i in zip(loss, picked, strict=True)),
        )


@dataclass(frozen=True)
class Choice:
    """A solution.

    Args:
        starts: share of the schedule before each phase.
        sites: for each phase site → candidate's text, dense ones left out.
        flops: of a call, the mean over the steps.
        predicted: drift.
    """

    starts: tuple[float, ...]
    sites: tuple[dict[str, str], ...]
    flops: float
    predicted: float

    @property
    def phases(self) -> tuple[Phase, ...]:
        """As plan files have them, FLOPs not yet counted; equal neighbours are one."""
        return merged(
            [
                Phase(start=start, sites=sites, flops=0)
                for start, sites in zip(self.starts, self.sites, strict=True)
            ]
        )


def mean_flops(
    phases: Sequence[Phase], dense_flops: int, parts: Sequence[float], lengths: Sequence[float]
) -> float:
    """FLOPs of a call, the mean over the steps, from those of the phases."""
    total = 0.0
    for start, length in zip(parts, lengths, strict=True):
        phase = next(p for p in reversed(phases) if p.start <= start)
        total += length * (phase.flops or dense_flops)
    return total
