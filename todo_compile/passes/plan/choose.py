"""Choose a factor for every site, or a reason why it keeps all its keys.

The default policy bounds the key/value tokens of every site by the number that the model saw in
training at its highest attention level: an attention then never meets more keys than it learned to
weigh, whatever the resolution. Of a video the bound is one of each frame, so that a clip of native
length keeps the native number; of several pictures in a row it is one of each. Explicit factors go
by level: level 1 is the largest grid; factors of single sites go before both. They are for all
pictures in a row.

With ``staggered`` the n-th site of a level gets the n-th phase of `stagger_pattern`, whether the
sites before it are rewritten or not: a site's phase does not depend on the factors of others. It is
counted within one graph. Where blocks are compiled one by one ("regional compilation"), each is a
graph of its own, its sites are the first of their levels, and ``staggered`` equals ``nearest``.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from todo_compile.errors import ConfigError
from todo_compile.options import DEFAULT_KV_TOKENS, Factor, PlanOptions, SiteChoice
from todo_compile.passes.find.attention import AttentionSite
from todo_compile.passes.graph import GraphContext
from todo_compile.passes.grid.grids import GridMap
from todo_compile.passes.plan.classify import SiteGrid, classify, grid_areas
from todo_compile.passes.plan.levels import Levels, check_count
from todo_compile.passes.plan.masks import HIDES
from todo_compile.passes.plan.single import single_sites
from todo_compile.passes.rewrite.pooling import Pooling, pooled_size, stagger_pattern

Action = Literal["rewritten", "dense", "refused"]


@dataclass(slots=True)
class Decision:
    """What happens to a site and why."""

    site: AttentionSite
    grid: SiteGrid
    action: Action
    reason: str
    level: int = 0
    poolings: tuple[Pooling, ...] = ()
    """One for every image among the keys (`SiteGrid.images`), if any of them is pooled."""
    keys: int = 0
    """Key tokens before the rewrite, text included."""
    keeps_mass: bool = False
    """Pooled keys weigh as the tokens that they stand for against the text, see `mass`."""
    weighs_keys: bool = False
    """Keys have weights at all: against the text, or because cells differ in size."""

    @property
    def keys_after(self) -> int:
        """Key tokens after the rewrite, text included."""
        return self.keys - sum(p.tokens - p.pooled_tokens for p in self.poolings)


def smallest_factors(rows: int, columns: int, bound: int) -> Factor:
    """Gentlest (row, column) factors that leave at most `bound` tokens.

    Equal factors on a square grid. Elsewhere the pair with the least f_r² + f_c², which is the
    mean squared distance of a token from the one that stands for it up to constants; of equals,
    the pair that shortens the longer side more, then the one that keeps more tokens. Factors need
    not divide a side: the next divisor is farther from dense (docs/fidelity.md).
    """
    if rows * columns <= bound:
        return 1, 1
    if rows == columns:
        factor = next(f for f in range(1, rows + 1) if pooled_size(rows, f) ** 2 <= bound)
        return factor, factor
    best: tuple[int, int, int, Factor] | None = None
    for row_factor in range(1, rows + 1):
        if best is not None and row_factor**2 >= best[0]:
            break
        kept = bound // pooled_size(rows, row_factor)
        if kept < 1:
            continue
        column_factor = next(f for f in range(1, columns + 1) if pooled_size(columns, f) <= kept)
        sides = pooled_size(rows, row_factor), pooled_size(columns, column_factor)
        cost = row_factor**2 + column_factor**2
        rank = (cost, max(sides), -sides[0] * sides[1], (row_factor, column_factor))
        best = rank if best is None else min(best, rank)
    return best[3] if best is not None else (rows, columns)


def make_plan(
    context: GraphContext,
    grids: GridMap,
    sites: Sequence[AttentionSite],
    options: PlanOptions,
    *,
    native_kv_tokens: int | None = None,
    levels: Levels | None = None,
) -> list[Decision]:
    """A decision for every site, in the order given.

    Args:
        levels: what is known of the model's levels where this graph is a part of it.

    Raises:
        ConfigError: a factor exceeds the side of the grid that it is for, or factors name more
            levels than there are; where `levels` is strict.
    """
    levels = levels or Levels()
    found = [classify(context, grids, site) for site in sites]
    numbers = levels.numbers(grid_areas(found))
    # A graph that was rewritten before may hide a level whose pooled grid cannot be followed.
    again = any("todo_rule" in node.meta for node in context.graph.nodes)
    if not again:
        check_count(options, levels, len(numbers))
    bound = options.kv_tokens or native_kv_tokens or DEFAULT_KV_TOKENS
    own = single_sites(context, sites, found, options, again=again, strict=levels.strict)
    seen: Counter[tuple[int, int, int]] = Counter()
    decisions: list[Decision] = []
    for site, grid in zip(sites, found, strict=True):
        level = numbers.get(grid.tokens, 0)
        decision = _decide(context, site, grid, level, options, bound, own.get(site.anchor), levels)
        if grid.obstacle is None:
            seen[grid.frames, grid.rows, grid.columns] += 1
        before = seen[grid.frames, grid.rows, grid.columns] - 1
        decision.poolings = tuple(
            _staggered(pooling, image.column_major, before)
            if pooling.sampling == "staggered"
            else pooling
            for pooling, image in zip(decision.poolings, grid.images, strict=False)
        )
        decisions.append(decision)
    return decisions


def _staggered(pooling: Pooling, turned: bool, index: int) -> Pooling:
    """The pooling with the phase of the `index`-th site of its grid."""
    upright = pooling.transposed() if turned else pooling
    pattern = stagger_pattern(upright.row_factor, upright.column_factor, index + 1)
    upright = replace(upright, row_phase=pattern[index][0], column_phase=pattern[index][1])
    return upright.transposed() if turned else upright


def _decide(
    context: GraphContext,
    site: AttentionSite,
    grid: SiteGrid,
    level: int,
    options: PlanOptions,
    bound: int,
    own: SiteChoice | None,
    levels: Levels,
) -> Decision:
    if grid.obstacle is not None:
        action: Action = "refused" if grid.refused else "dense"
        return Decision(site, grid, action, grid.obstacle, level if grid.kind != "cross" else 0)
    if own is not None:
        factors, because = [own[:2] for _ in grid.images], "factor given for this site"
    elif options.factors is None:
        factors = [smallest_factors(one.rows, one.columns, bound) for one in grid.images]
        because = f"{', '.join(_counted(one) for one in grid.images)}, bound {bound:,}"
    else:
        factor = options.factors[level - 1] if level <= len(options.factors) else (1, 1)
        factors = [factor for _ in grid.images]
        because = f"factor given for level {level}{levels.scope}"
        if level > len(options.factors):
            because = f"no factor was given for level {level}{levels.scope}"
        if not options.factors:
            because = "factors are off"
    for factor, image in zip(factors, grid.images, strict=True):
        if factor[0] <= image.rows and factor[1] <= image.columns:
            continue
        reason = (
            f"factor {factor[1]}x{factor[0]} (width×height) for level {level}{levels.scope} "
            f"exceeds its grid of {image.columns}×{image.rows} tokens"
        )
        if not levels.strict:
            return Decision(site, grid, "refused", reason, level)
        raise ConfigError(
            f"{reason[0].upper()}{reason[1:]}.",
            remedy="Take a factor of at most the grid's side; `todo-compile plan` shows the grids.",
        )
    if set(factors) == {(1, 1)}:
        return Decision(site, grid, "dense", because, level)
    sampling = own[2] if own is not None and len(own) == 3 else options.sampling
    poolings = tuple(
        _pooling(image, factor, sampling)
        for image, factor in zip(grid.images, factors, strict=True)
    )
    if site.mask_axis is not None:
        proof = grid.mask or ("asked" if options.masks == "pool" else None)
        if proof is None:
            return Decision(site, grid, "refused", HIDES, level)
        if proof != "uniform" and not poolings[0].picks_tokens:
            reason = "a mask that differs from key to key cannot be averaged"
            return Decision(site, grid, "refused", reason, level)
        if proof == "asked":
            because += '; masks="pool": that its mask hides no key is not proved'
    shape = context.shape(site.key.node)
    assert shape is not None
    keys = int(shape[site.key.tokens])  # a number: see `_sized`
    alike = keys == grid.tokens and len(set(factors)) == 1  # the same addend for all keys cancels
    mass = grid.kind == "joint" and options.keep_mass and not alike
    weighs = mass or any(pooling.is_ragged for pooling in poolings)
    return Decision(site, grid, "rewritten", because, level, poolings, keys, mass, weighs)


def _counted(image: SiteGrid) -> str:
    each = f" in each of {image.frames} frames" if image.frames > 1 else ""
    return f"{image.rows * image.columns:,} tokens{each}"


def _pooling(image: SiteGrid, factor: Factor, sampling: str) -> Pooling:
    pooling = Pooling(
        image.rows, image.columns, *factor, sampling, image.offset, frames=image.frames
    )
    # Slow and fast side change places, and their factors with them.
    return pooling.transposed() if image.column_major else pooling
