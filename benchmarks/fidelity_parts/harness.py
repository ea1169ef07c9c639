"""Draw the pictures of every setting, once: kept on disk, resumed, and bounded in time.

All settings of a batch of pairs are drawn before the next batch begins, so that whenever time is up
every setting has the same pairs. The dense pictures of a batch are shared by all settings.
"""

from __future__ import annotations

import copy
import hashlib
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.fx import GraphModule
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from fidelity_parts import peers
from fidelity_parts.model import Denoise, Model, Pair, Wrapped
from fidelity_parts.settings import Setting
from todo_compile.capture.trace import capture
from todo_compile.drift.replay import lifted_tensors
from todo_compile.options import PlanOptions
from todo_compile.passes.pipeline import rewrite_graph
from todo_compile.passes.report import Report

DENSE = Setting("dense")


@dataclass(slots=True)
class Drawn:
    """Pictures of one setting at one size.

    Args:
        pictures: pair key → (H, W, 3) fp16 in [0, 1].
        seconds: of every call of the denoiser: the processor's (all threads), on CUDA the clock's.
        flops: of a step of one picture with guidance.
        attention_flops: of all attentions of it; None for peers and controls.
    """

    pictures: dict[str, Any] = field(default_factory=dict[str, Any])
    seconds: list[float] = field(default_factory=list[float])
    flops: int | None = None
    attention_flops: int | None = None


class Captured:
    """The UNet's graph at one size, captured once and rewritten as often as there are settings."""

    def __init__(self, model: Model, example: tuple[torch.Tensor, ...]) -> None:
        self._program = capture(Wrapped(model.unet).eval(), example)
        self._tensors = list(lifted_tensors(self._program).values())

    def rewrite(self, options: PlanOptions) -> tuple[Denoise, Report]:
        """The compiler's rewrite of a copy of the graph; tensors are shared."""
        held = self._program.graph_module
        module = GraphModule(held, copy.deepcopy(held.graph))
        report = rewrite_graph(module, options)

        def call(*inputs: torch.Tensor) -> torch.Tensor:
            return module(*self._tensors, *inputs)[0]

        return call, report


class Harness:
    """Draws pictures for settings.

    Args:
        model: under test.
        cache: folder for pictures; safe to delete.
        steps, guidance: of the sampler.
        batch: pairs at once; the denoiser runs twice as many.
        deadline: `time.monotonic()` after which no new batch is begun.
        say: told of progress.
    """

    def __init__(
        self,
        model: Model,
        cache: Path,
        *,
        steps: int,
        guidance: float,
        batch: int,
        deadline: float,
        say: Callable[[str], None],
    ) -> None:
        self.model, self.cache = model, cache
        self.steps, self.guidance, self.batch = steps, guidance, batch
        self.deadline, self.say = deadline, say
        self._modules: dict[tuple[str, int, int], Denoise] = {}
        self._captured: dict[tuple[int, int], Captured] = {}
        self._flops: dict[tuple[str, int], tuple[int, int]] = {}
        self._spent: dict[int, list[float]] = {}
        self._pending: dict[int, int] = {}
        self.failures: dict[str, str] = {}
        cache.mkdir(parents=True, exist_ok=True)

    def draw(
        self, settings: Sequence[Setting], sides: Sequence[int], pairs: Sequence[Pair]
    ) -> dict[tuple[int, str], Drawn]:
        """(side, setting's name) → pictures. Pairs that time did not allow are absent for all."""
        drawn = {(side, s.name): Drawn() for side in sides for s in (DENSE, *settings)}
        batches = [pairs[i : i + self.batch] for i in range(0, len(pairs), self.batch)]
        everything = [(side, s) for side in sides for s in (DENSE, *settings)]
        for side, setting in everything:
            missing = sum(not self._complete(setting, side, b) for b in batches)
            self._pending[side] = self._pending.get(side, 0) + missing
        self.say(f"{len(batches)} batches of {self.batch} × {len(everything)} settings and sizes; "
                 f"{sum(self._pending.values())} to draw")  # fmt: skip
        for number, batch in enumerate(batches):
            if time.monotonic() > self.deadline and number:
                self.say(f"time is up after {number * self.batch} pairs")
                break
            for side, setting in everything:
                self._one(setting, side, batch, drawn[side, setting.name])
        for name in self.failures:
            for side in sides:
                drawn.pop((side, name), None)
        return drawn

    def _one(self, setting: Setting, side: int, batch: Sequence[Pair], into: Drawn) -> None:
        if setting.sampling == "other seed" or setting.name in self.failures:
            return  # read off the dense pictures
        paths = [self._path(setting, side, pair) for pair in batch]
        if not self._complete(setting, side, batch):
            start = time.monotonic()
            try:
                pictures, seconds = self._sample(setting, side, batch)
            except ImportError as error:
                self.failures[setting.name] = f"{error}"
                self.say(f"{setting.name}: left out, {error}")
                return
            for path, picture in zip(paths, pictures, strict=True):
                temporary = path.with_suffix(f".{os.getpid()}.tmp")
                with temporary.open("wb") as file:
                    np.savez(file, picture=picture, seconds=np.array(seconds))
                temporary.replace(path)
            self._report(setting, side, time.monotonic() - start)
        for pair, path in zip(batch, paths, strict=True):
            with np.load(path) as held:
                into.pictures[pair.key] = held["picture"]
                into.seconds += held["seconds"].tolist() if pair is batch[0] else []
        if into.flops is None and setting.kind in ("dense", "todo"):
            into.flops, into.attention_flops = self._totals(setting, side, len(batch))
        elif into.flops is None:
            into.flops = self._counted(setting, side, 2 * len(batch))

    def _report(self, setting: Setting, side: int, seconds: float) -> None:
        self._pending[side] -= 1
        self._spent.setdefault(side, []).append(seconds)
        largest = max(self._spent)
        # A size not met yet: attention grows with the fourth power of the side, the rest with the
        # second.
        known = {s: sum(v) / len(v) for s, v in self._spent.items()}
        eta = sum(
            left * known.get(s, known[largest] * (s / largest) ** 3)
            for s, left in self._pending.items()
        )
        self.say(f"{side} px  {setting.name:<28} {seconds:6.1f} s   about {eta / 60:.0f} min left")

    def _complete(self, setting: Setting, side: int, batch: Sequence[Pair]) -> bool:
        if setting.sampling == "other seed":
            return True
        return all(self._path(setting, side, pair).is_file() for pair in batch)

    def _path(self, setting: Setting, side: int, pair: Pair) -> Path:
        text = repr((self.model.identity, setting, side, self.steps, self.guidance, 1))
        digest = hashlib.sha256(text.encode()).hexdigest()[:20]
        return self.cache / f"{digest}-{pair.key}.npz"

    def _sample(
        self, setting: Setting, side: int, batch: Sequence[Pair]
    ) -> tuple[Any, list[float]]:
        count = 2 * len(batch)
        module = self._module(setting, side, count)
        dense = self._module(DENSE, side, count) if setting.dense_last else module
        first_dense = self.steps - round(setting.dense_last * self.steps)
        seconds: list[float] = []
        peers.reseed(module, batch)

        def timed(chosen: Denoise) -> Denoise:
            def call(*args: torch.Tensor) -> torch.Tensor:
                # Other work on the machine lengthens the clock's seconds, not the processor's.
                clock = time.perf_counter if args[0].is_cuda else time.process_time
                start = clock()
                result = chosen(*args)
                if result.is_cuda:
                    torch.cuda.synchronize()  # or the time is that of launching it
                seconds.append(clock() - start)
                return result

            return call

        pictures = self.model.sample(
            batch, side, self.steps, self.guidance,
            lambda step: timed(dense if step >= first_dense else module),
        )  # fmt: skip
        return pictures.permute(0, 2, 3, 1).half().cpu().numpy(), seconds

    def _grid(self, side: int) -> tuple[int, int]:
        return side // self.model.scale, side // self.model.scale

    def _example(self, side: int, count: int) -> tuple[torch.Tensor, ...]:
        config = self.model.unet.config
        text = self.model.encode([""])
        return (
            torch.zeros(count, config.in_channels, *self._grid(side), device=self.model.device),
            torch.full((1,), 500.0, device=self.model.device),
            text[:1].expand(count, -1, -1).contiguous(),
        )

    def _graph(self, side: int, count: int) -> Captured:
        found = self._captured.get((side, count))
        if found is None:
            found = Captured(self.model, self._example(side, count))
            self._captured[side, count] = found
        return found

    def _module(self, setting: Setting, side: int, count: int) -> Denoise:
        key = (repr((setting.kind, setting.factors, setting.sampling)), side, count)
        found = self._modules.get(key)
        if found is None:
            if setting.kind == "dense":
                found = Wrapped(self.model.unet).eval()
            elif setting.kind == "todo":
                found, report = self._graph(side, count).rewrite(setting.plan)
                assert report.rewritten, f"{setting.name} rewrites nothing at {side} px"
                self._flops[setting.name, side] = _flops(report, count)
                self._flops["dense", side] = _flops(report, count, after=False)
            else:
                found = peers.build(setting, self.model.unet, self._grid(side))
            if len(self._modules) > 24:  # graphs are small; copies of the UNet are not
                self._modules.clear()
            self._modules[key] = found
        return found

    def _counted(self, setting: Setting, side: int, count: int) -> int:
        """FLOPs of one picture's step with guidance, counted by torch as a peer's code runs.

        By the same rule as the reports': products and convolutions, a multiply-add is two.
        """
        if (setting.name, side) not in self._flops:
            module, inputs = self._module(setting, side, count), self._example(side, count)
            # The fused kernels of the CPU are not counted: spelled out, attention is two products.
            spelled_out = sdpa_kernel(SDPBackend.MATH)
            calls: int = getattr(module, "every", 1)  # of a period
            peers.reseed(module, ())
            with torch.no_grad(), FlopCounterMode(display=False) as counter, spelled_out:
                for _ in range(calls):
                    module(*inputs)
            self._flops[setting.name, side] = (2 * counter.get_total_flops() // count // calls, 0)
        return self._flops[setting.name, side][0]

    def _totals(self, setting: Setting, side: int, count: int) -> tuple[int, int]:
        """FLOPs of one picture's step with guidance: all, and attention's; late dense steps in."""
        base = Setting(setting.kind, setting.factors, setting.sampling)
        if (base.name, side) not in self._flops:
            plan = base.plan if base.kind == "todo" else Setting("todo", "off", "nearest").plan
            _, report = self._graph(side, 2 * count).rewrite(plan)
            self._flops[base.name, side] = _flops(report, 2 * count)
            self._flops["dense", side] = _flops(report, 2 * count, after=False)
        own, dense = self._flops[base.name, side], self._flops["dense", side]
        last = round(setting.dense_last * self.steps) / self.steps
        mixed = [round((1 - last) * a + last * b) for a, b in zip(own, dense, strict=True)]
        return mixed[0], mixed[1]


def _flops(report: Report, count: int, *, after: bool = True) -> tuple[int, int]:
    totals = report.totals
    pair = (
        (totals.flops_after, totals.attention_flops_after)
        if after
        else (totals.flops, totals.attention_flops)
    )
    return 2 * pair[0] // count, 2 * pair[1] // count
