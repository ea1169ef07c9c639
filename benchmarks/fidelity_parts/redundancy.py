"""How alike neighbouring tokens are, by site and timestep (the paper's Figure 4).

For every self-attention the cosine similarity of each token with its right and lower neighbour,
averaged over the grid and the pictures, in one dense sampling run. Sites whose neighbours are alike
can lose keys with little harm.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F

from fidelity_parts.model import Model, Pair, Wrapped


def neighbour_similarity(tokens: torch.Tensor, grid: tuple[int, int]) -> float:
    """Mean cosine similarity of horizontal and vertical neighbours in (B, N, C)."""
    x = F.normalize(tokens.unflatten(1, grid), dim=-1)
    across = (x[:, :, 1:] * x[:, :, :-1]).sum(-1)
    down = (x[:, 1:] * x[:, :-1]).sum(-1)
    return float(torch.cat([across.flatten(), down.flatten()]).mean())


def study(
    model: Model, pairs: Sequence[Pair], side: int, steps: int, guidance: float
) -> dict[str, Any]:
    """``{"timesteps": […], "sites": {module: {"grid", "similarity": […]}}}``."""
    rows: dict[str, dict[str, Any]] = {}
    handles: list[Any] = []
    base = side // model.scale
    grids = {}
    level = base
    while level > 1:
        grids[level * level] = (level, level)
        level = -(-level // 2)
    for name, module in model.unet.named_modules():
        if name.endswith("attn1"):

            def look(_: Any, args: Any, kwargs: Any, name: str = name) -> None:
                tokens = args[0] if args else kwargs["hidden_states"]
                grid = grids.get(tokens.shape[1])
                if grid is not None:
                    row = rows.setdefault(name, {"grid": list(grid), "similarity": []})
                    row["similarity"].append(neighbour_similarity(tokens, grid))

            handles.append(module.register_forward_pre_hook(look, with_kwargs=True))
    try:
        dense = Wrapped(model.unet).eval()
        model.sample(pairs, side, steps, guidance, lambda _: dense)
    finally:
        for handle in handles:
            handle.remove()
    return {"timesteps": [int(t) for t in model.scheduler.timesteps], "side": side, "sites": rows}
