"""Which builds may start: a decision from numbers alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Need:
    """What a build takes.

    Attributes:
        bytes: of memory, at least.
        timed: it measures times on the GPU, which only one may do at once.
        alone: it takes whatever memory is free, so that nothing may run beside it.
    """

    bytes: float
    timed: bool = False
    alone: bool = False


def startable(
    waiting: Mapping[int, Need], running: Sequence[Need], *, budget: float, jobs: int
) -> list[int]:
    """The builds of `waiting` to start now, in order.

    In the order of the file, as many as fit; a smaller one may overtake a larger one that does
    not fit yet. One that never fits runs alone: when nothing else does, and before what comes
    after it.

    Args:
        waiting: by number, in order.
        running: those that run already.
        budget: bytes for all together.
        jobs: most builds at once.
    """
    chosen: list[int] = []
    now = list(running)
    for number, need in waiting.items():
        if len(now) >= jobs:
            break
        if now and not _fits(need, now, budget):
            continue
        chosen.append(number)
        now.append(need)
    return chosen


def _fits(need: Need, beside: Sequence[Need], budget: float) -> bool:
    if need.timed and any(one.timed for one in beside):
        return False
    if need.alone or any(one.alone for one in beside):
        return not beside
    return need.bytes + sum(one.bytes for one in beside) <= budget
