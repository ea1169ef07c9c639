"""Autocast inside graphs: what runs in a region of it runs so when the passes run it too.

_enter_autocast(cpu, bfloat16) … _exit_autocast            Dynamo: nodes around a region
wrap_with_autocast(cpu, bfloat16, True, False, body, …)    export: a graph of its own
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch.fx import Graph, Node

from todo_compile.passes import ops


@contextmanager
def autocast_regions() -> Generator[Callable[[Node], bool]]:
    """Enter and leave autocast where a graph does; the function says whether a node was that."""
    open_regions: dict[Node, torch.autocast] = {}

    def step(node: Node) -> bool:
        name = ops.op(node)
        if name == "_enter_autocast":
            region = _region(node)
            region.__enter__()
            open_regions[node] = region
        elif name == "_exit_autocast":
            left = open_regions.pop(node.all_input_nodes[0], None)
            if left is not None:
                left.__exit__(None, None, None)
        else:
            return False
        return True

    try:
        yield step
    finally:
        for region in reversed(open_regions.values()):
            region.__exit__(None, None, None)


@contextmanager
def inside_call(graph: Graph, call: Node) -> Generator[None]:
    """The autocast regions of `graph` that a graph which `call` calls runs in."""
    regions: dict[Node, Node] = {}
    for node in graph.nodes:
        name = ops.op(node)
        if name == "_enter_autocast":
            regions[node] = node
        elif name == "_exit_autocast":
            regions.pop(node.all_input_nodes[0], None)
        if node is call:
            break
    with ExitStack() as stack:
        for node in regions:
            stack.enter_context(_region(node))
        if getattr(call.target, "__name__", "") == "wrap_with_autocast":
            stack.enter_context(_region(call))
        yield


def _region(node: Node) -> torch.autocast:
    given: Any = (*node.args, None, True, None)[:4]
    device, dtype, enabled, cache = given
    return torch.autocast(
        device_type=str(device), dtype=dtype, enabled=bool(enabled), cache_enabled=cache
    )
