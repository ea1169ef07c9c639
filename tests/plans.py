"""Plans for tiny models, written by hand: tuning them would take minutes and say nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from todo_compile import models
from todo_compile.bundle.plan import TunedPlan
from todo_compile.bundle.plan_parts import Interval, Measured, Phase, Point, Site

DOWN, UP = (
    f"{block}.attentions.0.transformer_blocks.0.attn1" for block in ("down_blocks.0", "up_blocks.1")
)
"""The sites on the largest grid of `tiny_pipeline.make_unet`."""


def plan_for(
    pipeline: Path,
    pixels: int,
    cells: int,
    *phases: tuple[float, dict[str, str]],
    sites: tuple[str, ...] = (DOWN, UP),
    **changes: Any,
) -> TunedPlan:
    """A plan for a folder's UNet whose sites have `cells` rows and columns.

    Args:
        phases: (start, site → choice).
        sites: that a factor can be given to.
        changes: of fields.
    """
    source = models.resolve(str(pipeline))
    weights = models.find_weights(source, models.WeightsChoice.parse("auto"))
    drift = Interval(mean=2e-4, low=1e-4, high=4e-4)
    chosen = Point(
        name="tuned",
        speedup=1.5,
        predicted=3e-4,
        measured=Measured(pairs=8, prompts=4, drift=drift, psnr=37.0, hpf=0.1, hpf_dense=0.1),
        phases=tuple(Phase(start=start, sites=chosen, flops=1) for start, chosen in phases),
    )
    values: dict[str, Any] = {
        "model": pipeline.name,
        "component": "unet",
        "weights": models.weights_hash(weights),
        "resolution": f"{pixels}x{pixels}",
        "budget": "drift=0.001",
        "settings": {"precision": "fp32", "steps": 8, "guidance": 3.0, "scheduler": "DDIM"},
        "cost": "FLOPs of the denoiser",
        "sites": tuple(Site(name=name, rows=cells, columns=cells) for name in sites),
        "dense_flops": 2,
        "chosen": chosen,
        **changes,
    }
    return TunedPlan(**values)
