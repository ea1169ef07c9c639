"""What is asked for single sites: from the names that reports and plan files use to the sites.

A site is called by its node in the graph, or by its module's path. A module that attends several
times has one path for all: ``path#2`` is its second attention, in the graph's order. A path may
lack what comes before it: ``mid_block.….attn1`` is found in a graph of the UNet alone and in one of
a wrapper around it (``unet.mid_block.….attn1``).
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence

from torch.fx import Node

from todo_compile.errors import ConfigError
from todo_compile.options import PlanOptions, SiteChoice
from todo_compile.passes.find.attention import AttentionSite
from todo_compile.passes.graph import GraphContext
from todo_compile.passes.plan.classify import SiteGrid


def numbered(paths: Sequence[str]) -> list[str]:
    """Module paths of sites in the graph's order, each as the one name that it alone has."""
    seen: dict[str, int] = {}
    found: list[str] = []
    for path in paths:
        seen[path] = seen.get(path, 0) + 1
        found.append(f"{path}#{seen[path]}" if paths.count(path) > 1 else path)
    return found


def single_sites(
    context: GraphContext,
    sites: Sequence[AttentionSite],
    grids: Sequence[SiteGrid],
    options: PlanOptions,
    *,
    again: bool,
    strict: bool,
) -> dict[Node, SiteChoice]:
    """Anchor of a site → what was asked for it alone.

    Args:
        again: the graph was rewritten before; what hides a grid is then no mistake of the caller.
        strict: the graph is the whole model, so that a name without a site is a mistake.

    Raises:
        ConfigError: no site has the name, or the one that has cannot be downsampled.
    """
    nodes = [site.name for site in sites]
    paths = [context.module_path(site.anchor) for site in sites]
    found: dict[Node, SiteChoice] = {}
    for wanted, choice in options.sites:
        matching = _matching(wanted, nodes, paths)
        if not matching and strict:
            raise _unknown(wanted, [*nodes, *paths])
        for index in matching:
            if (obstacle := grids[index].obstacle) and choice[:2] != (1, 1) and not again:
                raise ConfigError(
                    f"Site {wanted} cannot be downsampled: {obstacle}.",
                    remedy="Leave it out, or give it factor 1.",
                )
            found[sites[index].anchor] = choice
    return found


def _matching(wanted: str, nodes: Sequence[str], paths: Sequence[str]) -> list[int]:
    """Indexes of the sites called `wanted`: exactly so, else by the end of their paths."""
    if exact := [i for i, pair in enumerate(zip(nodes, paths, strict=True)) if wanted in pair]:
        return exact
    path, _, count = wanted.partition("#")
    if not path or (count and not re.fullmatch(r"[1-9]\d{0,5}", count)):
        return []
    same = [i for i, p in enumerate(paths) if p == path]
    same = same or [i for i, p in enumerate(paths) if p.endswith(f".{path}")]
    return same[int(count) - 1 : int(count)] if count else same


def _unknown(wanted: str, known: Sequence[str]) -> ConfigError:
    near = difflib.get_close_matches(wanted, sorted({n for n in known if n}), 1)
    return ConfigError(
        f"No attention site is called {wanted!r}."
        + (f" Did you mean {near[0]!r}?" if near else ""),
        remedy="`todo-compile plan --json` lists the sites with name and module.",
    )
