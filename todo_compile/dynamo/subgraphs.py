"""What part of a model the graphs are that Dynamo gives, and so what its levels are.

    compile_repeated_blocks      → [64×64]  [32×32]  …      one graph a block
    a graph break at 32×32       → [64×64, 32×32]  [32×32]  [32×32, 64×64]

Factors go by level, and a graph that sees the second level only would take it for the first. With
``res`` or ``token_grids`` the sizes of all levels are known; level 1 is then the largest of them
on which a graph compiled under the same options had self-attention. (Which one that is depends on
the model: SDXL has none at full latent resolution. Models go down before they go up, so it comes
first; should a larger one come later, a warning says so.) Without them, or at a size that is not
theirs, levels are counted in each graph alone, and a warning says so where the graph is a part.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from todo_compile.dynamo.calls import Call
from todo_compile.passes import ops
from todo_compile.passes.grid import spatial as rules
from todo_compile.passes.plan.levels import Levels

if TYPE_CHECKING:
    from torch.fx import GraphModule

    from todo_compile.options import PlanOptions


@dataclass(slots=True)
class _Compiled:
    """What was compiled under options of one content: areas of self-attention, and how often."""

    areas: set[int] = field(default_factory=set[int])
    graphs: int = 0


_MOST = 64
"""Contents of options that are kept, the oldest go first: a server may compile with ever new ones.
"""

_compiled: OrderedDict[str, _Compiled] = OrderedDict()
_warned: set[str] = set()
_lock = threading.Lock()


def forget() -> None:
    """Forget every graph, and warn again."""
    with _lock:
        _compiled.clear()
        _warned.clear()


class Subgraph:
    """One graph among those compiled under the same options.

    Args:
        module: Dynamo's graph, not yet rewritten.
        call: of `torch.compile`, which this graph was entered into.
        plan: what they say about factors.
        family: areas of the grids of ``res`` and ``token_grids``; empty without them.
    """

    def __init__(
        self,
        module: GraphModule,
        call: Call,
        plan: PlanOptions,
        family: frozenset[int],
    ) -> None:
        given: Any = call.options
        self._call = call
        key = repr(sorted((given or {}).items(), key=lambda item: str(item[0])))
        with _lock:
            self._all = _compiled.setdefault(key, _Compiled())
            _compiled.move_to_end(key)
            while len(_compiled) > _MOST:
                _compiled.popitem(last=False)
        self._factors = len(plan.factors or ())
        self._family = family
        self._part = call.in_parts
        # A block by itself, the first of several, resizes no picture; nor does FLUX as a whole.
        self._block = not any(ops.op(node) in rules.RULES for node in module.graph.nodes)
        self.levels = Levels(strict=False)
        self.warnings: list[str] = []

    def count(self, areas: frozenset[int]) -> Levels:
        """The levels of this graph, whose self-attention runs over grids of `areas` tokens."""
        if not areas:
            return self.levels
        with _lock:
            known, before = self._all, frozenset(self._all.areas)
            # Only the first call may fail: later ones are in the middle of somebody's run.
            strict = known.graphs == 0 and not self._part and not self._block
            known.graphs += 1
            if areas <= self._family:
                known.areas |= areas
                self._call.areas |= areas
                self.levels = self._in_family(areas, before, strict)
            else:
                self.levels = self._alone(areas, strict)
        return self.levels

    def _in_family(self, areas: frozenset[int], before: frozenset[int], strict: bool) -> Levels:
        top = max(areas | before)
        if self._factors and before and max(areas) > max(before):
            self._warn(
                "late",
                f"Factors go by level, and self-attention over {max(areas):,} tokens was met only "
                f"after graphs in which {max(before):,} tokens counted as level 1. Compile the "
                "part with the largest grid first, or use kv_tokens, which knows no levels.",
            )
        ours, own = (
            Levels(frozenset(known)).numbers(areas) for known in (before, self._call.areas)
        )
        if self._factors and any(ours[area] != own[area] for area in areas):
            self._warn(
                "shared",
                f"Levels are counted over all calls of torch.compile with equal options: {top:,} "
                "tokens, met in another of them, count as level 1. If that was another model, call "
                "todo_compile.clear_reports() before compiling this one, or use kv_tokens, which "
                "knows no levels.",
            )
        scope = f" (level 1: {top:,} tokens)" if top > max(areas) else ""
        return Levels(before | areas, strict, scope)

    def _alone(self, areas: frozenset[int], strict: bool) -> Levels:
        surplus = self._factors - len(areas)
        if self._factors and self._part:
            self._warn(
                "part",
                "Factors go by level, and levels are counted in each graph alone: this one, a part "
                f"of a model (graph break, or a block by itself), has {len(areas)} for "
                f"{self._factors} factor{'s' if self._factors > 1 else ''}. Give the "
                'resolution (options={"res": "1024"}), so that levels are those of the model.',
            )
        elif surplus > 0 and not strict:
            self._warn(
                "surplus",
                f"{self._factors} factors were given, but self-attention has {len(areas)} levels "
                "in this graph: the others are not used.",
            )
        return Levels(areas, strict, " of this graph" if self._part else "")

    def _warn(self, kind: str, text: str) -> None:
        if kind not in _warned:  # once a process, as long as nobody calls `forget`
            _warned.add(kind)
            self.warnings.append(text)
