"""A tuning run that is small enough for tests."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Generator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from todo_compile import models
from todo_compile.bundle.plan import TunedPlan
from todo_compile.bundle.plan_parts import Phase
from todo_compile.runtime.metrics import mse
from todo_compile.tuning import run, studio
from todo_compile.tuning.drawing import Pair, Sampling
from todo_compile.tuning.studio import Studio

SMALL = run.Effort(fit=2, pairs=4, parts=2, curve=2, rounds=3)
PROMPTS = ("a cat", "a red apple", "a rocket", "a frog")


@dataclass(frozen=True)
class Small:
    """What a run left."""

    plan: Any
    scores: Path
    studios: dict[str, Studio] = field(default_factory=dict[str, Studio])

    def studio(self, *args: Any, **kwargs: Any) -> Studio:
        """As `Studio`, but what was captured and drawn before is kept."""
        key = repr((args, kwargs))
        if key not in self.studios:
            self.studios[key] = Studio(*args, **kwargs)
        return self.studios[key]

    @property
    def drawer(self) -> Studio:
        """What the run draws with."""
        sampling = Sampling(4, 3.0, None, 2)
        size = models.Resolution.parse("64")
        source = models.resolve_component("demo")
        return self.studio(source, size, sampling, device=None, precision="fp32", seed=None)

    @contextlib.contextmanager
    def patched(self) -> Generator[None]:
        """What is quick is small, and what was captured and drawn before is kept."""
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(run, "QUICK", SMALL)
            patch.setattr(studio, "Studio", self.studio)
            yield

    def again(self, budget: str, scores: Path | None = None, **changes: Any) -> TunedPlan:
        """The same run for another budget; its scores are known."""
        with self.patched():
            return run.tune(
                "demo",
                **{
                    "res": 64,
                    "budget": budget,
                    "candidates": "nearest:2,4",
                    "phases": 2,
                    "prompts": PROMPTS,
                    "scores": scores or self.scores,
                    "steps": 4,
                    "disable": ["mid*", "up*"],
                    "batch": 2,
                    "quick": True,
                    **changes,
                },
            )

    def redrawn(self, plan: TunedPlan) -> float:
        """The drift on the held-out pairs, drawn by hand from the plan alone."""
        pairs = [Pair(PROMPTS[1 + 2 * (i % 2)], 10_000 + i) for i in range(SMALL.pairs)]
        dense = self.drawer.draw([Phase(start=0.0, sites={}, flops=0)], pairs)
        drawn = self.drawer.draw(plan.phases, pairs)
        return sum(mse(a, b) for a, b in zip(drawn, dense, strict=True)) / len(pairs)

    @classmethod
    def run(cls, folder: Path) -> Small:
        """A plan for a drift of 1e-3."""
        made = cls(None, folder / "scores.json")
        object.__setattr__(made, "plan", made.again("drift=0.02"))
        return made


def with_phases(plan: TunedPlan, *phases: tuple[float, dict[str, str]]) -> TunedPlan:
    """A plan that does something else."""
    made = [{"start": start, "sites": sites, "flops": 1} for start, sites in phases]
    data = plan.model_dump(mode="json")
    data["chosen"]["phases"] = made
    return TunedPlan.model_validate_json(json.dumps(data))
