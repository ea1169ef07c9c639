"""Fill the scores, after an estimate of what the whole run will take."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from todo_compile.choices import choice_text
from todo_compile.options import SiteChoice
from todo_compile.tuning.measuring import measure_local, measure_uniform
from todo_compile.tuning.scores import Scores

if TYPE_CHECKING:
    from todo_compile.progress import Progress
    from todo_compile.tuning.drawing import Pair
    from todo_compile.tuning.studio import Studio
    from todo_compile.tuning.wishes import Effort

_LONG = 3600
"""Seconds from which the ways to make a run shorter are named."""
_SLOW = 5
"""Seconds of a dense call from which the estimate does not wait for a whole picture."""


@dataclass(frozen=True)
class Work:
    """What a run does.

    Args:
        sites: that get candidates.
        replays: a site with a candidate, not yet measured.
        candidates, parts: of the schedule.
        cells: candidates in parts, not yet drawn.
        fit, held: pairs that scores are measured and plans verified with.
        plans: that are verified, about.
    """

    sites: int
    replays: int
    candidates: int
    parts: int
    cells: int
    fit: int
    plans: int
    held: int

    def seconds(self, picture: float, denoising: float) -> float:
        """What it takes, about.

        Args:
            picture: seconds of a dense one.
            denoising: without what comes before and after.
        """
        # What comes before a part is the dense way, and known.
        part = picture - denoising * (self.parts - 1) / (2 * self.parts)
        # A site alone runs about half of the denoiser again.
        scores = self.replays * denoising / 2 + self.cells * part
        return scores * self.fit + self.plans * self.held * picture

    def __str__(self) -> str:
        return (
            f"{self.sites} sites × {self.candidates} candidates × {self.parts} parts of the "
            f"schedule; scores from {self.fit} pictures, about {self.plans} plans verified with "
            f"{self.held}"
        )


def candidate_texts(options: dict[str, tuple[SiteChoice, ...]]) -> list[str]:
    """Every candidate of any site, once."""
    return list(dict.fromkeys(choice_text(c) for row in options.values() for c in row))


def fill_scores(
    studio: Studio,
    scores: Scores,
    fit: Sequence[Pair],
    options: dict[str, tuple[SiteChoice, ...]],
    parts: Sequence[tuple[float, float]],
    place: Path | None,
    effort: Effort,
    held: Sequence[Pair],
    progress: Progress,
) -> None:
    """Measure what is not known yet.

    Args:
        studio: draws.
        scores: filled in place.
        fit: pairs to measure with, a multiple of the batch.
        options: site → candidates.
        parts: (share before it, share of the steps) of the schedule's parts.
        place: file that keeps the scores.
        effort: how much will be drawn, for the estimate.
        held: pairs that plans will be verified with.
        progress: receives steps and the estimate.
    """
    texts = candidate_texts(options)
    work = Work(
        sites=len(options),
        replays=sum(map(len, options.values())) * (not scores.done),
        candidates=len(texts),
        parts=len(parts),
        cells=sum(len(parts) - len(scores.uniform.get(text, {})) for text in texts),
        fit=len(fit),
        plans=effort.curve + effort.rounds + 2 * len(texts),
        held=len(held),
    )
    _first_picture(studio, fit, work, progress)
    with progress.step("scores") as step:
        done = 0.0
        total = len(fit) // studio.sampling.batch * studio.sampling.steps

        def tick(share: float) -> None:
            nonlocal done
            done += share
            step.update(done, total, "each site alone")

        measure_local(scores, studio, fit, options, save=place, tick=tick)
    with progress.step("draw parts") as step:
        drawn = 0.0

        def count_one(share: float) -> None:
            nonlocal drawn
            drawn += share
            step.update(drawn, len(texts) * len(parts), "each candidate in each part")

        starts = [start for start, _ in parts]
        measure_uniform(scores, studio, fit, options, starts, save=place, tick=count_one)


def _first_picture(studio: Studio, fit: Sequence[Pair], work: Work, progress: Progress) -> None:
    """Draw the first batch dense, which the scores need anyway, and say what it promises."""
    batch, steps = studio.sampling.batch, studio.sampling.steps
    times: list[float] = []
    said = False

    def say(picture: float, denoising: float) -> None:
        nonlocal said
        said = True
        seconds = work.seconds(picture / batch, denoising / batch)
        shorter = (
            "; --quick, --fit, --pairs, --parts, --candidates, --disable and a lower precision "
            "make it shorter, --scores keeps what was measured"
            if seconds > _LONG
            else ""
        )
        progress.info(f"{work}: about {duration(seconds)}{shorter}")

    with progress.step("dense picture") as step:

        def tick() -> None:
            times.append(time.perf_counter())
            step.update(min(len(times) - 1, steps), steps, f"step {len(times)}")
            # The first call warms up.
            if not said and len(times) == 3 and (call := times[2] - times[1]) > _SLOW:
                say(call * steps, call * steps)

        begun = time.perf_counter()
        studio.record(fit[:batch], tick)
        if not said:
            whole, calls = time.perf_counter() - begun, len(times)
            # Where one call ends and the decoder begins is not seen.
            share = (times[-1] - times[0]) * calls / (calls - 1) if calls > 1 else whole
            say(whole, min(share, whole))


def duration(seconds: float) -> str:
    """For people: seconds, minutes or hours."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.0f} h"
