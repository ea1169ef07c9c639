"""``torch.compile(module, backend="todo_inductor")``: the same passes on Dynamo's graph.

The graph is edited before Inductor (or another backend) sees it, so that compile caches, which are
keyed by the graph, can never serve a dense result for a rewritten one or the reverse.

Importing this module registers nothing; torch finds `todo_inductor` by its entry point.
"""

from __future__ import annotations

import logging
import threading
import warnings
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from todo_compile._torch import (
    compile_number,
    dynamo_backend,
    inductor,
    marked_dynamic,
    recompile_limit,
    static_inputs,
)
from todo_compile.dynamo.backend_options import BackendOptions
from todo_compile.dynamo.calls import call_of, forget_calls
from todo_compile.dynamo.nested import rewrite_nested
from todo_compile.dynamo.subgraphs import Subgraph, forget
from todo_compile.dynamo.tuned import check_graph
from todo_compile.errors import ConfigError
from todo_compile.passes.dump import new_folder
from todo_compile.passes.pipeline import rewrite_graph
from todo_compile.passes.plan.levels import Levels

if TYPE_CHECKING:
    from torch.fx import GraphModule

    from todo_compile.passes.report import Report

log = logging.getLogger("todo_compile")

KEPT = 256
"""Reports that are kept, the oldest go first: a server that recompiles would collect them for ever.
"""

_reports: deque[Report] = deque(maxlen=KEPT)
_lock = threading.Lock()
_warned = False


def reports() -> tuple[Report, ...]:
    """Reports of the last `KEPT` graphs that were compiled in this process, oldest first."""
    with _lock:
        return tuple(_reports)


def clear_reports() -> None:
    """Forget the reports and the `summary`, and warn again if nothing is rewritten."""
    global _warned  # noqa: PLW0603 - one flag a process, like the list beside it
    with _lock:
        _reports.clear()
        _warned = False
    forget()
    forget_calls()


def todo_inductor(
    gm: GraphModule,
    example_inputs: Sequence[Any],
    *,
    options: Mapping[str, Any] | None = None,
    mode: str | None = None,
) -> Callable[..., Any]:
    """Rewrite Dynamo's graph in place, then compile it.

    Args:
        gm: graph captured by Dynamo.
        example_inputs: its inputs.
        options: `backend_options.OPTIONS`, and Inductor's own.
        mode: as for Inductor (``"reduce-overhead"``, ``"max-autotune"``, …).

    Raises:
        ConfigError: an option is unknown, or this graph cannot follow it.
    """
    chosen = BackendOptions.parse(options, mode)
    # Resolved first: nothing is rewritten for a backend that does not exist.
    inner = None if chosen.inner == "inductor" else _inner(chosen.inner)
    call = call_of(options)
    call.enter(gm)
    part = Subgraph(gm, call, chosen.plan, chosen.levels)

    def lenient(areas: frozenset[int]) -> Levels:
        # Sites of a tuned plan may lie in another graph; what is missing is looked at below.
        return replace(part.count(areas), strict=False)

    report = rewrite_graph(
        gm,
        chosen.plan,
        token_grids=chosen.token_grids,
        patch_grid=chosen.patch_grid,
        dump=new_folder(Path(chosen.dump), "graph") if chosen.dump is not None else None,
        # With nothing to be rewritten Dynamo is left as free as without us.
        specialise=chosen.plan.factors != () or bool(chosen.plan.sites),
        keep_dynamic=marked_dynamic(),
        levels=part.count if chosen.tuned is None else lenient,
        constants=static_inputs(gm, example_inputs),
    )
    levels = part.levels if chosen.tuned is None else replace(part.levels, strict=False)
    nested = rewrite_nested(
        gm, chosen.plan, chosen.token_grids, levels, patch_grid=chosen.patch_grid
    )
    if chosen.tuned is not None:
        check_graph(chosen.tuned, (report, *nested))
    _publish(report, nested)
    split = call.leave((report, *nested))
    for text in (*part.warnings, *([split] if split else ())):
        warnings.warn(text, stacklevel=2)
    _warn_at_limit()
    if inner is not None:
        return inner(gm, list(example_inputs))
    return inductor(gm, example_inputs, chosen.inductor)


def _inner(name: str) -> Callable[..., Any]:
    if name == "todo_inductor":
        raise ConfigError("todo_inductor cannot be its own inner backend.")
    try:
        return dynamo_backend(name)
    except LookupError as error:
        raise ConfigError(
            f"Unknown inner backend {name!r}.",
            remedy="torch.compiler.list_backends(exclude_tags=()) lists what is installed.",
        ) from error


def _publish(report: Report, nested: Sequence[Report]) -> None:
    """Keep the reports, log a line each, and warn once if the setting did nothing."""
    global _warned  # noqa: PLW0603
    every = (report, *nested)
    missed = [r for r in every if any(s.kind != "cross" for s in r.sites)]
    with _lock:
        _reports.extend(every)
        first = not _warned and bool(missed) and not any(r.rewritten for r in every)
        _warned = _warned or first
    for one in every:
        log.info("%s (%.0f ms)", one.summary(), one.seconds * 1e3)
    if first and report.options.get("factors") != []:
        warnings.warn(
            f"todo_inductor rewrote no attention in this graph; nearest miss: "
            f"{missed[0].nearest_miss()}. todo_compile.reports() has every site.",
            stacklevel=3,
        )


def _warn_at_limit() -> None:
    """Torch silently runs eagerly, so densely, what it will not compile any more."""
    number, limit = compile_number(), recompile_limit()
    if number is not None and number >= limit:
        warnings.warn(
            f"This is graph {number} of one function and torch compiles no more than {limit}: at "
            "further sizes it runs eagerly, with dense attention. Raise "
            "torch._dynamo.config.recompile_limit, or compile with fullgraph=True, which makes it "
            "an error.",
            stacklevel=3,
        )
