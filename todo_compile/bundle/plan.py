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

from pydantic import Field, ValidationError, model_validator

from todo_compile.bundle.files import staged
from todo_compile.bundle.plan_entry import PlanEntry
from todo_compile.bundle.plan_parts import Name, Phase, PlanPart, Point, Site
from todo_compile.choices import parse_choice
from todo_compile.errors import ConfigError, given_path
from todo_compile.foreign import ForeignError, read_object
from todo_compile.options import PlanOptions

FORMAT = "todo-compile plan"
_MAX_SITES = 4096
_MAX_POINTS = 1024
_MAX_BYTES = 2**24
"""A curve of hundreds of plans for hundreds of sites fits."""
_DRAWN = ("precision", "steps", "guidance", "scheduler")
"""Settings of the drawings that a reader of a manifest must know."""
_TUNE = "Run `todo-compile tune` for this model and size, or leave the plan out."


class TunedPlan(PlanPart):
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
