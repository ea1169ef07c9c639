"""Choose a factor for every site, or a reason why it keeps all its keys.

The default policy bounds the key/value tokens of every site by the number that the model saw in
training at its highest attention level: an attention then never meets more keys than it learned to
weigh, whatever the resolution. Explicit factors go by level: level 1 is the largest grid; factors
of single sites go before both.

With ``staggered`` the n-th site of a level gets the n-th phase of `stagger_pattern`, whether the
sites before it are rewritten or not: a site's phase does not depend on the factors of others. It is
counted within one graph. Where blocks are compiled one by one ("regional compilation"), each is a
graph of its own, its sites are the first of their levels, and ``staggered`` equals ``nearest``.
"""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch.fx import Node

from todo_compile.config import DEFAULT_KV_TOKENS, Factor, PlanOptions
from todo_compile.errors import ConfigError
from todo_compile.passes.attention import AttentionSite
from todo_compile.passes.axes import Dim, Size, grid_of, image_segment, same
from todo_compile.passes.graph import GraphContext
from todo_compile.passes.grids import GridMap
from todo_compile.passes.levels import Levels, check_count
from todo_compile.passes.mass import mass_obstacle
from todo_compile.passes.pooling import Pooling, pooled_size, stagger_pattern

Kind = Literal["self", "cross", "joint", "unknown"]
Action = Literal["rewritten", "dense", "refused"]


@dataclass(frozen=True, slots=True)
class SiteGrid:
    """What dataflow proves of a site's keys.

    Args:
        kind: self-attention, cross-attention, joint attention over text and image, or unknown.
        rows, columns: sides of the key tokens' grid (H, W); 0 where there is none.
        offset: tokens before the image's in a joint sequence.
        obstacle: why the site cannot or need not be rewritten; None if it can.
        refused: the obstacle is a lack of proof rather than a property of the model.
    """

    kind: Kind
    rows: int = 0
    columns: int = 0
    offset: int = 0
    obstacle: str | None = None
    refused: bool = False
    dynamic: tuple[Any, ...] = ()
    """Symbolic sides, where the grid is dynamic."""
    column_major: bool = False
    """The tokens count columns first: ``(B, W·H, C)``."""


@dataclass(slots=True)
class Decision:
    """What happens to a site and why."""

    site: AttentionSite
    grid: SiteGrid
    action: Action
    reason: str
    level: int = 0
    pooling: Pooling | None = None
    keys: int = 0
    """Key tokens before the rewrite, text included."""
    keeps_mass: bool = False
    """Pooled keys weigh as the tokens that they stand for, see `mass`."""


def classify(context: GraphContext, grids: GridMap, site: AttentionSite) -> SiteGrid:
    """Kind and grid of a site, from dataflow alone."""
    query = grids.dim(site.query.node, site.query.tokens)
    key = grids.dim(site.key.node, site.key.tokens)
    value = grids.dim(site.value.node, site.value.tokens)
    if query is None or key is None or value is None:
        return SiteGrid(
            "unknown", obstacle="the shapes of its operands are not known", refused=True
        )
    key_grid, query_grid = grid_of(key), grid_of(query)
    if key_grid is not None:
        found = _self_or_other(grids, query, key, query_grid is not None)
        if found is not None:
            return found
        return _sized("self", context, grids, site, key, value, 0)
    if len(key) == 1 and sum(grid_of(s) is not None for s in key[0].segments) > 1:
        return SiteGrid(
            "unknown", obstacle="its keys join the tokens of several images", refused=True
        )
    segment = image_segment(key)
    if segment is not None:
        offset, image = segment
        mine = query_grid is not None and grids.unifier.same_range(query, image)
        inside = image_segment(query)
        shared = inside is not None and grids.unifier.same_range(inside[1], image)
        if not mine and not shared:
            return SiteGrid(
                "cross", obstacle="cross-attention: the keys are another image's tokens"
            )
        other = image_segment(value)
        if other is None or not same(other[0], offset):
            return SiteGrid(
                "joint", obstacle="keys and values order text and image differently", refused=True
            )
        return _sized("joint", context, grids, site, image, other[1], offset)
    return _without_grid(context, grids, site, query, key)


def _self_or_other(grids: GridMap, query: Dim, key: Dim, query_is_grid: bool) -> SiteGrid | None:
    """None for self-attention over the whole grid, else what it is instead."""
    if grids.unifier.same_range(query, key):
        return None
    if _coarsened(grids, query, key):
        rows, columns = (atom.size if isinstance(atom.size, int) else 0 for atom in query)
        return SiteGrid("self", rows, columns, obstacle="its keys are downsampled already")
    what = "lie on another grid than the queries" if query_is_grid else "alone are image tokens"
    return SiteGrid("cross", obstacle=f"cross-attention: the keys {what}")


def _coarsened(grids: GridMap, query: Dim, key: Dim) -> bool:
    """Whether every axis of the keys is the queries' or a coarser form of it."""
    find = grids.unifier.find
    return len(query) == len(key) and all(
        find(k.ident) == find(q.ident) or (k.origin and find(k.origin) == find(q.ident))
        for q, k in zip(query, key, strict=True)
    )


def _sized(
    kind: Kind,
    context: GraphContext,
    grids: GridMap,
    site: AttentionSite,
    key: Dim,
    value: Dim,
    offset: object,
) -> SiteGrid:
    """The site with numbers, or the obstacle that remains."""
    rows, columns = key[0].size, key[1].size
    shape = context.shape(site.key.node)
    assert shape is not None
    # The text of a joint sequence may come after the image, where no offset tells its length.
    numbers = (rows, columns, offset, shape[site.key.tokens])
    if unknown := tuple(n for n in numbers if not isinstance(n, int)):
        what = "grid is dynamic: its sides are"
        if isinstance(rows, int) and isinstance(columns, int):
            what = "text beside the image is dynamic: its length is"
        return SiteGrid(
            kind,
            obstacle=f"the {what} not known when the plan is made",
            refused=True,
            dynamic=unknown,
        )
    assert isinstance(offset, int)
    # Rows and columns are the image's, whichever of them the tokens count first.
    column_major = key[0].role == "W"
    if column_major:
        rows, columns = columns, rows
    result = SiteGrid(kind, rows, columns, offset, column_major=column_major)
    obstacle: str | None = site.refusal
    for operand in (site.key, site.value):
        shape = context.shape(operand.node) or ()
        if obstacle is None and sum(not isinstance(s, int) for s in shape) > 1:
            obstacle = "more than one of its sizes is dynamic"
    if obstacle is None and not grids.unifier.same_range(key, value):
        obstacle = "keys and values do not lie on the same grid"
    if obstacle is None and site.mask is not None and site.mask_axis is not None:
        obstacle = _mask_obstacle(context, site)
    if obstacle is not None:
        return SiteGrid(kind, rows, columns, offset, obstacle, refused=True)
    return result


def _mask_obstacle(context: GraphContext, site: AttentionSite) -> str | None:
    assert site.mask is not None and site.mask_axis is not None
    mask, key = context.shape(site.mask), context.shape(site.key.node)
    if mask is None or key is None or not same(mask[site.mask_axis], key[site.key.tokens]):
        return "the attention mask's key axis does not match the keys"
    if context.dtype(site.mask) is torch.bool:
        return "a boolean mask could lose every key that a query may see"
    return None


def _without_grid(
    context: GraphContext, grids: GridMap, site: AttentionSite, query: Dim, key: Dim
) -> SiteGrid:
    shapes = context.shape(site.query.node), context.shape(site.key.node)
    assert shapes[0] is not None and shapes[1] is not None
    queries, keys = shapes[0][site.query.tokens], shapes[1][site.key.tokens]
    if not grids.unifier.same_range(query, key) and not same(queries, keys):
        return SiteGrid(
            "cross", obstacle=f"cross-attention: its {keys} keys are not the image's tokens"
        )
    if site.refusal is not None:
        return SiteGrid("unknown", obstacle=site.refusal, refused=True)
    return SiteGrid(
        "unknown",
        obstacle=f"the grid of its {keys} tokens cannot be proved from the graph; "
        + _advice(context.token_grids, keys),
        refused=True,
    )


def _advice(token_grids: Mapping[int, Factor], keys: Size) -> str:
    """Why the grids that the caller named do not help, or that some would."""
    if not token_grids:
        return "give the resolution if they are packed image tokens"
    if keys in token_grids:
        return "an input of more tokens was taken for the packed image, or their way was lost"
    known = ", ".join(str(tokens) for tokens in sorted(token_grids, reverse=True)[:4])
    more = ", …" if len(token_grids) > 4 else ""
    return f"none of the grids of res or token_grids ({known}{more} tokens) has as many"


def dynamic_sides(
    context: GraphContext, grids: GridMap, sites: Sequence[AttentionSite]
) -> list[Any]:
    """Symbolic sides of the grids of all sites that only lack numbers."""
    return [side for site in sites for side in classify(context, grids, site).dynamic]


def attention_areas(
    context: GraphContext, grids: GridMap, sites: Sequence[AttentionSite]
) -> frozenset[int]:
    """Tokens of every grid that self-attention runs over: the levels of this graph."""
    return _areas([classify(context, grids, site) for site in sites])


def _areas(found: Sequence[SiteGrid]) -> frozenset[int]:
    return frozenset(g.rows * g.columns for g in found if g.kind in ("self", "joint") and g.rows)


def smallest_factors(rows: int, columns: int, bound: int) -> Factor:
    """Gentlest (row, column) factors that leave at most `bound` tokens.

    Equal factors on a square grid. Elsewhere the pair with the least f_r² + f_c², which is the
    mean squared distance of a token from the one that stands for it up to constants; of equals,
    the pair that shortens the longer side more, then the one that keeps more tokens.
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
    numbers = levels.numbers(_areas(found))
    # A graph that was rewritten before may hide a level whose pooled grid cannot be followed.
    again = any("todo_rule" in node.meta for node in context.graph.nodes)
    if not again:
        check_count(options, levels, len(numbers))
    bound = options.kv_tokens or native_kv_tokens or DEFAULT_KV_TOKENS
    own = _own_factors(context, sites, found, options, again=again)
    seen: Counter[tuple[int, int]] = Counter()
    decisions: list[Decision] = []
    for site, grid in zip(sites, found, strict=True):
        level = numbers.get(grid.rows * grid.columns, 0)
        decision = _decide(context, site, grid, level, options, bound, own.get(site.anchor), levels)
        if grid.obstacle is None:
            seen[grid.rows, grid.columns] += 1
        if decision.pooling is not None and options.sampling == "staggered":
            decision.pooling = _staggered(decision, seen[grid.rows, grid.columns] - 1)
        decisions.append(decision)
    return decisions


def _staggered(decision: Decision, index: int) -> Pooling:
    """The pooling with the phase of the `index`-th site of its grid."""
    assert decision.pooling is not None
    pooling, turned = decision.pooling, decision.grid.column_major
    upright = pooling.transposed() if turned else pooling
    pattern = stagger_pattern(upright.row_factor, upright.column_factor, index + 1)
    upright = replace(upright, row_phase=pattern[index][0], column_phase=pattern[index][1])
    return upright.transposed() if turned else upright


def _own_factors(
    context: GraphContext,
    sites: Sequence[AttentionSite],
    found: Sequence[SiteGrid],
    options: PlanOptions,
    *,
    again: bool,
) -> dict[Node, Factor]:
    """Anchor of a site → the factor that was asked for it alone.

    Raises:
        ConfigError: no site has the name, or the one that has cannot be downsampled.
    """
    own: dict[Node, Factor] = {}
    names = [(site.name, context.module_path(site.anchor)) for site in sites]
    for wanted, factor in options.sites:
        matching = [i for i, pair in enumerate(names) if wanted in pair]
        if not matching:
            known = [n for n in {n for pair in names for n in pair} if n]
            near = difflib.get_close_matches(wanted, known, 1)
            raise ConfigError(
                f"No attention site is called {wanted!r}."
                + (f" Did you mean {near[0]!r}?" if near else ""),
                remedy="`todo-compile plan --json` lists the sites with name and module.",
            )
        for index in matching:
            if (obstacle := found[index].obstacle) and factor != (1, 1) and not again:
                raise ConfigError(
                    f"Site {wanted} cannot be downsampled: {obstacle}.",
                    remedy="Leave it out, or give it factor 1.",
                )
            own[sites[index].anchor] = factor
    return own


def _decide(
    context: GraphContext,
    site: AttentionSite,
    grid: SiteGrid,
    level: int,
    options: PlanOptions,
    bound: int,
    own: Factor | None,
    levels: Levels,
) -> Decision:
    if grid.obstacle is not None:
        action: Action = "refused" if grid.refused else "dense"
        return Decision(site, grid, action, grid.obstacle, level if grid.kind != "cross" else 0)
    tokens = grid.rows * grid.columns
    if own is not None:
        factor, because = own, "factor given for this site"
    elif options.factors is None:
        factor = smallest_factors(grid.rows, grid.columns, bound)
        because = f"{tokens:,} tokens, bound {bound:,}"
    else:
        factor = options.factors[level - 1] if level <= len(options.factors) else (1, 1)
        because = f"factor given for level {level}{levels.scope}"
        if level > len(options.factors):
            because = f"no factor was given for level {level}{levels.scope}"
        if not options.factors:
            because = "factors are off"
    if factor[0] > grid.rows or factor[1] > grid.columns:
        reason = (
            f"factor {factor[1]}x{factor[0]} (width×height) for level {level}{levels.scope} "
            f"exceeds its grid of {grid.columns}×{grid.rows} tokens"
        )
        if not levels.strict:
            return Decision(site, grid, "refused", reason, level)
        raise ConfigError(
            f"{reason[0].upper()}{reason[1:]}.",
            remedy="Take a factor of at most the grid's side; `todo-compile plan` shows the grids.",
        )
    if factor == (1, 1):
        return Decision(site, grid, "dense", because, level)
    rows, columns = factor
    pooling = Pooling(grid.rows, grid.columns, rows, columns, options.sampling, grid.offset)
    if grid.column_major:  # slow and fast side change places, and their factors with them
        pooling = pooling.transposed()
    if site.mask_axis is not None and not pooling.picks_tokens:
        reason = "an attention mask over the keys cannot be averaged"
        return Decision(site, grid, "refused", reason, level)
    mass = grid.kind == "joint" and options.keep_mass
    if mass and (reason := mass_obstacle(context, site)):
        return Decision(site, grid, "refused", reason, level)
    shape = context.shape(site.key.node)
    assert shape is not None
    keys = int(shape[site.key.tokens])  # a number: see `_sized`
    return Decision(site, grid, "rewritten", because, level, pooling, keys, mass)
