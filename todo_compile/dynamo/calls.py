"""What Dynamo made of each call of `torch.compile`: how many graphs, and where it broke off.

    forward ─ graph ─ (nonzero: runs eagerly) ─ graph ─ …

A backend is shown graphs only. What Dynamo cannot trace lies between two of them, or in a whole
function that it gives up (a break inside a loop); attention in there is dense and no report can
mention it. What a backend can know is where that was, and this file keeps it.
"""

from __future__ import annotations

import inspect
import threading
import time
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from todo_compile._torch import GivenUp, compile_frame, compile_number, given_up, graph_break

if TYPE_CHECKING:
    from torch.fx import GraphModule

    from todo_compile.passes.report import Report

MOST = 64
"""Calls of `torch.compile`, and places of a call, that are kept: a server compiles again and
again. The oldest go first."""

ADVICE = (
    "What stands there runs eagerly: attention in it is dense and in no report. Give "
    "torch.compile fullgraph=True: it makes one graph, or an error of the first such place."
)


@dataclass(frozen=True, slots=True)
class Break:
    """A place that Dynamo cannot trace.

    Args:
        file, line: where; "" and 0 if Dynamo does not say.
        reason: the first line of what it says.
    """

    file: str
    line: int
    reason: str

    def __str__(self) -> str:
        place = f"{self.file}:{self.line}" if self.file else "a place that Dynamo does not name"
        return f"{place} ({self.reason})"


@dataclass(slots=True)
class Call:
    """One call of `torch.compile` (those without options count as one).

    Args:
        options: as given; kept, so that no other object gets its id.
        in_parts: its graphs are parts of a model: of several functions, or broken off.
        areas: tokens of the levels of ``res`` on which it had self-attention.
        graphs: that were compiled, those for further sizes too.
        functions: that they were of; the rest of one after a graph break is one of its own.
        sites: by action, over all graphs.
        breaks: where graphs ended early → how many did.
    """

    options: object
    in_parts: bool = False
    areas: set[int] = field(default_factory=set[int])
    graphs: int = 0
    functions: int = 0
    sites: dict[str, int] = field(default_factory=dict[str, int])
    breaks: OrderedDict[Break, int] = field(default_factory=OrderedDict[Break, int])
    _first: int | None = None
    _warned: bool = False

    def enter(self, module: GraphModule) -> None:
        """Another graph is about to be rewritten."""
        frame = compile_frame()
        if self.graphs == 0:
            self._first = frame
        self.graphs += 1
        self.functions += compile_number() in (None, 1)
        found = graph_break(module)
        if found is not None:
            _count(self.breaks, Break(*found))
        self.in_parts |= found is not None or frame != self._first

    def leave(self, reports: Iterable[Report]) -> str | None:
        """It was rewritten; what to warn of, once a call, if Dynamo splits this one."""
        for report in reports:
            for action, count in report.counts.items():
                self.sites[action] = self.sites.get(action, 0) + count
        place = next(reversed(self.breaks), None) or _given_up_around_us()
        if place is None or self._warned:
            return None
        self._warned = True
        return (
            "Dynamo splits this module: it cannot trace "
            f"{place}. {ADVICE} todo_compile.summary() has all graphs and places."
        )

    def lines(self, name: str) -> list[str]:
        """What became of it, for people."""
        several = "s" if self.functions != 1 else ""
        graphs = f"{self.graphs} graph{'s' if self.graphs != 1 else ''}"
        counts = ", ".join(f"{self.sites.get(a, 0)} {a}" for a in ("rewritten", "dense", "refused"))
        broken = "; broken off at" if self.breaks else ""
        return [
            f"{name}: {graphs} of {self.functions} function{several}; "
            f"attention sites: {counts}{broken}",
            *(f"    {place}, {count}×" for place, count in self.breaks.items()),
        ]


_calls: OrderedDict[int, Call] = OrderedDict()
_lock = threading.Lock()
_since = 0.0


def call_of(options: object) -> Call:
    """The call of `torch.compile` that `options` were given to."""
    with _lock:
        call = _calls.setdefault(id(options), Call(options))
        _calls.move_to_end(id(options))
        while len(_calls) > MOST:
            _calls.popitem(last=False)
        return call


def forget_calls() -> None:
    """Forget all calls, and what Dynamo gave up until now."""
    global _since  # noqa: PLW0603 - one moment a process
    with _lock:
        _calls.clear()
        _since = time.time()


def summary() -> str:
    """What Dynamo made of every call of `torch.compile` with this backend, in lines for people.

    Graphs and attention sites of each call (graphs for further sizes count again), the places where
    Dynamo broke off, and the functions that it gave up as a whole: those of the whole process,
    whatever backend they were for, as far as torch remembers them (64 compilations). What runs
    eagerly there is dense and in no report.
    """
    with _lock:
        calls = list(_calls.values())
    lines: list[str] = []
    for number, call in enumerate(calls, 1):
        lines += call.lines(f"call {number}")
    lost = _lost()
    if lost:
        lines.append("given up by Dynamo, in this process:")
        lines += [f"    {_name(one)}, because of {_place(one)}" for one in lost]
    if lost or any(call.breaks for call in calls):
        lines.append(ADVICE)
    return "\n".join(lines) or "No graph was compiled with todo_inductor."


def _lost() -> list[GivenUp]:
    """Functions that Dynamo gave up since the last `forget_calls`, each once."""
    return list(dict.fromkeys(one for one in given_up(_since)))


def _given_up_around_us() -> Break | None:
    """Why a function that called the one being compiled runs eagerly, if Dynamo gave it up."""
    lost = {(one.file, one.first_line): one for one in _lost()}
    frame = inspect.currentframe() if lost else None
    while frame is not None:
        found = lost.get((frame.f_code.co_filename, frame.f_code.co_firstlineno))
        if found is not None:
            return _place(found)
        frame = frame.f_back
    return None


def _place(one: GivenUp) -> Break:
    return Break(one.at_file, one.at_line, one.reason)


def _name(one: GivenUp) -> str:
    return f"{one.function} ({one.file}:{one.first_line})"


def _count(places: OrderedDict[Break, int], place: Break) -> None:
    places[place] = places.pop(place, 0) + 1
    while len(places) > MOST:
        places.popitem(last=False)
