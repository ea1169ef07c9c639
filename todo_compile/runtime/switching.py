"""Denoisers that take turns: downsampled keys early in the schedule, more or all keys at its end.

Early steps decide composition, late ones detail; giving the late ones dense attention restores
detail for part of the cost. Which of them runs is read from the timestep of the call and the
scheduler's own list of timesteps. Nothing is counted, so interrupted runs, image-to-image (which
starts in the middle of the schedule) and second-order schedulers (which visit a timestep twice)
come out right.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, Self

import torch
from torch import Tensor, nn

from todo_compile.errors import ConfigError, InputError
from todo_compile.runtime.compiled import Compiled


class PhasedDenoiser(Compiled):
    """Components of one model, each for its part of the schedule; see the module's text.

    Args:
        parts: in the order in which they run; equal ones may return.
        starts: for each the share of the schedule's distinct timesteps before it, ascending from
            0: with (0, 0.7) and 50 steps the first part runs steps 0 to 34, the second the rest.
        dense: which part downsamples nothing; None if all do.

    Attributes:
        at: share of the schedule before the latest call.

    Raises:
        ConfigError: the starts are no such shares.
    """

    def __init__(
        self, parts: Sequence[nn.Module], starts: Sequence[float], *, dense: int | None = None
    ) -> None:
        super().__init__()
        ascending = all(a <= b for a, b in pairwise(starts))
        if not parts or len(parts) != len(starts) or starts[0] != 0 or not ascending:
            raise ConfigError(
                f"{len(parts)} denoisers cannot start at {', '.join(f'{s:g}' for s in starts)} of "
                "the schedule.",
                remedy="Give each a share from 0 to 1, ascending, the first 0.",
            )
        if starts[-1] > 1:
            raise ConfigError(
                f"{starts[-1]:g} is not a share of the schedule.", remedy="Give a share, 0 to 1."
            )
        self.parts = nn.ModuleList(parts)
        self.starts = tuple(starts)
        self._dense = dense
        self.at = 0.0
        self._pipeline: weakref.ref[Any] | None = None
        self._scheduler: Any = None
        self._schedule: tuple[Tensor, Tensor] | None = None
        self.eval()

    def follow(self, pipeline: Any) -> None:
        """Read the timesteps of this pipeline's scheduler, of the one that it has when it runs.

        Pipelines made from it (``from_pipe``) share its scheduler, even after it is gone. Call this
        again for a pipeline that gets a scheduler of its own.
        """
        self._pipeline = weakref.ref(pipeline)
        self._scheduler = pipeline.scheduler

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        """As `Compiled`; that of a copied pipeline follows the copy."""
        copied = super().__deepcopy__(memo)
        pipeline = self._pipeline() if self._pipeline is not None else None
        if pipeline is not None and id(pipeline) in memo:
            copied._pipeline = weakref.ref(memo[id(pipeline)])
        return copied

    @property
    def _called(self) -> str:
        return self._first.origin.name

    @property
    def _first(self) -> Any:  # with what a component has beyond a module
        return self.parts[0]

    @property
    def dense(self) -> nn.Module | None:
        """The part that downsamples nothing, or None."""
        return None if self._dense is None else self.parts[self._dense]

    @property
    def config(self) -> Any:
        """Of the first part."""
        return self._first.config

    @property
    def dtype(self) -> torch.dtype:
        """Of the first part."""
        return self._first.dtype

    @property
    def device(self) -> torch.device:
        """Of the first part."""
        return self._first.device

    def __getattr__(self, name: str) -> Any:
        """What pipelines look at besides: of the first part."""
        if name.startswith("_") or "parts" not in self.__dict__.get("_modules", {}):
            return super().__getattr__(name)
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self._first, name)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """As the parts.

        Raises:
            InputError: the pipeline whose schedule counts is unknown or another one, or a part
                refuses.
        """
        return self.parts[self.index(*self._first.time_of(args, kwargs))](*args, **kwargs)

    def index(self, timestep: Any, slack: float = 0.0) -> int:
        """Which part runs at `timestep`.

        Raises:
            InputError: as `done`.
        """
        self.at = self.done(timestep, slack)
        return max(i for i, start in enumerate(self.starts) if start <= self.at)

    def done(self, timestep: Any, slack: float = 0.0) -> float:
        """Share of the schedule that lies before `timestep`, 0 at the first step.

        Args:
            timestep: the scheduler's.
            slack: how far off it may be beyond what other roundings do; the nearest counts.

        Raises:
            InputError: there is no schedule, or `timestep` is not in it.
        """
        pipeline = self._pipeline() if self._pipeline is not None else None
        if pipeline is not None:
            self._scheduler = pipeline.scheduler  # users exchange it
        if self._scheduler is None:
            raise InputError(
                "The phased denoiser does not know the schedule that decides which part runs.",
                remedy="Call pipe.unet.follow(pipe) once (load_pipeline does), or set "
                "pipe.unet = pipe.unet.parts[0].",
            )
        distinct = self._distinct(self._scheduler)
        time = float(torch.as_tensor(timestep).reshape(-1)[0])
        nearest = distinct[(distinct - time).abs().argmin()]
        # Below 1, so that whole timesteps stay different; through fp16 fractional ones lose 1/2000.
        if abs(float(nearest) - time) > max(min(max(abs(time), 1.0) * 1e-3, 0.9), slack):
            raise InputError(
                f"Timestep {time:g} is not in the schedule that it follows, a "
                f"{type(self._scheduler).__name__}'s.",
                remedy="If another pipeline runs it now, call pipe.unet.follow(pipe) with that one "
                "once.",
            )
        # Schedules descend: what is larger has been visited. The tolerance is for fractional
        # timesteps (Karras sigmas) that went through fp32.
        passed = int((distinct > nearest + 1e-3).sum())
        return passed / len(distinct)

    def _distinct(self, scheduler: Any) -> Tensor:
        timesteps: Tensor | None = scheduler.timesteps
        if timesteps is None or len(timesteps) == 0:
            raise InputError(
                "The scheduler has no timesteps yet.",
                remedy="Call scheduler.set_timesteps(steps) first.",
            )
        if self._schedule is None or self._schedule[0] is not timesteps:
            # On the CPU and once a schedule: a comparison on the GPU would wait for it each step.
            self._schedule = (timesteps, torch.unique(timesteps.double().cpu()))
        return self._schedule[1]
