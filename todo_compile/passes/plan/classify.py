"""What dataflow proves of a site: its kind of attention, and the grid of its keys.

Self-attention has queries and keys of one grid; joint attention has text in front of, or after, the
image's tokens in both, or several images in a row; cross-attention has keys that are not the
queries' image. What cannot be proved is refused: the number of tokens alone says nothing of the
grid's sides.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from todo_compile.passes.find.attention import AttentionSite
from todo_compile.passes.graph import GraphContext
from todo_compile.passes.grid.axes import (
    Dim,
    Size,
    dim_size,
    frames_of,
    grid_of,
    image_segments,
    same,
)
from todo_compile.passes.grid.grids import GridMap
from todo_compile.passes.plan.masks import MaskProof, mask_obstacle, prove_mask

log = logging.getLogger("todo_compile")

TEXT_UNKNOWN = "the text beside the image is dynamic: its length is"
"""How the reason begins why joint attention with a text of any length stays as it is."""

Kind = Literal["self", "cross", "joint", "unknown"]


@dataclass(frozen=True, slots=True)
class SiteGrid:
    """What dataflow proves of a site's keys.

    Args:
        kind: self-attention, cross-attention, joint attention over text and image, or unknown.
        rows, columns: sides of the key tokens' grid (H, W); 0 where there is none.
        frames: how many such grids follow each other: a video's, 1 of a picture.
        offset: tokens before the image's in a joint sequence.
        beside: further images among the keys of a joint sequence, each on a grid of its own.
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
    mask: MaskProof | None = None
    """Why its mask may be pooled; None without a mask that has a key axis."""
    evidence: str = ""
    """What says that it is a grid, where neither the graph alone nor the caller does."""
    frames: int = 1
    beside: tuple[SiteGrid, ...] = ()

    @property
    def images(self) -> tuple[SiteGrid, ...]:
        """Every image among the keys by itself."""
        return (replace(self, beside=()), *self.beside)

    @property
    def tokens(self) -> int:
        """Keys that are an image's, of all images."""
        own = self.frames * self.rows * self.columns
        return own + sum(image.tokens for image in self.beside)


def classify(context: GraphContext, grids: GridMap, site: AttentionSite) -> SiteGrid:
    """Kind and grid of a site, from dataflow alone; a failure of ours costs this site only."""
    try:
        return _classify(context, grids, site)
    except Exception as error:
        log.debug("what %s attends to was not found out", site.name, exc_info=error)
        return SiteGrid(
            "unknown",
            obstacle=f"the proof of its grid failed here (internal error {type(error).__name__}: "
            f"{error}): please report it, with the output of --dump",
            refused=True,
        )


def _classify(context: GraphContext, grids: GridMap, site: AttentionSite) -> SiteGrid:
    query = grids.dim(site.query.node, site.query.tokens)
    key = grids.dim(site.key.node, site.key.tokens)
    value = grids.dim(site.value.node, site.value.tokens)
    if query is None or key is None or value is None:
        return SiteGrid(
            "unknown", obstacle="the shapes of its operands are not known", refused=True
        )
    key_grid, query_grid = grid_of(key), grid_of(query)
    if key_grid is not None:
        found = _self_or_other(grids, site, query, key, query_grid is not None)
        if found is not None:
            return found
        return _sized("self", context, grids, site, key, value, 0)
    if images := image_segments(key):
        return _joint(context, grids, site, images, query, value)
    return _without_grid(context, grids, site, query, key)


def _joint(
    context: GraphContext,
    grids: GridMap,
    site: AttentionSite,
    images: Sequence[tuple[Size, Dim]],
    query: Dim,
    value: Dim,
) -> SiteGrid:
    """Keys with images among others: those of the queries, which are pooled one by one."""
    inside = [segment for _, segment in image_segments(query)]
    alone = grid_of(query) is not None
    own = [
        (alone and _all_of(grids, site, query, image))
        or any(grids.unifier.same_range(segment, image) for segment in inside)
        for _, image in images
    ]
    if len(images) > 1 and not (inside and all(own)):
        why = "its keys join the tokens of several images, and its queries are not all of these"
        return SiteGrid("unknown", obstacle=why, refused=True)
    if not any(own):
        return SiteGrid("cross", obstacle="cross-attention: the keys are another image's tokens")
    others = image_segments(value)
    if len(others) != len(images) or not all(
        same(one[0], other[0]) for one, other in zip(images, others, strict=True)
    ):
        return SiteGrid(
            "joint", obstacle="keys and values order text and image differently", refused=True
        )
    sized = [
        _sized("joint", context, grids, site, image, other, offset)
        for (offset, image), (_, other) in zip(images, others, strict=True)
    ]
    first = next((one for one in sized if one.obstacle is not None), None)
    if first is not None:
        return first
    proofs = {one.mask for one in sized}
    mask = None if None in proofs else next((p for p in proofs if p != "uniform"), sized[0].mask)
    return replace(sized[0], beside=tuple(sized[1:]), mask=mask)


def _self_or_other(
    grids: GridMap, site: AttentionSite, query: Dim, key: Dim, query_is_grid: bool
) -> SiteGrid | None:
    """None for self-attention over the whole grid, else what it is instead."""
    if _all_of(grids, site, query, key):
        return None
    if _coarsened(grids, query, key):
        rows, columns = (atom.size if isinstance(atom.size, int) else 0 for atom in query[-2:])
        return SiteGrid("self", rows, columns, obstacle="its keys are downsampled already")
    what = "lie on another grid than the queries" if query_is_grid else "alone are image tokens"
    return SiteGrid("cross", obstacle=f"cross-attention: the keys {what}")


def _all_of(grids: GridMap, site: AttentionSite, query: Dim, image: Dim) -> bool:
    """Whether queries are the image's tokens: once, or once for every head, head after head.

    [heads][H][W] [channels of a head]    for keys [H][W]: the same picture
    [f][H][W]     [channels]              for keys [H][W]: those of one frame, another picture
    """
    if not image or not grids.unifier.same_range(query[-len(image) :], image):
        return False
    ahead, channels = query[: -len(image)], grids.dim(site.query.node, site.query.channels)
    if not ahead:
        return True
    outer, inner = ahead[0].split_of, channels[0].split_of if channels else None
    halves = outer is not None and inner is not None and outer == (inner[0], 0) and inner[1] == 1
    return len(ahead) == 1 and halves


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
    rows, columns, frames = key[-2].size, key[-1].size, frames_of(key)
    shape = context.shape(site.key.node)
    assert shape is not None
    # The text of a joint sequence may come after the image, where no offset tells its length.
    numbers = (rows, columns, frames, offset, shape[site.key.tokens])
    if unknown := tuple(n for n in numbers if not isinstance(n, int)):
        what = "the grid is dynamic: its sides are"
        if isinstance(rows, int) and isinstance(columns, int) and not isinstance(frames, int):
            what = "the number of frames is dynamic: it is"
        elif isinstance(rows, int) and isinstance(columns, int):
            what = TEXT_UNKNOWN
        why = "not known when the plan is made"
        symbols = {s for n in unknown for s in getattr(n, "free_symbols", ())}
        if symbols & context.keep_dynamic:
            why = "marked so by mark_dynamic, where maybe_mark_dynamic would allow a plan a size"
        return SiteGrid(
            kind,
            obstacle=f"{what} {why}",
            refused=True,
            dynamic=unknown,
        )
    assert isinstance(offset, int)
    assert isinstance(frames, int)
    # Rows and columns are the image's, whichever of them the tokens count first.
    column_major = key[-2].role == "W"
    if column_major:
        rows, columns = columns, rows
    evidence = grids.evidence(key)
    result = SiteGrid(
        kind, rows, columns, offset, column_major=column_major, evidence=evidence, frames=frames
    )
    obstacle: str | None = site.refusal
    for operand in (site.key, site.value):
        shape = context.shape(operand.node) or ()
        if obstacle is None and sum(not isinstance(s, int) for s in shape) > 1:
            obstacle = "more than one of its sizes is dynamic"
    if obstacle is None and not grids.unifier.same_range(key, value):
        obstacle = "keys and values do not lie on the same grid"
    if obstacle is None and site.mask is not None and site.mask_axis is not None:
        obstacle = mask_obstacle(context, site)
        result = replace(result, mask=prove_mask(context, site, offset, result.tokens))
    if obstacle is not None:
        return replace(result, obstacle=obstacle, refused=True)
    return result


def _without_grid(
    context: GraphContext, grids: GridMap, site: AttentionSite, query: Dim, key: Dim
) -> SiteGrid:
    shapes = context.shape(site.query.node), context.shape(site.key.node)
    assert shapes[0] is not None and shapes[1] is not None
    queries, keys = shapes[0][site.query.tokens], shapes[1][site.key.tokens]
    if not grids.unifier.same_range(query, key) and not same(queries, keys):
        return _other_keys(grids, query, key, queries, keys)
    if isinstance(keys, int) and keys == 1:
        return SiteGrid("unknown", obstacle="one key token: nothing to downsample")
    if site.refusal is not None:
        return SiteGrid("unknown", obstacle=site.refusal, refused=True)
    return SiteGrid(
        "unknown",
        obstacle=f"the grid of its {keys} tokens cannot be proved from the graph; "
        + _missing(context, grids, site, key),
        refused=True,
    )


def _missing(context: GraphContext, grids: GridMap, site: AttentionSite, key: Dim) -> str:
    """What the keys are as far as dataflow tells, and what would prove their grid if they are one.

    Nobody is sent into a guess: a grid is asked for only where tokens come in packed.
    """
    axes = grids.axes[site.key.node]
    beside = {a.role for i, dim in enumerate(axes) if i != site.key.tokens for a in dim}
    if {"H", "W"} <= beside:
        return "rows and columns are on another axis, so these are frames, or points in time"
    packed = _packed_inputs(context, grids, key)
    if not packed:
        return "nothing tells that they are the rows and columns of a picture (as a kernel would)"
    names = ", ".join(packed)
    if any(tokens in context.token_grids for tokens in packed.values()):
        return (
            f"token_grids has as many as {names}, but a larger picture goes in too, or another "
            "input of as many tokens"
        )
    if context.token_grids:
        known = ", ".join(str(tokens) for tokens in sorted(context.token_grids, reverse=True)[:4])
        more = ", …" if len(context.token_grids) > 4 else ""
        return (
            f"{names} came in packed, and token_grids names none of as many ({known}{more}); of "
            "several pictures in a row, as with a reference, it takes a list of their grids"
        )
    numbers = [size for size in packed.values() if isinstance(size, int)]
    count = max(numbers, default=next(iter(packed.values())))  # text is shorter, as a rule
    total, known = dim_size(key), sum(numbers)
    if isinstance(total, int) and known < total and len(numbers) == len(packed):
        return (
            f"{names} came in packed ({known} of them), and nothing tells that the other "
            f"{total - known} are the rows and columns of a picture (as a kernel, or patches cut "
            f"of one, would); only if the image came in packed, name its grid: "
            f"token_grids={{{count}: (rows, columns)}}"
        )
    why, res = "", "give res for a whole denoiser, "
    if context.patch_grid is not None:
        why, res = "res counts for a whole denoiser's patches alone; ", ""
    return (
        f"{names} came in packed: {why}only if these are an image's tokens, name their grid: "
        f"token_grids={{{count}: (rows, columns)}}, {res}or let accelerate() compile the pipeline"
    )


def _packed_inputs(context: GraphContext, grids: GridMap, key: Dim) -> dict[str, Size]:
    """Inputs (B, N, C) whose tokens are among the keys, with their number."""
    find = grids.unifier.find
    parts = [atom for dim in (key, *(s for a in key for s in a.segments)) for atom in dim]
    wanted = {find(atom.ident) for atom in parts}
    found: dict[str, Size] = {}
    for node in context.graph.nodes:
        axes = grids.axes.get(node, ()) if node.op == "placeholder" else ()
        if len(axes) == 3 and len(axes[1]) == 1 and find(axes[1][0].ident) in wanted:
            found[node.name] = axes[1][0].size
    return found


def _other_keys(grids: GridMap, query: Dim, key: Dim, queries: Size, keys: Size) -> SiteGrid:
    """Keys of no known grid that are not the queries' tokens one by one."""
    segments = key[0].segments if len(key) == 1 else ()
    if any(grids.unifier.same_range(query, segment) for segment in segments):
        return SiteGrid(
            "joint",
            obstacle=f"its {keys} keys are its {queries} queries' tokens beside others, and their "
            "grid cannot be proved from the graph; token_grids names it, if they are an image's",
            refused=True,
        )
    counted = f"{keys} keys" if isinstance(keys, int) else "keys"
    return SiteGrid(
        "cross",
        obstacle=f"cross-attention: its {counted} are not the tokens of its {queries} queries",
    )


def dynamic_sides(
    context: GraphContext, grids: GridMap, sites: Sequence[AttentionSite]
) -> list[Any]:
    """Symbolic sides of the grids of all sites that only lack numbers."""
    return [side for site in sites for side in classify(context, grids, site).dynamic]


def attention_areas(
    context: GraphContext, grids: GridMap, sites: Sequence[AttentionSite]
) -> frozenset[int]:
    """Tokens of every grid that self-attention runs over: the levels of this graph."""
    return grid_areas([classify(context, grids, site) for site in sites])


def grid_areas(found: Sequence[SiteGrid]) -> frozenset[int]:
    return frozenset(g.tokens for g in found if g.kind in ("self", "joint") and g.rows)
