"""What makes no sense together: the later choice gives way, or becomes plain."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from soundness_parts.attend import SPELLINGS
from soundness_parts.case import SIDES, Case, grid_of, side_lengths
from soundness_parts.keys import FUSED
from soundness_parts.masks import MASKS
from soundness_parts.sources import ORDERS, SOURCES


def repair(case: Case) -> Case:
    """`case` with what does not fit replaced; a repaired case stays as it is."""
    before = None
    while case != before:  # what a late step changes may concern an early one
        before = case
        for step in (_sizes, _sides, _blocks, _masks, _spellings, _projections, _writes, _rest):
            case = replace(case, **step(case))
    return case


def _sizes(case: Case) -> dict[str, Any]:
    changes: dict[str, Any] = {}
    if case.spelling == "sdpa_per_head" and case.sampling == "staggered":
        changes["sampling"] = "nearest"  # every head is a site with a phase of its own
    if case.order == "turned_view" and case.size[0] == case.size[1]:
        case = replace(case, order="column")  # which it is on a square
        changes["order"] = "column"
    rows, columns = case.size
    if case.source == "video" and case.order != "row":
        case = replace(case, order="row")
        changes["order"] = "row"
    if case.order == "interleaved" and rows * columns % 2:
        case = replace(case, order="dealt")
        changes["order"] = "dealt"
    if case.source in ("convolved", "tabled") and min(rows, columns) < 2:
        changes["size"] = (4, 6)
    if case.source == "video" and case.placed:
        changes["placed"] = False
    if case.source == "padded" and columns < 2:
        changes["size"] = (4, 6)
    spatial = SOURCES[case.source].sides == (-2, -1) and len(SOURCES[case.source].shape(4, 6)) > 2
    if case.picture != "none" and not spatial:
        changes["picture"] = "none"
    if case.order in ("batch_shuffled", "batch_flipped") and case.batch == 1:
        changes["batch"] = 2
    grid = grid_of(replace(case, **changes))
    factors = min(case.factors[0], grid[0]), min(case.factors[1], grid[1])
    if factors != case.factors:
        changes["factors"] = factors
    return changes


def _sides(case: Case) -> dict[str, Any]:
    changes: dict[str, Any] = {}
    side = SIDES[case.side]
    if case.side in ("two_pictures", "other_picture", "twice", "none") and case.join != "tokens":
        changes["join"] = "tokens"
    if case.side == "zero_key" and case.join != "heads":
        changes["join"] = "heads"
    if side.instead and case.join != "tokens":
        changes["join"] = "tokens"
    return changes


def _blocks(case: Case) -> dict[str, Any]:
    changes: dict[str, Any] = {}
    if case.blocks in ("pictures", "crossed") and case.side in ("two_pictures", "other_picture"):
        changes["blocks"] = "one"  # another picture is there already
    elif case.blocks == "crossed" and case.side != "none":
        changes["blocks"] = "parallel"
    if case.blocks != "one" and case.nesting == "cond":
        changes["nesting"] = "none"  # a branch has its own sites
    if case.blocks == "sequence" and case.masks == "pool":
        changes["blocks"] = "parallel"  # a row without a key spoils all rows of what follows
    if not case.keep_mass and side_lengths(case) == (0, 0):
        changes["keep_mass"] = True
    if case.sides:
        return changes | _dynamic_sides(case)
    return changes


def _dynamic_sides(case: Case) -> dict[str, Any]:
    """What does not depend on how large the picture is."""
    plain = Case()
    wanted: dict[str, Any] = {
        name: getattr(plain, name)
        for name in (
            "order",
            "dynamic",
            "mask",
            "nesting",
            "write",
            "uses",
            "detour",
            "source",
            "placed",
        )
    }
    if case.source in ("patch", "channels_last", "valid_conv", "pooled"):
        del wanted["source"]
    if min(case.size) < 2:
        wanted["size"] = (4, 6)
        wanted["factors"] = (2, 2)
    if "table" in case.key_map or "rotated" in case.key_map:
        wanted["key_map"] = "none"
    if "table" in case.value_map or "rotated" in case.value_map:
        wanted["value_map"] = "none"
    return {name: value for name, value in wanted.items() if getattr(case, name) != value}


def _masks(case: Case) -> dict[str, Any]:
    mask, side = MASKS[case.mask], SIDES[case.side]
    if mask.text and (not side.text or side.instead):
        return {"mask": "none"}
    if case.mask != "none" and not side.allowed:
        return {"mask": "none"}
    if case.masks == "pool" and mask.safe:
        return {"masks": "prove"}
    return {}


def _spellings(case: Case) -> dict[str, Any]:
    changes: dict[str, Any] = {}
    spelling = SPELLINGS[case.spelling]
    if case.mask != "none" and not spelling.masks:
        changes["spelling"] = "sdpa"
        spelling = SPELLINGS["sdpa"]
    if case.spelling == "graphs.sdpa_scaled" and changes:
        changes["spelling"] = "product"
    if spelling.causal and SIDES[case.side].instead:
        changes["spelling"] = "sdpa"
    plain = changes.get("spelling", case.spelling)
    if plain == "sdpa_gqa" and case.repeat not in ("none", "broadcast"):
        changes["repeat"] = "none"
    if case.repeat == "broadcast" and plain not in ("sdpa_gqa", "product", "bias_first", "doubled"):
        changes["repeat"] = "interleave"
    repeat = changes.get("repeat", case.repeat)
    if repeat != "none" and case.heads == 1:
        changes["heads"] = 2
    if repeat == "broadcast" and case.heads != 2 and plain != "sdpa_gqa":
        changes["heads"] = 2
    if plain == "talking" and case.heads == 1:
        changes["heads"] = 2
    return changes


def _projections(case: Case) -> dict[str, Any]:
    changes: dict[str, Any] = {}
    fewer = case.repeat != "none"
    fused = case.projection in FUSED
    side = SIDES[case.side]
    one_sequence = (side.joint and case.join == "tokens") or case.side == "none"
    if (fused or case.projection == "identity") and fewer:
        changes["projection"] = "linear"
    if fused and not one_sequence:
        changes["projection"] = "linear"
    return changes


def _writes(case: Case) -> dict[str, Any]:
    plain = {"alias": "none", "early": False, "part": "whole", "target": "tokens"}
    if case.write == "none":
        wanted: dict[str, Any] = {**plain, "moment": "between"}
        return {n: v for n, v in wanted.items() if getattr(case, n) != v}
    changes: dict[str, Any] = {}
    if case.alias == "bits" and case.dtype not in ("bfloat16", "float16"):
        changes["alias"] = "none"
    if case.target == "value" and case.moment in ("before", "between"):
        changes["moment"] = "after"
    if case.target == "query" and case.moment == "before":
        changes["moment"] = "after"
    if case.target == "key" and case.moment == "before":
        changes["moment"] = "between"
    if case.projection in FUSED and changes.get("moment", case.moment) == "between":
        changes["moment"] = "after"
    if case.early and case.target != "tokens":
        changes["early"] = False
    if case.moment == "scores":
        changes["moment"] = "after"
    return changes


def _rest(case: Case) -> dict[str, Any]:
    changes: dict[str, Any] = {}
    if case.dynamic and case.batch < 2:
        changes["batch"] = 2
    static = (
        SOURCES[case.source].frames > 1
        or case.order in ("windows", "batch_shuffled", "one_hot", "embedding")
        or case.detour in ("stacked", "stacked_tokens")
        or case.side in ("two_pictures", "other_picture")
    )
    if case.dynamic and static:
        changes["dynamic"] = False
    if case.nesting != "none" and (changes.get("dynamic", case.dynamic) or case.write != "none"):
        changes["nesting"] = "none"
    if case.nesting == "autocast" and case.dtype != "float32":
        changes["dtype"] = "float32"
    if case.dtype in ("float16", "bfloat16") and case.key_map.startswith(("half", "as_int")):
        changes["key_map"] = "none"
    if case.nesting == "cond" and case.uses in ("tokens", "keys"):
        changes["uses"] = "none"  # a branch must not return what it was given
    if ORDERS[case.order].grid is not ORDERS["row"].grid and case.text == 0:
        changes["text"] = 1
    return changes
