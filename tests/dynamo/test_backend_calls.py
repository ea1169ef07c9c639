"""What Dynamo made of a call of `torch.compile`, and that nothing kept of it grows without end."""

from __future__ import annotations

import inspect
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from backend_helpers import two_levels
from graphs import ImageAttention, capture, image, unet_inputs
from torch import nn

import todo_compile
from todo_compile.dynamo import backend, calls, subgraphs
from todo_compile.dynamo.backend import KEPT, todo_inductor
from todo_compile.errors import ConfigError

OPTIONS = {"factors": 2, "inner": "eager"}
SPLIT = "Dynamo splits this module"


class Twice(nn.Module):
    """Attention, whatever `between` is, attention."""

    def __init__(self, between: Any) -> None:
        super().__init__()
        self.first, self.second = ImageAttention(), ImageAttention()
        self.between = between

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        a = self.first(x)
        self.between(a)
        return self.second(x) + a


def data_dependent(x: torch.Tensor) -> None:
    x.nonzero()


@torch.compiler.disable
def untraced(_: torch.Tensor) -> None:
    """Where Dynamo breaks the graph."""


class Loop(nn.Module):
    """A break inside a loop: Dynamo gives up this forward and compiles what it calls."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([Block(), Block()])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            x = x + block(x).sum()
            untraced(x)
        return x


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = ImageAttention()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.inner(x)


def line_of(function: Any, text: str) -> str:
    lines, start = inspect.getsourcelines(function)
    return f"{__file__}:{next(start + i for i, line in enumerate(lines) if text in line)}"


def compiled(model: nn.Module, **more: Any) -> Any:
    return torch.compile(model, backend="todo_inductor", options=dict(OPTIONS), **more)


@torch.no_grad()
def test_a_break_is_told_once_with_its_place_and_the_advice() -> None:
    run = compiled(Twice(data_dependent), dynamic=False)
    place = line_of(data_dependent, "nonzero")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        run(image(4, 6))
        run(image(6, 6))
    said = [str(w.message) for w in caught if SPLIT in str(w.message)]
    assert len(said) == 1
    assert place in said[0]
    assert "runs eagerly" in said[0]
    assert "fullgraph=True" in said[0]
    lines = todo_compile.summary().splitlines()
    assert lines[0] == (
        "call 1: 4 graphs of 2 functions; attention sites: 4 rewritten, 0 dense, 0 refused; "
        "broken off at"
    )
    assert lines[1].startswith(f"    {place} (")
    assert lines[1].endswith("), 2×"), "once for each size"
    assert lines[-1] == calls.ADVICE


@torch.no_grad()
def test_a_function_that_dynamo_gives_up_is_told() -> None:
    run = compiled(Loop())
    with pytest.warns(UserWarning, match=SPLIT) as caught:
        run(image(4, 6))
    place = line_of(Loop.forward, "untraced")
    assert [place in str(w.message) for w in caught if SPLIT in str(w.message)] == [True]
    text = todo_compile.summary()
    _, start = inspect.getsourcelines(Loop.forward)
    assert f"    forward ({__file__}:{start}), because of {place} (" in text
    assert text.splitlines()[-1] == calls.ADVICE
    todo_compile.clear_reports()
    assert todo_compile.summary() == "No graph was compiled with todo_inductor."


@torch.no_grad()
def test_whole_graphs_are_no_split() -> None:
    """Nor are blocks that the caller compiles one by one, nor further sizes."""
    model = two_levels()
    model.unet.compile_repeated_blocks(
        backend="todo_inductor", fullgraph=True, options={**OPTIONS, "res": "64"}
    )
    other = compiled(ImageAttention(), dynamic=False)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model(*unet_inputs(8, 8))
        other(image(4, 6))
        other(image(6, 6))
    assert [w for w in caught if SPLIT in str(w.message)] == []
    lines = todo_compile.summary().splitlines()
    assert len(lines) == 2
    assert lines[1] == (
        "call 2: 2 graphs of 1 function; attention sites: 2 rewritten, 0 dense, 0 refused"
    )


@torch.no_grad()
def test_fullgraph_makes_it_an_error_or_one_graph_as_advised() -> None:
    with pytest.raises(Exception, match="untraced"):
        compiled(Loop(), fullgraph=True)(image(4, 6))
    todo_compile.clear_reports()
    compiled(Twice(data_dependent), fullgraph=True)(image(4, 6))  # torch traces it then
    assert todo_compile.summary() == (
        "call 1: 1 graph of 1 function; attention sites: 2 rewritten, 0 dense, 0 refused"
    )


def test_what_a_long_run_keeps_is_bounded() -> None:
    x = image(2, 2)
    captured = capture(nn.Conv2d(3, 8, 1), (x,), "dynamo")
    for number in range(KEPT + 5):
        options = {"factors": 2, "inner": "eager", "kv_tokens": None, "res": 64 + 8 * number}
        todo_inductor(captured.module, [x], options=options)
    assert len(todo_compile.reports()) == KEPT
    assert len(todo_compile.summary().splitlines()) == calls.MOST
    assert len(calls._calls) == calls.MOST  # pyright: ignore[reportPrivateUsage]
    assert len(subgraphs._compiled) == subgraphs._MOST  # pyright: ignore[reportPrivateUsage]


def test_places_of_a_call_are_bounded() -> None:
    call = calls.Call(None)
    for number in range(calls.MOST + 5):
        calls._count(call.breaks, calls.Break("x.py", number, "why"))  # pyright: ignore[reportPrivateUsage]
        calls._count(call.breaks, calls.Break("x.py", number, "why"))  # pyright: ignore[reportPrivateUsage]
    assert len(call.breaks) == calls.MOST
    assert set(call.breaks.values()) == {2}


@torch.no_grad()
def test_reports_that_are_dropped_are_the_oldest(monkeypatch: pytest.MonkeyPatch) -> None:
    from collections import deque

    monkeypatch.setattr(backend, "_reports", deque(maxlen=2))
    run = compiled(ImageAttention(), dynamic=False)
    for side in (2, 4, 6):
        run(image(side, side))
    assert [r.sites[0].grid for r in todo_compile.reports()] == [(4, 4), (6, 6)]


@torch.no_grad()
def test_dumps_are_never_written_over(tmp_path: Path) -> None:
    options = {**OPTIONS, "dump": str(tmp_path / "all")}
    run = torch.compile(ImageAttention(), backend="todo_inductor", dynamic=False, options=options)
    run(image(4, 4))
    run(image(6, 6))
    first = sorted(p.name for p in (tmp_path / "all").iterdir())
    assert first == ["graph000", "graph001"]
    before = {p: p.read_text() for p in (tmp_path / "all").rglob("*.txt")}
    todo_compile.clear_reports()
    run(image(2, 4))
    assert {p: p.read_text() for p in before} == before
    (added,) = {p.name for p in (tmp_path / "all").iterdir()} - set(first)
    assert added == "graph002"
    assert (tmp_path / "all" / added / "00-captured.txt").exists()


def test_a_dump_that_cannot_be_made_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    x = image(2, 2)
    captured = capture(nn.Conv2d(3, 8, 1), (x,), "dynamo")
    with pytest.raises(ConfigError, match=r"dump folder .* cannot be made"):
        todo_inductor(captured.module, [x], options={**OPTIONS, "dump": tmp_path / "file"})
