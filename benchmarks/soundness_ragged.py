"""A factor that does not divide the side, or the next one that does: which is nearer to dense?

python benchmarks/soundness_ragged.py [--seeds 5] [--queries 256]

The default plan takes the gentlest factor within its bound: 3 on 160×160 tokens (1280 px), whose
last row and column of cells hold one token each and weigh as much. The next divisor is 4, with
fewer keys. Both are compared with dense attention, on tokens that vary smoothly over the picture
and on random ones: relative squared error of the outputs of queries drawn at random, and of those
whose tokens lie in the last row or column.
"""

from __future__ import annotations

import argparse
import math
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))  # the oracle is the tests'

import torch
import torch.nn.functional as F
from common import save, spread
from rich.console import Console
from rich.table import Table

from tests import oracle
from todo_compile.passes.plan.choose import smallest_factors

BOUND = 4096
SIDES = (68, 104, 136, 160, 176)
WIDTH = 40
TOKENS = ("smooth", "random")
SAMPLINGS = ("nearest", "average")


def tokens(kind: str, side: int, generator: torch.Generator) -> torch.Tensor:
    """(side, side, WIDTH) of unit variance; smooth ones change over about eight tokens."""
    noise = torch.randn(1, WIDTH, side + 32, side + 32, generator=generator)
    if kind == "smooth":
        line = torch.exp(-0.5 * (torch.arange(-16, 17) / 4.0) ** 2)
        for shape in ((33, 1), (1, 33)):
            kernel = (line / line.norm()).view(1, 1, *shape).expand(WIDTH, 1, *shape)
            noise = F.conv2d(noise, kernel, groups=WIDTH)
        return noise[0].movedim(0, -1)
    return noise[0, :, 16:-16, 16:-16].movedim(0, -1)


def divisor_after(side: int, factor: int) -> int:
    """The smallest divisor of `side` above `factor`."""
    return next(f for f in range(factor + 1, side + 1) if side % f == 0)


def error(
    x: torch.Tensor, factor: int, sampling: str, queries: torch.Tensor, weights: torch.Tensor
) -> float:
    """Relative squared error against dense attention."""
    side = x.shape[0]
    flat = x.flatten(0, 1)
    q, k, v = flat @ weights
    dense = oracle.attention(q[queries], k, v)
    pair = factor, factor
    k, v = (oracle.subsample(t, 0, (side, side), pair, sampling) for t in (k, v))
    pooled = oracle.attention(q[queries], k, v, bias=oracle.mass((side, side), pair, 0, 0))
    return float((pooled - dense).square().sum() / dense.square().sum())


def measured(side: int, kind: str, sampling: str, seeds: int, queries: int) -> dict[str, Any]:
    """Errors of the plan's factor and of the divisor after it."""
    factor = smallest_factors(side, side, BOUND)[0]
    found: dict[str, list[float]] = {}
    for seed in range(seeds):
        generator = torch.Generator().manual_seed(seed)
        x = tokens(kind, side, generator)
        weights = torch.randn(3, WIDTH, WIDTH, generator=generator) / math.sqrt(WIDTH)
        drawn = torch.randint(side * side, (queries,), generator=generator)
        last = torch.arange(side) * side + side - 1
        edge = torch.cat([last, torch.arange(side * (side - 1), side * side)])
        for name, f in (("ragged", factor), ("divisor", divisor_after(side, factor))):
            for where, chosen in (("anywhere", drawn), ("edge", edge)):
                one = error(x, f, sampling, chosen, weights)
                found.setdefault(f"{name} {where}", []).append(one)
    return {
        "side": side,
        "tokens": kind,
        "sampling": sampling,
        "factor": factor,
        "divisor": divisor_after(side, factor),
        "keys": [oracle.cells(side, factor) ** 2, (side // divisor_after(side, factor)) ** 2],
        "errors": {name: spread(values) for name, values in found.items()},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--queries", type=int, default=256)
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    rows = [
        measured(side, kind, sampling, chosen.seeds, chosen.queries)
        for side in SIDES
        for kind in TOKENS
        for sampling in SAMPLINGS
        if side % smallest_factors(side, side, BOUND)[0]
    ]
    table = Table("side", "tokens", "sampling", "factors", "keys", *rows[0]["errors"])
    for row in rows:
        errors = (f"{e['median']:.3g}" for e in row["errors"].values())
        factors = f"{row['factor']} | {row['divisor']}"
        table.add_row(
            str(row["side"]), row["tokens"], row["sampling"], factors, str(row["keys"]), *errors
        )
    Console().print(table)
    print("wrote", save("soundness-ragged", {"rows": rows}))


if __name__ == "__main__":
    main()
