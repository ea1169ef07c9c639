"""How a denoiser's time follows from its scheduler's: ``t``, ``t / 1000``, ``1 - t / 1000``, ….

A pipeline's loop goes through ``scheduler.timesteps`` and gives its denoiser something made of
each. Which phase of a plan runs is a matter of the schedule, so what was made must be undone. It is
read off the steps of a loop: a straight line through all of them, or nothing is known.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

NAMES = ("timestep", "timesteps", "t", "timestep_ratio")
"""What diffusers' denoisers call it."""
_FEWEST = 3


@dataclass(frozen=True)
class Times:
    """``scale · t + offset`` of the scheduler's time ``t``.

    Args:
        name: of the denoiser's parameter.
        scale, offset: as above; the scale is not 0.
    """

    name: str
    scale: float
    offset: float

    def scheduled(self, value: Any) -> tuple[float, float]:
        """The scheduler's time that a denoiser's was made of, and what rounding may have done.

        Args:
            value: one for all rows, or one for each, all alike.
        """
        time = torch.as_tensor(value).reshape(-1)[0]
        # Pipelines round to their own precision, some before and some after they divide: twice half
        # of the last place.
        half = time.dtype in (torch.float16, torch.bfloat16)
        found = (float(time) - self.offset) / self.scale
        largest = max(abs(float(time)), abs(float(time) - self.offset))
        slack = torch.finfo(time.dtype).eps * largest / abs(self.scale) if half else 0.0
        return found, slack

    @property
    def plain(self) -> dict[str, Any]:
        """For a manifest."""
        return {"name": self.name, "scale": self.scale, "offset": self.offset}

    @classmethod
    def of(cls, value: Any) -> Times | None:
        """From a manifest; None if it says something else."""
        try:
            name, scale, offset = value["name"], float(value["scale"]), float(value["offset"])
        except (TypeError, KeyError, ValueError):
            return None
        finite = torch.isfinite(torch.tensor([scale, offset, 1 / scale if scale else torch.inf]))
        return cls(name, scale, offset) if name in NAMES and bool(finite.all()) else None


def time_of(arguments: Mapping[str, Any]) -> tuple[str, Any] | None:
    """Name and value of the time among a denoiser's arguments."""
    return next(((name, arguments[name]) for name in NAMES if name in arguments), None)


def line(
    name: str, seen: Sequence[float], schedule: Sequence[float], *, late: bool
) -> Times | None:
    """`Times` through all points; None if there are too few, or they lie on no line.

    Args:
        name: of the parameter.
        seen: times of the calls, in order.
        schedule: the scheduler's, in order.
        late: the loop came to its end, and may have started in mid schedule, from a picture.
    """
    made, known = list(dict.fromkeys(seen)), list(dict.fromkeys(schedule))
    if late:
        known = known[len(known) - len(made) :]
    if len(made) != len(known) or len(made) < _FEWEST:
        return None
    scale = (made[0] - made[-1]) / (known[0] - known[-1])
    offset = made[0] - scale * known[0]
    if abs(offset) < 1e-6 * max(abs(one) for one in made):
        offset = 0.0
    span = abs(made[0] - made[-1])
    near = all(abs(scale * t + offset - m) < 1e-4 * span for t, m in zip(known, made, strict=True))
    return Times(name, scale, offset) if near and scale else None
