"""Fill the scores: replay every site alone, draw every candidate in every part of the schedule."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from todo_compile.bundle.plan_parts import Phase
from todo_compile.choices import choice_text
from todo_compile.options import PlanOptions, SiteChoice
from todo_compile.runtime.metrics import mse
from todo_compile.tuning.drawing import Pair
from todo_compile.tuning.scores import Scores
from todo_compile.tuning.studio import Studio

Tick = Callable[[float], None]
"""Told what was done since it was last told, in units of what is counted."""
Options = dict[str, tuple[SiteChoice, ...]]
"""Site → the candidates that it may have."""


def measure_local(
    scores: Scores,
    studio: Studio,
    pairs: Sequence[Pair],
    options: Options,
    *,
    save: Path | None = None,
    tick: Tick = lambda _: None,
) -> None:
    """Every site alone, on the dense trajectories of `pairs`; goes on where `scores` stopped.

    Args:
        scores: filled in place, saved after every step.
        pairs: a multiple of the studio's batch.
        options: what to measure.
        tick: counts steps.
    """
    size, steps = studio.sampling.batch, studio.sampling.steps
    number = 0
    for start in range(0, len(pairs), size):
        known = len(scores.steps)
        if known and scores.done >= number + known:
            number += known  # this batch is complete
            tick(steps)
            continue
        calls = studio.record(pairs[start : start + size])
        if not scores.steps:
            scores.steps = [at for at, _ in calls]
        for index, (_, args) in enumerate(calls):
            if scores.done <= number:
                _one_step(scores, studio, args, index, options, tick)
                scores.done = number + 1
                scores.save(save)
            else:
                tick(1)
            number += 1


def _one_step(
    scores: Scores,
    studio: Studio,
    args: Sequence[torch.Tensor],
    index: int,
    options: Options,
    tick: Tick,
) -> None:
    step = studio.meter.dense(args)
    guidance = studio.guidance
    truth = _guided(step.output, guidance)
    count = sum(map(len, options.values()))
    for site, choices in options.items():
        for choice in choices:
            changed = step.run(PlanOptions(factors=(), sites=((site, choice),)))
            error = (_guided(changed, guidance) - truth).square().mean().item()
            scores.add(site, choice_text(choice), index, error)
            tick(1 / count)


def _guided(output: torch.Tensor, guidance: float) -> torch.Tensor:
    """The prediction that the scheduler gets; the first half of a batch is without the prompt."""
    if guidance <= 1:
        return output.double()
    empty, prompted = output.double().chunk(2)
    return empty + guidance * (prompted - empty)


def measure_uniform(
    scores: Scores,
    studio: Studio,
    pairs: Sequence[Pair],
    options: Options,
    parts: Sequence[float],
    *,
    save: Path | None = None,
    tick: Tick = lambda _: None,
) -> None:
    """Every candidate everywhere, in one part of the schedule at a time; resumed as above.

    Args:
        scores: filled in place, saved after every drawing.
        parts: shares of the schedule at which its parts begin.
        tick: counts candidates in parts.
    """
    dense = Phase(start=0.0, sites={}, flops=studio.dense_flops)
    for candidate in dict.fromkeys(choice for row in options.values() for choice in row):
        text = choice_text(candidate)
        everywhere = {site: text for site, row in options.items() if candidate in row}
        row = scores.uniform.setdefault(text, {})
        for index, start in enumerate(parts):
            if str(index) not in row:
                phases = [Phase(start=start, sites=everywhere, flops=0)]
                if index:
                    phases.insert(0, dense)
                if index + 1 < len(parts):
                    phases.append(Phase(start=parts[index + 1], sites={}, flops=0))
                row[str(index)] = _error(studio, phases, pairs, tick)
                scores.save(save)
            else:
                tick(1)


def _error(studio: Studio, phases: Sequence[Phase], pairs: Sequence[Pair], tick: Tick) -> float:
    truth: list[Any] = studio.draw_dense(pairs)
    drawn: list[Any] = studio.draw(phases, pairs, lambda count: tick(count / len(pairs)))
    return sum(mse(a, b) for a, b in zip(drawn, truth, strict=True)) / len(pairs)
