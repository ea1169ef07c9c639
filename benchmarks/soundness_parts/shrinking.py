"""Failures made small: each choice replaced by its plainest while the case still fails alike."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import fields, replace

from soundness_parts.case import CHOICES, Case, repaired
from soundness_parts.judge import Verdict, judge

EASY = ("seed", "size", "factors", "batch", "text")
"""Fields in which failures of one cause differ."""


def signature(verdict: Verdict) -> tuple[str, str]:
    """What two failures of one cause have in common."""
    words = re.sub(r"[-+]?\d+(\.\d+)?(e[-+]?\d+)?", "#", verdict.detail)
    words = re.sub(r"[\w.]*_\d+|node \w+|site \w+", "#", words)
    return verdict.outcome, words.split(": off by")[0]


def shrink(
    verdict: Verdict, *, tries: int = 80, run: Callable[[Case, str], Verdict] = judge
) -> Verdict:
    """The plainest case found that fails like `verdict`."""
    best, plain = verdict, Case()
    again = True
    while again and tries > 0:
        again = False
        for name in (f.name for f in fields(Case)):
            for value in (getattr(plain, name), *CHOICES.get(name, ())[:1]):
                if tries <= 0 or getattr(best.case, name) == value:
                    continue
                smaller = repaired(replace(best.case, **{name: value}))
                if len(smaller.changed()) >= len(best.case.changed()):
                    continue
                tries -= 1
                tried = run(smaller, verdict.dialect)
                if tried.failed and signature(tried) == signature(verdict):
                    best, again = tried, True
    return best


def explains(known: Verdict, other: Verdict) -> bool:
    """Whether a shrunk failure is a part of another one."""
    if signature(known) != signature(other) or known.dialect != other.dialect:
        return False
    wanted = {n: v for n, v in known.case.changed().items() if n not in EASY}
    there = other.case.changed()
    return all(there.get(name) == value for name, value in wanted.items())


def distinct(
    failures: Sequence[Verdict],
    *,
    most: int,
    tell: Callable[[Verdict, int], None] = lambda _, __: None,
) -> list[tuple[Verdict, int]]:
    """Shrunk failures of different causes, each with how many it explains; the commonest first."""
    left, found = list(failures), list[tuple[Verdict, int]]()
    while left and len(found) < most:
        left.sort(key=lambda v: len(v.case.changed()))
        small = shrink(left[0])
        alike = [v for v in left[1:] if explains(small, v)]
        found.append((small, 1 + len(alike)))
        tell(small, 1 + len(alike))
        left = [v for v in left[1:] if not explains(small, v)]
    return sorted(found, key=lambda pair: -pair[1])


def as_test(verdict: Verdict) -> str:
    """A failure as a test to paste into ``tests/passes/test_passes_soundness.py``."""
    case = verdict.case
    name = "_".join(
        re.sub(r"\W+", "_", str(v)).strip("_") for n, v in case.changed().items() if n not in EASY
    )
    return (
        f"def test_{verdict.dialect}_{name or 'plain'}() -> None:\n"
        f'    """{verdict.outcome}: {verdict.detail}"""\n'
        f"    verdict = judge({case}, {verdict.dialect!r})\n"
        f"    assert not verdict.failed, verdict.detail\n"
    )
