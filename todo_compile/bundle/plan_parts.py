"""What a tuned plan is put together from; read from files that may come from anybody."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, field_validator

from todo_compile.choices import parse_choice
from todo_compile.errors import ConfigError
from todo_compile.options import PlanOptions

MAX_PHASES = 16

Name = Annotated[str, Field(min_length=1, max_length=500)]
Share = Annotated[float, Field(ge=0, lt=1)]
Number = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class PlanPart(BaseModel):
    """Checked wholly, and never changed."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=(), strict=True)


class Site(PlanPart):
    """An attention site that a factor can be given to.

    Attributes:
        name: path of its module in the denoiser; ``path#2`` for its module's second attention.
        rows, columns: grid of its key tokens.
    """

    name: Name
    rows: Annotated[int, Field(ge=1)]
    columns: Annotated[int, Field(ge=1)]


class Phase(PlanPart):
    """A part of the schedule.

    Attributes:
        start: share of the schedule's steps before it.
        sites: site → ``nearest:2``, ``average:4x2`` (width×height); sites that are absent are
            dense.
        flops: of one call of the denoiser.
    """

    start: Share
    sites: dict[Name, Annotated[str, Field(max_length=40)]]
    flops: Annotated[int, Field(ge=0)]

    @field_validator("sites")
    @classmethod
    def _choices(cls, value: dict[str, str]) -> dict[str, str]:
        for text in value.values():
            try:
                parse_choice(text)
            except ConfigError as error:
                raise ValueError(error.message) from error
        return value

    @property
    def dense(self) -> bool:
        """Whether no site is downsampled."""
        return all(text == "dense" for text in self.sites.values())

    @property
    def options(self) -> PlanOptions:
        """The phase for the passes."""
        chosen = tuple((name, parse_choice(text)) for name, text in self.sites.items())
        return PlanOptions(factors=(), sites=chosen)


class Interval(PlanPart):
    """A mean over pairs of prompt and seed with its 95 % interval, prompts resampled.

    Attributes:
        mean: over all pairs.
        low, high: ends of the interval.
    """

    mean: Number
    low: Number
    high: Number


class Measured(PlanPart):
    """What drawing gave: dense against a plan, from the same seeds.

    Attributes:
        pairs: of prompt and seed.
        prompts: different ones among them.
        drift: mean squared error of pixel values from 0 to 1.
        psnr: of the mean drift, in dB; None for equal pictures.
        hpf, hpf_dense: mean sharpness, see `runtime.metrics`.
    """

    pairs: Annotated[int, Field(ge=1)]
    prompts: Annotated[int, Field(ge=1)]
    drift: Interval
    psnr: float | None
    hpf: Number
    hpf_dense: Number


class Point(PlanPart):
    """A plan among those that were compared.

    Attributes:
        name: what it is: ``tuned``, ``uniform nearest:4, level 1``, …
        speedup: FLOPs of the dense denoiser over its own, all steps.
        predicted: drift as the scores add up; None where none was predicted.
        measured: drift on the held-out pairs; None where it was not drawn.
        phases: the plan.
    """

    name: Annotated[str, Field(max_length=200)]
    speedup: Annotated[float, Field(gt=0, allow_inf_nan=False)]
    predicted: Number | None
    measured: Measured | None
    phases: Annotated[tuple[Phase, ...], Field(min_length=1, max_length=MAX_PHASES)]


def merged(phases: Sequence[Phase]) -> tuple[Phase, ...]:
    """The phases, neighbours that do the same as one."""
    found: list[Phase] = []
    for phase in phases:
        if not found or found[-1].sites != phase.sites:
            found.append(phase)
    return tuple(found)
