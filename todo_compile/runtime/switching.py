"""A denoiser and its dense twin: downsampled keys early in the schedule, all keys at its end.

Early steps decide composition, late ones detail; giving the late ones dense attention restores
detail for part of the cost. Which twin runs is read from the timestep of the call and the
scheduler's own list of timesteps. Nothing is counted, so interrupted runs, image-to-image (which
starts in mid-schedule) and second-order schedulers (which visit a timestep twice) come out right.
"""

from __future__ import annotations

import weakref
from typing import Any, Self

import torch
from torch import Tensor

from todo_compile.errors import ConfigError, InputError
from todo_compile.runtime.compiled import Compiled


class SwitchedDenoiser(Compiled):
    """Two components of one model; see the module's text.

    Args:
        rewritten: runs first.
        dense: takes over.
        dense_after: share of the schedule's distinct timesteps that `rewritten` runs, 0 to 1: with
            0.7 and 50 steps, steps 0 to 34 are rewritten and 35 to 49 dense.

    Raises:
        ConfigError: the share is not between 0 and 1.
    """

    def __init__(self, rewritten: Any, dense: Any, dense_after: float) -> None:
        super().__init__()
        if not 0 <= dense_after <= 1:
            raise ConfigError(f"dense_after is {dense_after}.", remedy="Give a share, 0 to 1.")
        self.rewritten = rewritten
        self.dense = dense
        self.dense_after = dense_after
        self._pipeline: weakref.ref[Any] | None = None
        self._scheduler: Any = None
        self._schedule: tuple[Tensor, Tensor] | None = None
        self.eval()

    def follow(self, pipeline: Any) -> None:
        """Read the timesteps of this pipeline's scheduler, whichever it has when it runs.

        Pipelines made from it (``from_pipe``) share its scheduler, also when it is gone. One that
        gets a scheduler of its own is to be followed itself.
        """
        self._pipeline = weakref.ref(pipeline)
        self._scheduler = pipeline.scheduler

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        """As `Compiled`; the pair of a copied pipeline follows the copy."""
        copied = super().__deepcopy__(memo)
        pipeline = self._pipeline() if self._pipeline is not None else None
        if pipeline is not None and id(pipeline) in memo:
            copied._pipeline = weakref.ref(memo[id(pipeline)])
        return copied

    @property
    def _called(self) -> str:
        return self.rewritten.origin.name

    @property
    def config(self) -> Any:
        """Of the rewritten twin."""
        return self.rewritten.config

    @property
    def dtype(self) -> torch.dtype:
        """Of the rewritten twin."""
        return self.rewritten.dtype

    @property
    def device(self) -> torch.device:
        """Of the rewritten twin."""
        return self.rewritten.device

    @property
    def add_embedding(self) -> Any:
        """Of the rewritten twin; SDXL's pipelines look at it."""
        return self.rewritten.add_embedding

    def forward(self, sample: Tensor, timestep: Any = None, *args: Any, **kwargs: Any) -> Any:
        """As the twins.

        Raises:
            InputError: the pipeline whose schedule counts is unknown or another one, or a twin
                refuses.
        """
        chosen = self.dense if self.done(timestep) >= self.dense_after else self.rewritten
        return chosen(sample, timestep, *args, **kwargs)

    def done(self, timestep: Any) -> float:
        """Share of the schedule that lies before `timestep`, 0 at the first step.

        Raises:
            InputError: there is no schedule, or `timestep` is not in it.
        """
        pipeline = self._pipeline() if self._pipeline is not None else None
        if pipeline is not None:
            self._scheduler = pipeline.scheduler  # users exchange it
        if self._scheduler is None:
            raise InputError(
                "The pair does not know the schedule that decides which twin runs.",
                remedy="Call pipe.unet.follow(pipe) once (load_pipeline does), or set "
                "pipe.unet = pair.rewritten.",
            )
        distinct = self._distinct(self._scheduler)
        time = float(torch.as_tensor(timestep).reshape(-1)[0])
        # Below 1, so that whole timesteps are told apart; through fp16 fractional ones lose 1/2000.
        if float((distinct - time).abs().min()) > min(max(abs(time), 1.0) * 1e-3, 0.9):
            raise InputError(
                f"Timestep {time:g} is not in the schedule that the pair follows, a "
                f"{type(self._scheduler).__name__}'s.",
                remedy="If another pipeline runs it now, call pipe.unet.follow(pipe) with that one "
                "once.",
            )
        # Schedules descend: what is larger has been visited. The tolerance is for fractional
        # timesteps (Karras sigmas) that went through fp32.
        passed = int((distinct > time + 1e-3).sum())
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
