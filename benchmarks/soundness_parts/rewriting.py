"""The passes on a case's graph, as a compiler's front end would call them."""

from __future__ import annotations

from soundness_parts.capturing import Captured
from soundness_parts.case import SIDES, Case, another_picture
from soundness_parts.sources import SOURCES
from todo_compile.dynamo.nested import rewrite_nested
from todo_compile.options import PlanOptions, TokenGrid
from todo_compile.passes.pipeline import rewrite_graph
from todo_compile.passes.plan.levels import Levels
from todo_compile.passes.report import SiteReport


def rewrite(captured: Captured, options: PlanOptions, case: Case) -> list[SiteReport]:
    """Rewrite a graph in place; the rows of its attentions, those of nested graphs too.

    The grid of packed tokens is named where the case says so, and so are an input's axes. A site
    whose grid is smaller than the factors is refused: what the passes take for a grid is for the
    judge to judge.
    """
    module = captured.module
    named = SOURCES[case.source].named
    rows, columns = case.size
    grids: dict[int, TokenGrid] = {rows * columns: (rows, columns)} if named else {}
    found: list[Levels] = []

    def levels(areas: frozenset[int]) -> Levels:
        found.append(Levels(areas, strict=False))
        return found[-1]

    axes = SOURCES[case.source].axes
    pictures = ["image"]
    if another_picture(case):  # the caller names it too, or it would count as what is no picture
        pictures.append(f"others_{int(SIDES[case.side].text)}")
    report = rewrite_graph(
        module,
        options,
        token_grids=grids or None,
        image_axes=dict.fromkeys(pictures, axes) if axes else None,
        levels=levels,
        constants=captured.constants,
    )
    sites = list(report.sites)
    if case.nesting != "none":
        for nested in rewrite_nested(module, options, grids, found[-1]):
            sites += nested.sites
    return sites
