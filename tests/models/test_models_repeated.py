"""Tracing repeated blocks once gives the graph that tracing all of them gives."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import pytest
import torch
from same_graph import lines
from torch import Tensor, nn

from todo_compile._torch import storage_of
from todo_compile.capture.alike import Alikeness
from todo_compile.capture.trace import capture, capture_quickly


# Modules of one's own -----------------------------------------------------------------------------
def library(kind: type) -> type:
    """As if a library had the class: only of those it is known where they keep what they do."""
    kind.__module__ = "diffusers.of_a_test"
    return kind


@library
class Processor:
    def __init__(self) -> None:
        self.count, self.counts = 0, False

    def __call__(self, x: Tensor) -> Tensor:
        self.count += self.counts
        return x * (1 + self.count)


@library
class Block(nn.Module):
    """Six modules, a constant, an object."""

    traced: ClassVar[int] = 0

    def __init__(self, scale: float = 1.0) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(4, 4) for _ in range(4)])
        self.scale, self.processor, self.act = scale, Processor(), nn.SiLU()
        self.change: Callable[..., Any] | None = None

    def forward(self, x: Tensor, y: Tensor | None = None, **given: Any) -> Any:
        Block.traced += 1
        inputs = x
        for layer in self.layers:
            x = self.act(layer(x)) * self.scale
        x = self.processor(self.act(x))
        if y is not None:
            x = x + y.flip(0)
        return x if self.change is None else self.change(x, inputs, **given)


class Net(nn.Module):
    def __init__(self, call: Callable[..., Any] | None = None) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([Block() for _ in range(3)])
        self.call = call
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        if self.call is not None:
            return self.call(self.blocks, x)
        for block in self.blocks:
            x = block(x)
        return x


X = torch.ones(2, 4)


def traced(make: Callable[[], nn.Module]) -> int:
    """How often a block is traced, with the same graph as where all are; 0 if that is not had."""
    plain = lines(capture(make(), (X,)))
    Block.traced = 0
    module = make()
    program = capture_quickly(module, (X,))
    assert not any("forward" in vars(part) for part in module.modules())
    if program is None:
        return 0
    assert lines(program) == plain
    program.validate()
    return Block.traced


def made(change: Callable[[list[Block]], object]) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        net = Net()
        change(list(net.blocks))  # type: ignore[arg-type]
        return net

    return make


def called(call: Callable[[Any, Tensor], Any]) -> Callable[[], nn.Module]:
    return lambda: Net(call)


def all_change(change: Callable[..., Any]) -> Callable[[list[Block]], object]:
    return lambda blocks: [setattr(block, "change", change) for block in blocks]


# Alike --------------------------------------------------------------------------------------------
def test_one_of_three_is_traced() -> None:
    assert traced(Net) == 1


def test_blocks_in_blocks() -> None:
    @library
    class Outer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.blocks = nn.ModuleList([Block(), Block(), Block()])

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            for block in self.blocks:
                x = block(x)
            return x, x + 1

    class Whole(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.outers = nn.ModuleList([Outer(), Outer()])

        def forward(self, x: Tensor) -> Tensor:
            for outer in self.outers:
                x, _ = outer(x)
            return x

    assert traced(lambda: Whole().eval()) == 1


def test_calls_that_differ_are_kinds_of_their_own() -> None:
    """By shape, by a constant, by an optional input."""

    def shapes(blocks: Any, x: Tensor) -> Tensor:
        return blocks[2](blocks[1](torch.cat([blocks[0](x)] * 2)))

    def constants(blocks: Any, x: Tensor) -> Tensor:
        for block, add in zip(blocks, (1, 2, 1), strict=True):
            block.change = _added
            x = block(x, add=add)
        return x

    def inputs(blocks: Any, x: Tensor) -> Tensor:
        return blocks[2](blocks[1](blocks[0](x), x), x + 1)

    assert [traced(called(call)) for call in (shapes, constants, inputs)] == [2, 2, 2]


def _added(x: Tensor, _: Tensor, add: int) -> Tensor:
    return x + add


def test_memory_of_results_and_inputs() -> None:
    """What lies in the memory of another node does so in every copy; sizes are of the call's."""

    def turned(x: Tensor, inputs: Tensor) -> tuple[Tensor, Tensor]:
        both = torch.cat([x.mT, inputs.mT, inputs.contiguous().mT])
        return both[:4].mT, both[4:].positive()

    def call(blocks: Any, x: Tensor) -> Tensor:
        for block in blocks:
            block.change = turned
            x, other = block(x.mT.contiguous().mT)
            x = x.contiguous().positive() + other.mT[:, :4]
        return x

    assert traced(called(call)) == 1


def test_writing_between_blocks() -> None:
    """Then no two blocks' nodes share memory, which a reader of the graph would take for one."""

    def call(blocks: Any, x: Tensor) -> Tensor:
        first = blocks[0](x)
        first[:, 1:].mul_(2)
        second = blocks[1](first)
        rows = torch.zeros(2, 4)
        rows.copy_(second)
        return blocks[2](rows) + first

    assert traced(called(call)) == 1
    program = capture_quickly(Net(call), (X,))
    assert program is not None
    places: dict[Any, set[str]] = {}
    for node in program.graph.nodes:
        inside = [path for path, _ in node.meta.get("nn_module_stack", {}).values() if "." in path]
        if inside and isinstance(node.meta["val"], Tensor):
            places.setdefault(storage_of(node.meta["val"]), set()).add(inside[0])
    assert [len(blocks) for blocks in places.values()] == [1] * len(places)
    assert len(set().union(*places.values())) == 3


def test_one_tensor_twice_is_not_two() -> None:
    def twice(blocks: Any, x: Tensor) -> Tensor:
        return blocks[2](blocks[1](x, x), blocks[0](x, x))

    assert traced(called(twice)) == 2


def test_every_block_gives_a_result() -> None:
    """In the signature results go by the names that they have in the end."""

    def results(blocks: Any, x: Tensor) -> tuple[Tensor, ...]:
        first = blocks[0](x)
        second = blocks[1](first)
        return second, first, blocks[2](second), first + second

    assert traced(called(results)) == 1


def test_results_that_nobody_reads() -> None:
    def last_half(blocks: Any, x: Tensor) -> Tensor:
        for block in blocks:
            block.change = _halves
            _, x = block(x)
            x = torch.cat([x, x], -1)
        return x

    assert traced(called(last_half)) == 1


def _halves(x: Tensor, _: Tensor) -> tuple[Tensor, Tensor]:
    return x[..., :2], x[..., 2:] + 0


# Not alike ----------------------------------------------------------------------------------------
class Unknown:
    """Of a class that may keep what it does anywhere."""


@pytest.mark.parametrize(
    "change",
    [
        lambda b: setattr(b[1], "scale", 2.0),
        lambda b: setattr(b[1], "scale", 1),  # equal, but of another type
        lambda b: setattr(b[1].processor, "count", 1),
        lambda b: b[1].register_forward_hook(lambda *_: None),
        lambda b: b[1].layers[0].register_forward_pre_hook(lambda *_: None),
        lambda b: setattr(b[1], "new", Unknown()),
        lambda b: setattr(b[1], "new", torch.ones(1)),
        lambda b: b[1].layers[2].register_buffer("new", torch.ones(1)),
        lambda b: setattr(b[1].layers[1], "weight", nn.Parameter(torch.ones(4, 4).mT)),
        lambda b: b[1].layers[3].requires_grad_(False),
        lambda b: b[1].train(),
    ],
)
def test_a_block_that_differs_is_traced(change: Callable[[list[Block]], object]) -> None:
    assert traced(made(change)) == 2


def test_shared_parts_are_like_no_others() -> None:
    def tie(blocks: list[Block]) -> None:
        blocks[1].layers[0].weight = blocks[0].layers[0].weight

    def lend(blocks: list[Block]) -> None:
        blocks[1].act = blocks[0].act

    assert [traced(made(change)) for change in (tie, lend)] == [3, 3]


def test_a_forward_of_the_instance_is_kept() -> None:
    net = Net()
    block: Any = net.blocks[1]
    own = block.forward = lambda x: x + 1
    numbers = Alikeness(net).numbers(net)
    assert numbers[block] is None
    assert numbers[net.blocks[0]] == numbers[net.blocks[2]] is not None
    program = capture_quickly(net, (X,))
    assert program is not None
    assert block.forward is own
    assert lines(program) == lines(capture(net, (X,)))


# Alike, but not certain to do the same ------------------------------------------------------------
def test_blocks_that_change() -> None:
    def count(blocks: list[Block]) -> None:
        for block in blocks:
            block.processor.counts = True

    def in_place(x: Tensor, _: Tensor) -> Tensor:
        return x.add_(1)

    def constant(x: Tensor, _: Tensor) -> Tensor:
        return x * torch.tensor(2.0)

    changes = (count, all_change(in_place), all_change(constant))
    assert [traced(made(change)) for change in changes] == [0, 0, 0]


def test_results_that_are_inputs_are_not_replaced() -> None:
    def handed_on(x: Tensor, inputs: Tensor) -> tuple[Tensor, Tensor]:
        return x, inputs

    def call(blocks: Any, x: Tensor) -> Tensor:
        for block in blocks:
            block.change = handed_on
            x, _ = block(x)
        return x

    assert traced(called(call)) == 3


def test_inputs_that_a_call_changes() -> None:
    def noted(x: Tensor, _: Tensor, notes: list[int]) -> Tensor:
        notes[0] += 1
        return x * notes[0]

    def call(blocks: Any, x: Tensor) -> Tensor:
        notes = [0]
        for block in blocks:
            block.change = noted
            x = block(x, notes=notes)
        return x

    assert traced(called(call)) == 3


def test_calls_that_cannot_be_told_apart_by_their_paths() -> None:
    def again(blocks: Any, x: Tensor) -> Tensor:
        return blocks[0](blocks[1](blocks[0](x)))

    def part(blocks: Any, x: Tensor) -> Tensor:
        return blocks[1].layers[0](blocks[1](blocks[0](x)))

    assert [traced(called(call)) for call in (again, part)] == [0, 0]


def test_what_is_read_from_outside() -> None:
    """The second block reads the first one's conversion, which changed nothing: the third, its."""

    def converted(x: Tensor, _: Tensor, given: Tensor) -> Tensor:
        return x + given.to(torch.float32)

    def call(blocks: Any, x: Tensor) -> Tensor:
        other = x + 1
        for block in blocks:
            block.change = converted
            x = block(x, given=other)
        return x

    assert traced(called(call)) == 0


def test_blocks_in_a_graph_in_the_graph() -> None:
    def call(blocks: Any, x: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return blocks[1](blocks[0](x))

    assert traced(called(call)) == 0
