"""What is compared: settings, and the named runs that put them together."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from todo_compile.options import PlanOptions, parse_factors

Kind = Literal["dense", "todo", "peer", "control"]
SAMPLINGS = ("nearest", "nearest-exact", "average", "blend:0.5", "staggered")


@dataclass(frozen=True, slots=True)
class Setting:
    """One way to sample pictures.

    Args:
        kind: dense, todo (the compiler's rewrite), peer (another method) or control.
        factors: factor a level, largest grid first, as `--factors` takes them; for a peer its
            strength.
        sampling: of the compiler's rewrite; for peers and controls the method's name.
        dense_last: share of the steps, at the end, that run dense.
    """

    kind: Kind
    factors: str = "off"
    sampling: str = ""
    dense_last: float = 0.0

    @property
    def name(self) -> str:
        """For tables and the cache; unique."""
        if self.kind == "dense":
            return "dense"
        if self.kind == "control":
            return self.sampling
        last = f", last {self.dense_last:.0%} dense" if self.dense_last else ""
        return f"{self.sampling} {self.factors}{last}"

    @property
    def plan(self) -> PlanOptions:
        """Of a `todo` setting."""
        return PlanOptions(factors=parse_factors(self.factors), sampling=self.sampling)


@dataclass(frozen=True, slots=True)
class Run:
    """A named experiment.

    Args:
        scales: sides of the pictures as multiples of the model's native side.
        settings: all but dense, which is always there.
        pairs: prompt × seed pairs for each setting, if time allows.
        steps: of the sampler.
    """

    scales: tuple[int, ...]
    settings: tuple[Setting, ...]
    pairs: int = 64
    steps: int = 8


def _todo(factors: tuple[str, ...], samplings: tuple[str, ...] = SAMPLINGS) -> list[Setting]:
    return [Setting("todo", f, s) for f in factors for s in samplings]


_CONTROLS = [Setting("control", sampling=s) for s in ("no attention", "other seed", "bf16 noise")]
_PEERS = [
    Setting("peer", "0.5", "tomesd"),
    Setting("peer", "0.75", "tomesd"),
    Setting("peer", "2", "all tokens"),
    Setting("peer", "2", "tiles"),
    Setting("peer", "4", "tiles"),
]
PEERS = (
    *_PEERS[:-1],
    Setting("peer", "2", "patched keys"),
    Setting("peer", "3", "reuse"),
    Setting("peer", "3; 4,2", "reuse"),
)
"""The methods of the race."""
_LATE = [
    Setting("todo", factors, sampling, last)
    for factors in ("4", "8")
    for sampling in ("nearest", "staggered")
    for last in (0.2, 0.4)
]

RUNS: dict[str, Run] = {
    # The seed document's three experiments.
    "baseline": Run((1,), (*_todo(("2", "3", "4")), *_CONTROLS, *_PEERS)),
    "factors-2x": Run((2,), (*_todo(("2", "4", "8")), *_CONTROLS)),
    "tradeoff": Run(
        (1, 2, 4),
        (
            *_todo(("2", "4", "8"), ("nearest", "staggered")),
            *_todo(("4,2", "8,4"), ("nearest", "staggered")),
            *_todo(("1,2",), ("nearest",)),
            *_LATE,
            Setting("peer", "0.75", "tomesd"),
        ),
    ),
    # Beside the times in `race.py`: what each method does to pictures.
    "peers": Run((1, 2), (*(Setting("todo", f, "nearest") for f in ("2", "4,2")), *PEERS)),
    # Which sampling: the question behind the default.
    "samplings": Run((1, 2), tuple(_todo(("2", "4")))),
}

QUICK = Run(
    (1,),
    (
        *_todo(("2",), ("nearest", "staggered")),
        *_todo(("4",)),
        Setting("control", sampling="no attention"),
        Setting("control", sampling="other seed"),
        Setting("peer", "0.75", "tomesd"),
    ),
    pairs=4,
)
