"""Which tensors share memory and which operations write into it, as torch itself says.

    t ─┬─ to_k ────────────── k        k is made before the writing, v after it:
       ├─ movedim ─ add_(3)            two poolings of t are not one
       └─ to_v ────────────── v

Fake tensors have storages and version counters as real ones do: a view shares its input's storage,
and a write raises the counter that all views share. Capturing leaves both in the graph's fake
values. So a graph in which no counter was raised, and in which nothing writes by its schema or by
torch's convention for names (``add_``, ``out=``), writes nothing, and nothing more is asked.
Otherwise the graph is run once on fresh fake tensors, up to the last operation that may write, and
every operation is watched: its counters, and the schemas of what it calls. What cannot be told (an
operation that does not run on fake tensors, a graph in the graph) counts as writing into all its
operands and as sharing memory with them.

Under fake tensors an operation that is made of others may be decomposed into a copy where the real
one hands on its operand (dropout in eval mode). So the result of such an operation, or of a
torch-level function, also counts as sharing memory with every operand of the same geometry.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Generator, Iterable
from contextlib import nullcontext
from typing import Any

import torch
from torch.fx import Graph, GraphModule, Node
from torch.fx.node import map_arg

from todo_compile._torch import (
    Writes,
    declares_aliases,
    declares_writing,
    fake_mode_of,
    is_higher_order,
    storage_of,
    symbolic_rules,
    version_of,
)
from todo_compile.passes.autocast import autocast_regions
from todo_compile.passes.grid.axes import plain_size

log = logging.getLogger("todo_compile")


class Memory:
    """Memory facts of one graph, as it was when this was made.

    Args:
        module: the graph.
        value: fake value of a node, or None.
        operand: the same, where a tensor that is an attribute has one too.
    """

    def __init__(
        self, module: GraphModule, value: Callable[[Node], Any], operand: Callable[[Node], Any]
    ) -> None:
        self._position = {node: i for i, node in enumerate(module.graph.nodes)}
        self._parent: dict[int, int] = {}
        self._storages: dict[Node, frozenset[int]] = {}
        self._writes: list[tuple[Node, frozenset[int]]] = []
        if (last := last_writer(module, value)) is not None:
            with torch.inference_mode(False), torch.no_grad():
                _watch(module, operand, self._record, last)

    def position(self, node: Node) -> int:
        """Place of a node in the order of execution."""
        return self._position[node]

    def writer(self, nodes: Iterable[Node], after: int, before: int) -> Node | None:
        """First operation between two positions that writes into the memory of any of `nodes`."""
        if not self._writes:
            return None
        mine = {self._find(s) for node in nodes for s in self._storages.get(node, ())}
        for writer, storages in self._writes:
            inside = after < self._position[writer] < before
            if inside and not mine.isdisjoint(map(self._find, storages)):
                return writer
        return None

    def is_written(self, node: Node) -> bool:
        """Whether anything writes into the memory of `node`, at any time."""
        return self.writer([node], -1, len(self._position)) is not None

    def writes(self, node: Node) -> bool:
        """Whether `node` writes into any memory."""
        return any(writer is node for writer, _ in self._writes)

    def written_by(self, node: Node) -> list[Node]:
        """Nodes before `node` whose memory it writes into."""
        found: list[Node] = []
        for writer, storages in self._writes:
            if writer is node:
                theirs = set(map(self._find, storages))
                found += [
                    other
                    for other, own in self._storages.items()
                    if self._position[other] < self._position[node]
                    and not theirs.isdisjoint(map(self._find, own))
                ]
        return found

    def _record(
        self, node: Node, results: set[int], shared: list[set[int]], written: set[int]
    ) -> None:
        self._storages[node] = frozenset(results)
        for group in shared:
            first, *others = group
            for other in others:
                self._parent[self._find(other)] = self._find(first)
        if written:
            self._writes.append((node, frozenset(written)))

    def _find(self, storage: int) -> int:
        while (parent := self._parent.get(storage, storage)) != storage:
            storage = parent
        return storage


def last_writer(module: GraphModule, value: Callable[[Node], Any]) -> Node | None:
    """The last node that may write into memory: what shares memory after it matters to nobody."""
    calls = (node for node in reversed(module.graph.nodes) if node.op.startswith("call_"))
    return next((node for node in calls if _may_write(module, node, value)), None)


def _may_write(module: GraphModule, node: Node, value: Callable[[Node], Any]) -> bool:
    """Whether a node may write into memory, as far as can be seen without running it."""
    if declares_writing(node.target) or _named_so(node):
        return True
    bodies = [body for operand in node.all_input_nodes for body in _bodies(module, operand)]
    if is_higher_order(node.target) and not bodies:
        return True  # it calls no graph that could be looked into, so it may do anything
    if any(last_writer(body, value) is not None for body in bodies):
        return True
    # Whoever raised a counter had the memory among its operands.
    operands = (tensor for operand in node.all_input_nodes for tensor in _tensors(value(operand)))
    return any(version_of(tensor) != 0 for tensor in operands)


def _named_so(node: Node) -> bool:
    """Whether a function or method writes by torch's convention for names."""
    if node.op not in ("call_function", "call_method"):
        return False
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
    in_place = name.endswith("_") and not name.endswith("__")
    return in_place or node.kwargs.get("out") is not None


def _bodies(module: GraphModule, node: Node) -> list[GraphModule]:
    if node.op != "get_attr":
        return []
    found: Any = module
    for part in str(node.target).split("."):
        found = getattr(found, part, None)
    return [found] if isinstance(found, GraphModule) else []


_Record = Callable[[Node, set[int], list[set[int]], set[int]], None]


def _watch(module: GraphModule, value: Callable[[Node], Any], record: _Record, last: Node) -> None:
    """Run the graph on fresh fake tensors up to `last`; record every node's storages and writes."""
    graph: Graph = module.graph
    values: dict[Node, Any] = {}
    kept: list[Any] = []  # a freed storage's number would be given to another
    mode = next(
        (m for n in graph.nodes for t in _tensors(value(n)) if (m := fake_mode_of(t))), None
    )
    # Without their rules for symbols some operations would fix a dynamic size for good.
    with mode or nullcontext(), symbolic_rules(), autocast_regions() as run_region:
        for node in graph.nodes:
            given = value(node)
            if node.op == "output" or run_region(node):
                continue
            if not node.op.startswith("call_"):
                values[node] = _fresh(given) if node.op == "placeholder" else given
                record(node, _ids(values[node]), _joined(values[node], given), set())
                continue
            operands = [t for n in node.all_input_nodes for t in _tensors(values.get(n))]
            before = [version_of(t) for t in operands]
            places = [_ids(t) for t in operands]
            kept += [t.detach() for t in operands]  # ``set_`` lets go of the memory of `t` itself
            with Writes() as writes:
                result, told = _run(node, values, given, bool(operands))
            after = [version_of(t) for t in operands]
            kept += [result, operands]
            values[node] = result
            mine = _ids(result)
            theirs = _ids(operands).union(*places)
            moved = [(t, old) for t, old in zip(operands, places, strict=True) if _ids(t) != old]
            shared = _joined(result, given) + [_ids(t) | old for t, old in moved]
            if not told:
                shared.append(mine | theirs)
            elif not declares_aliases(node.target):
                shared += [
                    _ids([one, other])
                    for one in _tensors(result)
                    for other in operands
                    if theirs.isdisjoint(_ids(one)) and _geometry(one) == _geometry(other)
                ]
            changed = [t for t, a, b in zip(operands, before, after, strict=True) if a != b]
            written = _ids(changed).union(*(old for _, old in moved)) | (writes.storages & theirs)
            record(node, mine, [s for s in shared if s], written if told else theirs)
            if node is last:
                break


def _run(node: Node, values: dict[Node, Any], given: Any, has_tensors: bool) -> tuple[Any, bool]:
    """Result of a node on the values so far, and whether it could be told what it does."""
    if not has_tensors and next(_tensors(given), None) is None:
        return given, True
    if is_higher_order(node.target):
        return given, False
    loaded: Any = map_arg((node.args, dict(node.kwargs)), values.get)
    args, kwargs = loaded
    try:
        if node.op == "call_method":
            return getattr(args[0], str(node.target))(*args[1:], **kwargs), True
        target: Any = node.target
        return target(*args, **kwargs), True
    except Exception as error:  # noqa: BLE001 - whatever it was, nothing is known of the operation
        log.debug("%s does not run on fake tensors: %s", node.name, error)
        return given, False


def _fresh(value: Any) -> Any:
    """An input like `value` in memory of its own."""
    if not isinstance(value, torch.Tensor):
        return value
    return torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device=value.device)


def _tensors(value: Any) -> Generator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _tensors(item)


def _ids(value: Any) -> set[int]:
    """Storages of the tensors in `value`; one number for all that have none."""
    return {-1 if (s := storage_of(t)) is None else s for t in _tensors(value)}


def _joined(result: Any, captured: Any) -> list[set[int]]:
    """Storages that a tensor has now and had when it was captured: the same memory."""
    pairs = zip(_tensors(result), _tensors(captured), strict=False)
    return [_ids([one, other]) for one, other in pairs]


def _geometry(tensor: torch.Tensor) -> Any:
    sizes = (tuple(map(plain_size, numbers)) for numbers in (tensor.shape, tensor.stride()))
    return tensor.dtype, tensor.device, *sizes
