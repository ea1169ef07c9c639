r"""A linear correction of what downsampled attention misses: does it pay?

    python benchmarks/correction.py --sides 128,256 --pairs 64

At every downsampled site: dense − pooled ≈ A·(pooled attention) + B·(the site's input) + c, by
ridge regression. A and c would fold into the output projection; B is one more product of the
site's width squared, or two thin ones where its rank is a quarter of the width; its FLOPs are
counted. The regression learns from the plan's own drawings
(dense attention on the same inputs), for every phase, on every second prompt of the model; twice,
the second time with the first correction in place. How strong the ridge is, is chosen by leaving
out prompts. Pictures are then drawn from the other prompts, as in `tune.py`, whose plans these are:
uniform ones on the largest grid, and those that were tuned to their speed.

Squared errors are kept in ``build/correction`` and taken up again. Writes
``results/correction.json``.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from common import DEMO, RESULTS, machine, save
from correction_parts.ridge import fit
from correction_parts.sites import Model, Plan
from fidelity_parts.intervals import interval, paired

from todo_compile import models
from todo_compile.runtime.metrics import mse
from todo_compile.runtime.torch_pipelines import torch_pipeline
from todo_compile.tuning.drawing import Pair, Sampling, call_pipeline, for_measuring, make_pairs
from todo_compile.tuning.prompts import read_prompts, split
from todo_compile.tuning.studio import Studio

KEPT = Path(__file__).parent.parent / "build" / "correction"
FOLDS = 3
"""Batches of four of twelve prompts: no prompt is in two folds."""
ROUNDS = 2


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--sides", default="128", help="pixels, e.g. 128,256")
    parser.add_argument("--pairs", type=int, default=64, help="of prompts that nothing learned of")
    parser.add_argument("--fit", type=int, default=24, help="pairs to learn from")
    parser.add_argument("--ranks", default="whole,quarter", help="of B")
    parser.add_argument("--uniform", default="2,4,8", help="factors on the largest grid")
    parser.add_argument("--phases", default="1,3", help="of the tuned plans")
    parser.add_argument("--batch", type=int, default=4, help="pictures at once")
    return parser.parse_args()


def main() -> None:
    """Measure and write."""
    given = arguments()
    torch.set_num_threads(1)
    torch.set_grad_enabled(False)
    KEPT.mkdir(parents=True, exist_ok=True)
    path = RESULTS / "correction.json"
    known = json.loads(path.read_text())["sizes"] if path.is_file() else []
    sizes = {size["side"]: size for size in known}
    for side in map(int, given.sides.split(",")):
        sizes[side] = {
            "side": side,
            "pairs": given.pairs,
            "fit": given.fit,
            "rows": Trial(side, given).rows(),
            "run": {"command": sys.argv[1:], **machine()},
        }
        save("correction", {"model": "demo", "sizes": [sizes[s] for s in sorted(sizes)]})


class Trial:
    """One size."""

    def __init__(self, side: int, given: argparse.Namespace) -> None:
        self.side, self.given = side, given
        source = models.resolve("demo")
        self.resolution = models.Resolution.parse(side)
        self.sampling = Sampling(8, 3.0, None, given.batch)
        studio = Studio(source, self.resolution, self.sampling)
        self.dense_flops, self.flops = studio.dense_flops, studio.flops
        pipeline = torch_pipeline(source, precision="fp32")
        for_measuring(pipeline)
        self.model = Model(pipeline, studio.sites)
        learn, held = split(read_prompts(None, DEMO, self.resolution))
        self.learn = make_pairs(learn, given.fit, 0)
        self.held = make_pairs(held, given.pairs, 10_000)
        self.prompts = [pair.prompt for pair in self.held]
        self._dense: list[Any] = []

    def rows(self) -> list[dict[str, Any]]:
        """Every plan without and with its correction."""
        found: list[dict[str, Any]] = []
        for name, plan, speedup in self.plans():
            plain = self.errors(plan)["errors"]
            drift = _interval(plain, self.prompts)
            row: dict[str, Any] = {"plan": name, "speedup": speedup, "drift": drift}
            row["corrected"] = {}
            for rank in () if self.compared(name) else self.given.ranks.split(","):
                after = self.errors(plan, rank)
                row["corrected"][rank] = {
                    "speedup": 1 / (1 / speedup + self.price(plan, rank) / self.dense_flops),
                    "drift": _interval(after["errors"], self.prompts),
                    "explained": after["explained"],
                    "against_plain": paired(after["errors"], plain, self.prompts),
                }
            found.append(row)
            print(json.dumps(row), flush=True)
        for row in found:
            for rank, after in row["corrected"].items():
                after["best_as_fast"] = self.best(found, row["plan"], rank, after["speedup"])
        return found

    def best(
        self, rows: list[dict[str, Any]], name: str, rank: str, speedup: float
    ) -> dict[str, Any] | None:
        """The closest plan without a correction that is as fast, to four digits, against it."""
        as_fast = [row for row in rows if round(row["speedup"], 4) >= round(speedup, 4)]
        if not as_fast:
            return None
        chosen = min(as_fast, key=lambda row: row["drift"]["mean"])
        plans = {known: plan for known, plan, _ in self.plans()}
        mine, theirs = self.errors(plans[name], rank), self.errors(plans[chosen["plan"]])
        return {
            "plan": chosen["plan"],
            "speedup": chosen["speedup"],
            "ratio": paired(mine["errors"], theirs["errors"], self.prompts),
        }

    @staticmethod
    def compared(name: str) -> bool:
        """Whether a plan was tuned to a number, for comparison alone: it is not corrected."""
        return name.startswith("tuned to ") and "nearest:" not in name

    def plans(self) -> list[tuple[str, Plan, float]]:
        """(name, plan, speedup without a correction)."""
        from todo_compile.bundle.plan_parts import Phase

        largest = max(site.rows for site in self.model.sites.values())
        top = [name for name, site in self.model.sites.items() if site.rows == largest]
        found: list[tuple[str, Plan, float]] = []
        for factor in self.given.uniform.split(","):
            sites = dict.fromkeys(top, f"nearest:{factor}")
            flops = self.flops(Phase(start=0.0, sites=sites, flops=0).options)
            found.append((f"uniform nearest:{factor}", [(0.0, sites)], self.dense_flops / flops))
        sizes = json.loads((RESULTS / "tune.json").read_text())["sizes"]
        rows = next(size["rows"] for size in sizes if size["side"] == self.side)
        for row in rows:
            if str(row.get("phases")) in self.given.phases.split(","):
                base = row["at_the_speed_of"].removeprefix("uniform ").partition(",")[0]
                name = f"tuned to {base}, {row['phases']} phase{'s' * (row['phases'] > 1)}"
                plan = [(phase["start"], phase["sites"]) for phase in row["plan"]]
                found.append((name, plan, row["speedup"]))
        return found

    def price(self, plan: Plan, rank: str) -> float:
        """FLOPs of B in a call, the mean over the steps."""
        total = 0.0
        ends = [*(start for start, _ in plan[1:]), 1.0]
        for (start, sites), end in zip(plan, ends, strict=True):
            for name, choice in sites.items():
                site, width = self.model.sites[name], self.model.widths[name]
                tokens = site.rows * site.columns * self.sampling.rows
                each = (
                    2 * tokens * width**2 if rank == "whole" else 4 * tokens * width * (width // 4)
                )
                total += (choice != "dense") * (end - start) * each
        return total

    def errors(self, plan: Plan, rank: str | None = None) -> dict[str, Any]:
        """Squared errors on the held-out pairs, from the file if they are known.

        Args:
            plan: to follow.
            rank: of the correction; None is without.
        """
        said: list[Any] = [self.side, list(plan), rank, self.given.fit if rank else 0]
        said += [[pair.prompt, pair.seed] for pair in self.held]
        name = hashlib.sha256(json.dumps(said).encode()).hexdigest()[:32]
        place = KEPT / f"{name}.json"
        if place.is_file():
            return json.loads(place.read_text())
        if not self._dense:
            self.model.follow([(0.0, {})])
            self._dense = self.draw(self.held)
        self.model.follow(plan)
        explained = self.learned(len(plan), rank) if rank else {}
        drawn = self.draw(self.held)
        found = [mse(a, b) for a, b in zip(drawn, self._dense, strict=True)]
        result = {"errors": found, "explained": explained}
        half = place.with_suffix(".half")
        half.write_text(json.dumps(result))
        half.rename(place)
        return result

    def learned(self, phases: int, rank: str) -> dict[str, list[float | None]]:
        """Correct the model; the share explained of what was missing, by site and phase."""
        sites = self.model.sites
        explained: dict[str, list[float | None]] = {}
        for _ in range(ROUNDS):
            for site in sites.values():
                site.learn = {}
            self.draw(self.learn, learn=True)
            for name, site in sites.items():
                explained[name] = [None] * phases
                thin = None if rank == "whole" else self.model.widths[name] // 4
                for phase in range(phases):
                    folds = {fold: sums for (p, fold), sums in site.learn.items() if p == phase}
                    if len(folds) > 1:
                        site.maps[phase], _, explained[name][phase] = fit(folds, thin)
        return explained

    def draw(self, pairs: Sequence[Pair], *, learn: bool = False) -> list[Any]:
        """Pictures of the plan and the corrections that are followed now."""
        found: list[Any] = []
        size = self.sampling.batch
        for number, start in enumerate(range(0, len(pairs), size)):
            for site in self.model.sites.values():
                site.fold = number % FOLDS if learn else None
            group = list(pairs[start : start + size])
            found += call_pipeline(self.model.pipeline, group, self.sampling, self.resolution)
        return found


def _interval(values: Sequence[float], prompts: Sequence[str]) -> dict[str, float]:
    mean, low, high = interval(values, prompts)
    return {"mean": mean, "low": low, "high": high}


if __name__ == "__main__":
    main()
