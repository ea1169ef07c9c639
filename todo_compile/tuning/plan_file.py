"""A tuned plan as data and as a file: what every site does in every phase, and what vouches for it.

The file is JSON. It may come from anybody, so it is read through `foreign` and checked wholly
before anything of it is used.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from todo_compile.errors import ConfigError, given_path
from todo_compile.foreign import ForeignError, read_object
from todo_compile.options import PlanOptions
from todo_compile.tuning.wishes import parse_choice

FORMAT = "todo-compile plan"
MAX_PHASES = 16
_MAX_SITES = 4096
_MAX_POINTS = 1024
_DRAWN = ("precision", "steps", "guidance", "scheduler")
"""Settings of the drawings that a reader of a manifest must know."""
_TUNE = "Run `todo-compile tune` for this model and size, or leave the plan out."

Name = Annotated[str, Field(min_length=1, max_length=500)]
Share = Annotated[float, Field(ge=0, lt=1)]
Number = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=(), strict=True)


class Site(_Part):
    """An attention site that a factor can be given to.

    Attributes:
        name: path of its module in the denoiser; ``path#2`` for its module's second attention.
        rows, columns: grid of its key tokens.
    """

    name: Name
    rows: Annotated[int, Field(ge=1)]
    columns: Annotated[int, Field(ge=1)]


class Phase(_Part):
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


class Interval(_Part):
    """A mean over pairs of prompt and seed with its 95 % interval, prompts resampled.

    Attributes:
        mean: over all pairs.
        low, high: ends of the interval.
    """

    mean: Number
    low: Number
    high: Number


class Measured(_Part):
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


class Point(_Part):
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


class PlanEntry(_Part):
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


class TunedPlan(_Part):
    """A plan that was chosen for a budget, with everything that was compared on the way.

    Attributes:
        model, component, weights, resolution: what it was tuned for; `weights` is their hash.
        budget: as it was asked for, ``drift=0.001``.
        settings: how it was measured: steps, guidance, scheduler, pairs, candidates, ….
        cost: what speed is counted in.
        sites: all that a factor could be given to.
        dense_flops: of one call of the dense denoiser.
        chosen: the plan.
        curve: the plans that no other of the tuned ones beats in both, fastest last.
        uniform: one candidate everywhere, as a line to beat.
        notes: what a reader must know.
    """

    format: Literal["todo-compile plan"] = FORMAT
    version: Literal[1] = 1
    model: Name
    component: Literal["unet", "transformer"]
    weights: Name
    resolution: Annotated[str, Field(pattern=r"^[1-9]\d{0,5}x[1-9]\d{0,5}$")]
    budget: Annotated[str, Field(max_length=60)]
    settings: dict[str, Any]
    cost: Annotated[str, Field(max_length=200)]
    sites: Annotated[tuple[Site, ...], Field(min_length=1, max_length=_MAX_SITES)]
    dense_flops: Annotated[int, Field(ge=1)]
    chosen: Point
    curve: Annotated[tuple[Point, ...], Field(max_length=_MAX_POINTS)] = ()
    uniform: Annotated[tuple[Point, ...], Field(max_length=_MAX_POINTS)] = ()
    notes: Annotated[tuple[str, ...], Field(max_length=50)] = ()

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        names = [site.name for site in self.sites]
        if len(set(names)) != len(names):
            raise ValueError("a site is listed twice")
        grids = {site.name: (site.rows, site.columns) for site in self.sites}
        for point in (self.chosen, *self.curve, *self.uniform):
            starts = [phase.start for phase in point.phases]
            if starts[0] != 0 or sorted(set(starts)) != starts:
                raise ValueError("the phases' starts do not ascend from 0")
            for phase in point.phases:
                for name, text in phase.sites.items():
                    if name not in grids:
                        raise ValueError(f"a phase names {name!r:.60}, which is none of its sites")
                    rows, columns = parse_choice(text)[:2]
                    if rows > grids[name][0] or columns > grids[name][1]:
                        raise ValueError(f"{text} exceeds the grid of {name:.60}")
        return self

    @property
    def phases(self) -> tuple[Phase, ...]:
        """Of the chosen plan."""
        return self.chosen.phases

    @property
    def starts(self) -> tuple[float, ...]:
        """For each phase the share of the schedule before it."""
        return tuple(phase.start for phase in self.phases)

    @property
    def options(self) -> tuple[PlanOptions, ...]:
        """For each phase what the passes are asked for."""
        return tuple(phase.options for phase in self.phases)

    @property
    def speedup(self) -> float:
        """FLOPs of the dense denoiser over the plan's, all steps."""
        return self.chosen.speedup

    @property
    def digest(self) -> str:
        """Changes with anything in the plan."""
        text = json.dumps(self.model_dump(mode="json"), sort_keys=True)
        return f"sha256:{hashlib.sha256(text.encode()).hexdigest()}"

    def entry(self, phases: Sequence[int]) -> PlanEntry:
        """What a manifest says of it.

        Args:
            phases: that an output runs in, counted from 1.
        """
        kept = {name: self.settings.get(name) for name in _DRAWN}
        return PlanEntry(
            digest=self.digest,
            budget=self.budget,
            resolution=self.resolution,
            weights=self.weights,
            cost=self.cost,
            speedup=self.speedup,
            predicted=self.chosen.predicted,
            measured=self.chosen.measured,
            settings={k: v for k, v in kept.items() if isinstance(v, (str, int, float))},
            starts=list(self.starts),
            phases=list(phases),
        )

    def check(
        self, *, component: str, resolution: str | None = None, weights: str | None = None
    ) -> None:
        """Refuse to be used for what it was not tuned for; None is not checked.

        Raises:
            ConfigError: says what differs.
        """
        for what, mine, theirs in (
            ("component", self.component, component),
            ("size", self.resolution, resolution),
            ("weights", self.weights, weights),
        ):
            if theirs is not None and mine != theirs:
                of = (
                    f"{what} {mine}, and this is {theirs}"
                    if what != "weights"
                    else (f"other weights ({mine[:20]}… of {self.model}; these are {theirs[:20]}…)")
                )
                raise ConfigError(f"The plan was tuned for {of}.", remedy=_TUNE)

    def save(self, path: str | Path) -> Path:
        """Write it as JSON: whole, or not at all.

        Raises:
            BundleError: it cannot be written.
        """
        from todo_compile.bundle.files import staged

        target = given_path(path, "path")
        text = json.dumps(self.model_dump(mode="json"), indent=1, ensure_ascii=False)
        with staged(target) as stage:
            stage.publish(target.name).write_text(text + "\n", encoding="utf-8")
        return target

    @classmethod
    def load(cls, path: str | Path) -> TunedPlan:
        """Read a file that `save` wrote.

        Raises:
            ConfigError: it is absent, damaged, or no plan.
        """
        target = given_path(path, "plan")
        try:
            values = read_object(target, _MAX_BYTES)
        except OSError as error:
            raise ConfigError(
                f"The plan {target} cannot be read: {error.strerror}.", remedy=_TUNE
            ) from error
        except ForeignError as error:
            raise ConfigError(f"The plan {target} is damaged: {error}.", remedy=_TUNE) from error
        if values.get("format") != FORMAT:
            raise ConfigError(f"{target} is no plan of todo-compile's.", remedy=_TUNE)
        if values.get("version") != 1:
            raise ConfigError(
                f"The plan {target} has another version: {values.get('version')!r:.20}.",
                remedy=_TUNE,
            )
        try:
            return cls.model_validate_json(json.dumps(values))
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"]))
            raise ConfigError(
                f"The plan {target} is damaged: {where + ': ' if where else ''}{first['msg']}.",
                remedy=_TUNE,
            ) from error


_MAX_BYTES = 2**24
"""A curve of hundreds of plans for hundreds of sites fits."""


def read_plan(plan: TunedPlan | str | Path) -> TunedPlan:
    """The plan, or the one in the file.

    Raises:
        ConfigError: it is neither.
    """
    return plan if isinstance(plan, TunedPlan) else TunedPlan.load(plan)


def single_phase(plan: TunedPlan, what: str) -> PlanOptions:
    """What the passes are asked for where there is one graph for all steps.

    Args:
        plan: of any number of phases.
        what: that has only one, for the message.

    Raises:
        ConfigError: the plan has several phases.
    """
    if len(plan.phases) > 1:
        raise ConfigError(
            f"The plan has {len(plan.phases)} phases, and {what} has one graph for all steps.",
            remedy="Tune it with --phases 1, or give it to what switches by step: a bundle "
            "(compile --out FOLDER/), generate --model … --plan, accelerate(pipe, plan=…).",
        )
    return plan.options[0]


def merged(phases: Sequence[Phase]) -> tuple[Phase, ...]:
    """The phases, neighbours that do the same as one."""
    found: list[Phase] = []
    for phase in phases:
        if not found or found[-1].sites != phase.sites:
            found.append(phase)
    return tuple(found)
