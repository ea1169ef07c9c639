"""What a measurement of drift gave: plain data without torch."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from todo_compile.options import Factor


@dataclass(frozen=True, slots=True)
class SiteDrift:
    """One site over the steps.

    Args:
        name, module, level, grid: as in the plan's report.
        factor, sampling: what the plan gives it.
        share: of the dense model's FLOPs.
        local, output: mean relative errors by timestep, see `SiteError`; `output` is empty if only
            local errors were measured.
    """

    name: str
    module: str
    level: int
    grid: tuple[int, int]
    factor: Factor
    sampling: str
    share: float
    local: tuple[float, ...]
    output: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Drift:
    """Drift of a plan.

    Args:
        timesteps: of the columns.
        total: mean relative error of the output by timestep, all sites rewritten.
        sites: each rewritten site alone.
        samples: latents for each timestep.
        options: the plan's.
    """

    timesteps: tuple[float, ...]
    total: tuple[float, ...]
    sites: tuple[SiteDrift, ...]
    samples: int
    options: dict[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """JSON-able form."""
        return asdict(self)
