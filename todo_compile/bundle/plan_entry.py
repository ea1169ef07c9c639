"""What a manifest says of the tuned plan that its output was built by."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Self

from pydantic import Field, model_validator

from todo_compile.bundle.plan_parts import MAX_PHASES, Measured, Name, Number, PlanPart, Share


class PlanEntry(PlanPart):
    """What a manifest says of the plan that its output was built by.

    Attributes:
        digest: of the plan, see `TunedPlan.digest`.
        budget, resolution, weights, cost, speedup: the plan's.
        predicted: drift as the scores add up.
        measured: drift as it was drawn, before anything was compiled.
        settings: how it was drawn: precision, steps, guidance, scheduler.
        starts: for each phase of the plan the share of the schedule before it.
        phases: those that the output runs in, counted from 1.
    """

    digest: Annotated[str, Field(max_length=100)]
    budget: Annotated[str, Field(max_length=60)]
    resolution: Annotated[str, Field(max_length=20)]
    weights: Name
    cost: Annotated[str, Field(max_length=200)]
    speedup: Annotated[float, Field(gt=0, allow_inf_nan=False)]
    predicted: Number | None
    measured: Measured | None
    settings: dict[str, str | int | float | None]
    starts: Annotated[list[Share], Field(min_length=1, max_length=MAX_PHASES)]
    phases: Annotated[list[Annotated[int, Field(ge=1)]], Field(min_length=1)]

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if max(self.phases) > len(self.starts):
            raise ValueError("there is no such phase")
        return self

    def lines(self, phases: Sequence[int] | None = None) -> list[str]:
        """For people.

        Args:
            phases: those that are spoken of; None for the output's own.
        """
        count, shown = len(self.starts), self.phases if phases is None else list(phases)
        ends = [*self.starts[1:], 1.0]
        parts = [f"{self.starts[n - 1]:.0%} – {ends[n - 1]:.0%}" for n in shown]
        which = ", ".join(map(str, shown))
        here = f"; phase {which} of {count} ({', '.join(parts)} of the steps)"
        here = here if len(shown) < count else f"; {count} phases" if count > 1 else ""
        predicted = "" if self.predicted is None else f"; {self.predicted:.1e} predicted"
        found = self.measured
        drift = (
            "not measured"
            if found is None
            else f"{found.drift.mean:.1e} [{found.drift.low:.1e}, {found.drift.high:.1e}] when it "
            f"was tuned, {found.pairs} pairs of {found.prompts} prompts"
        )
        return [
            f"plan           tuned for {self.budget}: {self.speedup:.3f}× ({self.cost}){here}",
            f"drift          {drift}{predicted}",
        ]
