"""What a gate found: how far what was built draws from the dense model."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from todo_compile.bundle.entries import Frozen
from todo_compile.bundle.plan_parts import Measured


class Verdict(Frozen):
    """A gate that was kept; an output that fails its gate is never published.

    Attributes:
        gate: what was asked for, with its settings.
        resolution: of the pictures.
        measured: drift of the pictures; the upper end of its interval is within the gate.
        scheduler: that drew them.
        runner: what ran the output: onnxruntime the files themselves, torch the rewritten graphs.
        why: torch ran them.
    """

    gate: Annotated[str, Field(max_length=200)]
    resolution: Annotated[str, Field(max_length=20)]
    measured: Measured
    scheduler: Annotated[str, Field(max_length=200)]
    runner: Literal["onnxruntime", "torch"]
    why: Annotated[str, Field(max_length=300)] = ""

    def lines(self) -> list[str]:
        """For people."""
        return [f"gate           {self.gate} kept at {self.resolution}: {self.figures()}"]

    def figures(self) -> str:
        """The figures and what they are of."""
        found = self.measured
        where = f"the rewritten graph in torch, since {self.why}" if self.why else self.runner
        return (
            f"drift {found.drift.mean:.1e} [{found.drift.low:.1e}, {found.drift.high:.1e}] on "
            f"{found.pairs} pairs of {found.prompts} prompts, {self.scheduler}, drawn by {where}"
        )
