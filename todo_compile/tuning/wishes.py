"""What a user asks of `tune`: budgets and sites as text, checked, and how much is drawn."""

from __future__ import annotations

import fnmatch
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from todo_compile.errors import ConfigError

Kind = Literal["drift", "speedup"]
DEFAULT_CANDIDATES = "nearest:2,3,4,8"
QUICK_CANDIDATES = "nearest:2,4,8"
MAX_PARTS = 8
"""Finest parts of the schedule that scores tell apart."""
_BUDGETS = "Give drift=1e-3 (mean squared error of the pictures, values 0 to 1) or speedup=2.5."


@dataclass(frozen=True, slots=True)
class Budget:
    """What bounds a plan; the other of the two is made as good as can be.

    Args:
        kind: ``drift``: mean squared error of pictures to the dense ones from the same seeds, pixel
            values from 0 to 1. ``speedup``: FLOPs of the dense denoiser over the plan's, all steps.
        value: the most drift, or the least speedup.
    """

    kind: Kind
    value: float

    @classmethod
    def parse(cls, text: str) -> Budget:
        """``drift=1e-3``, ``speedup=2.5``; ``mse=`` is another word for drift, ``psnr=30`` the same
        in decibels.

        Raises:
            ConfigError: it is something else, or out of range.
        """
        found = re.fullmatch(r"\s*(drift|mse|psnr|speedup)\s*=\s*([-+.\deE]+)\s*", text)
        try:
            value = float(found[2]) if found is not None else math.nan
        except ValueError:
            value = math.nan
        if found is None or not math.isfinite(value):
            raise ConfigError(f"{text!r:.60} is no budget.", remedy=_BUDGETS)
        if found[1] == "speedup":
            if value < 1:
                raise ConfigError(
                    f"A speedup of {value:g} is none.", remedy="Give a number from 1 up."
                )
            return cls("speedup", value)
        drift = 10 ** (-value / 10) if found[1] == "psnr" else value
        if not 0 < drift < 1:
            raise ConfigError(
                f"A drift of {drift:g} is no bound.",
                remedy="It is a mean squared error of pixel values from 0 to 1: more than 0 (for 0 "
                "compile with --factors off) and less than 1.",
            )
        return cls("drift", drift)

    def __str__(self) -> str:
        return f"{self.kind}={self.value:.6g}"


@dataclass(frozen=True)
class Effort:
    """How much is drawn.

    Args:
        fit: pairs of prompt and seed that scores are measured with.
        pairs: held-out pairs that plans are verified with.
        parts: of the schedule that scores tell apart, at most.
        curve: plans of the curve.
        rounds: of the search for a drift.
    """

    fit: int = 8
    pairs: int = 16
    parts: int = MAX_PARTS
    curve: int = 8
    rounds: int = 6


def disabled(names: Sequence[str], patterns: Sequence[str]) -> frozenset[str]:
    """The sites that shall stay dense.

    Args:
        names: of all sites.
        patterns: globs, matched against the whole name: ``mid*``.

    Raises:
        ConfigError: a pattern matches none, or all are matched.
    """
    found: set[str] = set()
    for pattern in patterns:
        matched = fnmatch.filter(names, pattern)
        if not matched:
            raise ConfigError(
                f"--disable {pattern!r} matches no site.",
                remedy=f"The sites are: {', '.join(names)}.",
            )
        found |= set(matched)
    if names and len(found) == len(names):
        raise ConfigError(
            "Every site is disabled: nothing is left to choose.",
            remedy="Leave a pattern out; --factors off compiles a dense model.",
        )
    return frozenset(found)
