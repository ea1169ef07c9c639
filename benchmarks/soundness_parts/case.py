"""The grammar: a case is a frozen choice of everything, drawn from a seed, printable, shrinkable.

Of each field the first choice is the plainest; a case draws a few fields that are not plain.
`repaired` turns choices that make no sense together into the nearest that do.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

from soundness_parts.attend import SPELLINGS
from soundness_parts.keys import FUSED, KEY_MAPS, PROJECTIONS, REPEATS, SPLITS
from soundness_parts.masks import MASKS
from soundness_parts.sources import ORDERS, PICTURES, SOURCES, Grid
from soundness_parts.views import ALIASES, DETOURS
from soundness_parts.writes import PARTS, SHUFFLES, WRITES
from todo_compile.options import Masks


@dataclass(frozen=True, slots=True)
class Side:
    """What keys there are beside, or instead of, the image's tokens.

    Args:
        before, after: text keys; True takes the case's number, a number is itself.
        joint: the queries have them too.
        instead: the keys are these alone.
        allowed: the image's keys may be pooled.
        text: they are an input of text tokens.
    """

    before: bool | int = 0
    after: bool | int = 0
    joint: bool = True
    instead: bool = False
    allowed: bool = True
    text: bool = True


SIDES: Mapping[str, Side] = {
    "none": Side(joint=False, text=False),
    "text_before": Side(before=True),
    "text_after": Side(after=True),
    "text_both": Side(before=True, after=2),
    "added_before": Side(before=True, joint=False),
    "added_after": Side(after=True, joint=False),
    "class_token": Side(before=1, text=False),
    "registers": Side(after=2, text=False),
    "zero_key": Side(after=1, joint=False, text=False),
    "cross": Side(before=True, joint=False, instead=True, allowed=False),
    "two_pictures": Side(joint=False, allowed=False, text=False),
    "twice": Side(joint=False, allowed=False, text=False),
    "other_picture": Side(joint=False, instead=True, allowed=False, text=False),
}

JOINS = ("tokens", "projected", "heads")
MOMENTS = ("between", "before", "after", "end", "scores")
TARGETS = ("tokens", "key", "value", "query")
USES = ("none", "residual", "keys", "values", "tokens", "count", "mean")
BLOCKS = ("one", "sequence", "parallel", "pictures", "crossed")
SIZES: tuple[Grid, ...] = (
    (4, 6), (4, 4), (6, 4), (5, 7), (3, 8), (7, 5), (2, 9), (5, 5), (1, 8), (7, 1), (6, 6), (8, 8),
)  # fmt: skip
FACTORS: tuple[Grid, ...] = ((2, 2), (1, 2), (2, 1), (3, 2), (2, 3), (4, 2), (3, 3), (4, 4), (1, 5))


@dataclass(frozen=True, slots=True)
class Case:
    """All choices of one module and of how it is rewritten.

    Args:
        seed: of the weights and inputs.
        source, order: where tokens come from, and in which order.
        size: rows and columns of the tokens.
        frames, batch: pictures.
        norm: of tokens, in front of the block.
        placed: all pictures' tokens get one table over rows and columns.
        detour: a round trip of the tokens in front of the projections.
        projection, key_map, value_map: how keys and values are made.
        heads, split, repeat: how they come apart into heads; a repeat has half as many of keys.
        side, text, join: keys beside the image's, their number, and where they join.
        mask, spelling: attention.
        write, alias, early, part, target, moment: what is written where, through what, and when;
            `early` takes the alias before keys are made.
        query_last: the query is made after the values.
        uses: what else reads keys, values or tokens.
        dtype: of weights and inputs.
        dynamic: the batch is dynamic.
        nesting: what the block runs in.
        sampling, factors, masks, keep_mass: what is asked for.
        blocks: attentions in one module: one, two of the same tokens or in sequence, one for each
            of two pictures, or one of a picture and one from it to another.
        sides: the picture's sides are dynamic.
        picture: what is done with the input before.
    """

    seed: int = 0
    source: str = "conv3"
    order: str = "row"
    size: Grid = (4, 6)
    batch: int = 1
    norm: str = "none"
    placed: bool = False
    detour: str = "none"
    projection: str = "linear"
    key_map: str = "none"
    value_map: str = "none"
    heads: int = 2
    split: str = "view"
    repeat: str = "none"
    side: str = "none"
    text: int = 3
    join: str = "tokens"
    mask: str = "none"
    spelling: str = "sdpa"
    write: str = "none"
    alias: str = "none"
    early: bool = False
    part: str = "whole"
    target: str = "tokens"
    moment: str = "between"
    query_last: bool = False
    uses: str = "none"
    dtype: str = "float32"
    dynamic: bool = False
    nesting: str = "none"
    sampling: str = "nearest"
    factors: Grid = (2, 2)
    masks: Masks = "prove"
    keep_mass: bool = True
    blocks: str = "one"
    sides: bool = False
    picture: str = "none"

    def changed(self) -> dict[str, Any]:
        """The choices that are not the plainest."""
        plain = Case()
        return {
            f.name: value
            for f in fields(self)
            if (value := getattr(self, f.name)) != getattr(plain, f.name)
        }

    def __str__(self) -> str:
        return f"Case({', '.join(f'{name}={value!r}' for name, value in self.changed().items())})"


CHOICES: Mapping[str, Sequence[Any]] = {
    "source": tuple(SOURCES),
    "order": tuple(ORDERS),
    "norm": ("none", "layer_norm", "group_norm", "batch_norm"),
    "placed": (False, True),
    "detour": tuple(DETOURS),
    "projection": (*PROJECTIONS, *FUSED, "identity", "shared"),
    "key_map": tuple(KEY_MAPS),
    "value_map": tuple(KEY_MAPS),
    "heads": (2, 1, 4),
    "split": tuple(SPLITS),
    "repeat": (*REPEATS, "broadcast"),
    "side": tuple(SIDES),
    "mask": tuple(MASKS),
    "spelling": tuple(SPELLINGS),
    "write": tuple(WRITES),
    "query_last": (False, True),
    "uses": USES,
    "dtype": ("float32", "bfloat16", "float16", "float64"),
    "dynamic": (False, True),
    "nesting": ("none", "checkpoint", "autocast", "no_grad", "cond"),
    "sampling": ("nearest", "nearest-exact", "average", "blend:0.5", "staggered"),
    "blocks": BLOCKS,
    "sides": (False, True),
}
"""Fields that are plain or not; the plainest first. Sizes and details are drawn in every case."""

DETAILS: Mapping[str, Sequence[Any]] = {
    "size": SIZES,
    "batch": (1, 2, 3),
    "factors": FACTORS,
    "text": (3, 1, 5),
    "join": JOINS,
    "alias": tuple(ALIASES),
    "early": (False, True),
    "part": tuple(PARTS),
    "target": TARGETS,
    "moment": MOMENTS,
}

WEIGHTS: Mapping[str, float] = {
    "write": 3, "spelling": 3, "mask": 2, "side": 3, "source": 2.5, "order": 1.5, "key_map": 2,
    "projection": 2, "sampling": 2, "nesting": 0.5, "dynamic": 0.7, "dtype": 0.7,
    "sides": 0.25,
}  # fmt: skip
"""How often a field is one of those that are not plain; others 1."""


LATER = 10**9
"""From this seed on a case also has one of the choices that came later: what the seeds before it
mean stays as it is."""


def draw(seed: int) -> Case:
    """The case of a seed."""
    random_ = random.Random(seed)
    case = Case(seed=seed % 97)
    case = replace(case, **{name: random_.choice(values) for name, values in DETAILS.items()})
    names = list(CHOICES)
    weights = [WEIGHTS.get(name, 1.0) for name in names]
    for _ in range(random_.choice((1, 2, 3, 3, 4, 4, 5, 6))):
        name = random_.choices(names, weights)[0]
        case = replace(case, **{name: random_.choice(CHOICES[name][1:])})
    if case.mask == "none" and random_.random() < 0.3 and SIDES[case.side].text:
        case = replace(case, mask=random_.choice([n for n, m in MASKS.items() if m.text]))
    if not MASKS[case.mask].safe and random_.random() < 0.35:
        case = replace(case, masks="pool")
    if SIDES[case.side].joint and random_.random() < 0.15:
        case = replace(case, keep_mass=False)
    if seed >= LATER:
        case = _later(case, random_)
    return repaired(case)


def _later(case: Case, random_: random.Random) -> Case:
    if random_.random() < 0.4:
        return replace(case, picture=random_.choice([name for name in PICTURES if name != "none"]))
    looks = ("none", "none", "none", "view_as", "detach", "contiguous", "transpose", "clone")
    return replace(
        case,
        write=random_.choice(tuple(SHUFFLES)),
        alias=random_.choice(looks),
        part=random_.choice(("whole", "whole", "whole", "first", "strided")),
    )


def grid_of(case: Case) -> Grid:
    """Rows and columns of a sequence of keys, as the image counts them."""
    return ORDERS[case.order].grid(case.size)


def side_lengths(case: Case) -> tuple[int, int]:
    """Keys before and after the image's."""
    side = SIDES[case.side]
    before, after = (case.text if own is True else int(own) for own in (side.before, side.after))
    return before, after


def beside_another(case: Case) -> bool:
    """Whether a second picture's packed tokens are keys too. Only the one that is returned is named
    by the caller's number, so the other's tokens are kept whole, as text would be.
    """
    return case.side == "two_pictures" and case.source == "packed"


def another_picture(case: Case) -> bool:
    """Whether a second picture goes in."""
    return case.side in ("two_pictures", "other_picture") or case.blocks in ("pictures", "crossed")


def repaired(case: Case) -> Case:
    """The nearest case that makes sense."""
    from soundness_parts.repair import repair

    return repair(case)
