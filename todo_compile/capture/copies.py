"""Write out what repeated blocks do, where `repeated` left one operator for each of them.

    enter(x), a, b, leave(b), block(b)    →    a, b, a', b'

The graph is made anew, in order, so that its nodes have the names that a plain trace gives them. A
copy reads the weights of its own block and has its own block's path. It shares the fake values of
the first but for those that lie in the memory of what goes in or comes out, or, in a graph that
writes into memory, for all of them.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any

from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind, OutputKind, TensorArgument
from torch.fx import Graph, Node
from torch.fx.node import map_arg

from todo_compile._torch import declares_writing, is_higher_order
from todo_compile.capture.marks import mark_of
from todo_compile.capture.moved import MovedNames, MovedValues
from todo_compile.capture.repeated import Repeated, RepeatedError

_STACK = "nn_module_stack"
_SUFFIX = re.compile(r"_\d+$")


def write_out_blocks(program: ExportedProgram, repeated: Repeated) -> None:
    """Put into `program`, in place, what its operators for blocks stand for.

    Raises:
        RepeatedError: that cannot be known; the program is of no use.
    """
    repeated.check()
    signature = program.graph_signature
    if any(spec.kind is not OutputKind.USER_OUTPUT for spec in signature.output_specs):
        raise RepeatedError("the module writes into its inputs or buffers")
    own = {
        spec.arg.name: str(spec.target)
        for spec in signature.input_specs
        if spec.kind in (InputKind.PARAMETER, InputKind.BUFFER)
    }
    old = _outputs(program.graph)
    program.graph_module.graph = _Copier(program.graph, own, repeated).graph
    names = dict(zip(old, _outputs(program.graph), strict=True))
    for spec in signature.output_specs:
        if isinstance(spec.arg, TensorArgument):
            spec.arg.name = names[spec.arg.name]


def _outputs(graph: Graph) -> list[str]:
    return [node.name for node in graph.output_node().all_input_nodes]


@dataclass
class _Region:
    """What the first block of a kind does, as nodes of the new graph.

    Attributes:
        path: of the block.
        depth: of its path in ``nn_module_stack``.
        given: its tensors.
        start: how many nodes were made before it.
        nodes, results: what it does and returns.
    """

    path: str
    depth: int
    given: list[Node]
    start: int
    nodes: list[Node] = field(default_factory=list[Node])
    results: list[Node] = field(default_factory=list[Node])

    def check_closed(self) -> None:
        """What is inside is read by nothing outside but as a result: another block's is not there.

        A conversion that changes nothing returns the tensor itself: later readers of what went in
        read what it made.
        """
        inside = set(self.nodes)
        for node in inside.difference(self.results):
            if not inside.issuperset(node.users):
                raise RepeatedError(f"{node.name} in {self.path} is read outside")


def _check_names(graph: Graph) -> None:
    """Numbers of names have no gaps: with the nodes that left them nobody knows the names to be."""
    again = Graph()
    for node in graph.nodes:
        if node.op == "placeholder":
            again.placeholder(node.name)
        elif node.op != "output":
            made = again.create_node("call_function", print, name=_SUFFIX.sub("", node.name))
            if made.name != node.name:
                raise RepeatedError(f"there is a gap before {node.name}")


class _Copier:
    """Makes the new graph.

    Args:
        old: with operators for blocks.
        own: name of an input → the parameter or buffer that it is.
        repeated: the blocks.
    """

    def __init__(self, old: Graph, own: Mapping[str, str], repeated: Repeated) -> None:
        marks = Counter(map(mark_of, old.nodes))
        firsts, others = len(repeated.kinds), len(repeated.others)
        if (marks["enter"], marks["leave"], marks["block"]) != (firsts, firsts, others):
            raise RepeatedError("blocks lie in graphs of their own")
        self.graph = Graph()
        self._own = own
        self._is_written = any(declares_writing(node.target) for node in old.nodes)
        self._repeated = repeated
        self._others = iter(repeated.others)
        self._replaced = {path for _, path in repeated.others}
        self._inputs: dict[str, Node] = {}
        self._here: dict[Node, Node] = {}
        self._returned: dict[Any, list[Node]] = {}
        self._made: list[Node] = []
        self._entered: list[_Region] = []
        self._regions: dict[int, _Region] = {}
        _check_names(old)
        for node in old.nodes:
            self._read(node)
        for kind in {kind for kind, _ in repeated.others}:
            self._regions[kind].check_closed()

    def _read(self, node: Node) -> None:
        match mark_of(node):
            case "enter":
                kind, given = self._operands(node)
                path, depth = self._repeated.kinds[kind].path, len(node.meta[_STACK])
                self._entered.append(_Region(path, depth, given, len(self._made)))
            case "leave":
                kind, results = self._operands(node)
                region = self._regions[kind] = self._entered.pop()
                region.nodes, region.results = self._made[region.start :], results
            case "block":
                kind, given = self._operands(node)
                self._returned[node] = self._written(node, self._regions[kind], given)
            case _ if (
                node.args and isinstance(node.args[0], Node) and node.args[0] in self._returned
            ):
                self._here[node] = self._returned[node.args[0]][node.args[1]]  # type: ignore[index]
            case _ if node.op == "placeholder":
                copied = self._here[node] = self.graph.node_copy(node)
                self._inputs[self._own.get(node.name, "")] = copied
            case _:
                self._check_outside(node)
                self._here[node] = self._copied(node, self._here.__getitem__)

    def _operands(self, mark: Node) -> tuple[Any, list[Node]]:
        kind, tensors = mark.args
        return kind, [self._here[node] for node in tensors]  # type: ignore[union-attr, index]

    def _check_outside(self, node: Node) -> None:
        """A part of a block that was not traced is called by nothing else: its path would tell."""
        for path, _ in node.meta.get(_STACK, {}).values():
            above = accumulate(path.split("."), "{}.{}".format)
            if not self._replaced.isdisjoint(above):
                raise RepeatedError(f"{path} is called apart from what it belongs to")

    def _copied(self, node: Node, here: Callable[[Node], Node]) -> Node:
        args, kwargs = map_arg((node.args, dict(node.kwargs)), here)  # type: ignore[misc]
        name = _SUFFIX.sub("", node.name)
        copied = self.graph.create_node(node.op, node.target, args, kwargs, name)  # type: ignore[arg-type]
        copied.meta = dict(node.meta)
        self._made.append(copied)
        return copied

    def _written(self, block: Node, region: _Region, given: list[Node]) -> list[Node]:
        """The nodes of `region` once more, for another block with other tensors."""
        _, path = next(self._others)
        here = dict(zip(region.given, given, strict=True))
        if [here[node] for node in region.given] != given or len(set(given)) != len(here):
            raise RepeatedError(f"{path} is given the same tensor twice, {region.path} is not")
        values = MovedValues(own_memory=self._is_written)
        for first, other in here.items():
            values.add(first.meta["val"], other.meta["val"])
        for first, value in zip(region.results, block.meta["val"], strict=True):
            values.add(first.meta["val"], value)
        moved = MovedNames(region.path, path)
        names = {node: name for name, node in self._inputs.items()}

        def there(node: Node) -> Node:
            if (found := here.get(node)) is None:
                target = moved.name(names.get(node, ""))
                if (found := self._inputs.get(target)) is None:
                    raise RepeatedError(f"{region.path} reads {node.name}, which is not its own")
                here[node] = found
                values.add(node.meta["val"], found.meta["val"])
            return found

        for node in region.nodes:
            if node.op != "call_function" or is_higher_order(node.target):
                raise RepeatedError(f"{region.path} has a graph of its own")
            if declares_writing(node.target):
                raise RepeatedError(f"{region.path} writes into memory")
            copied = here[node] = self._copied(node, there)
            copied.meta["val"] = values.moved(node.meta.get("val"))
            copied.meta[_STACK] = block.meta[_STACK] | moved.stack(node.meta[_STACK], region.depth)
        return [here[node] for node in region.results]
