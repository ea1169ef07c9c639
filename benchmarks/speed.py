"""Seconds of one denoiser call: dense, rewritten and the bound, in turn in one run.

python benchmarks/speed.py --model sd15 --px 1024 --dtype fp32 --inner eager --rounds 2
python benchmarks/speed.py --device cuda --dtype fp16 --px 1024 2048 --rounds 20

All three are `torch.compile`d with the same inner backend. "Bound" pools the keys of every
self-attention to one token, so that self-attention costs almost nothing: no rewrite of keys and
values can be faster. Each round runs all of them, in an order that turns, and gives one ratio;
reported are the median and quartiles. On a CPU the processor's own seconds (all threads) are given
too: other work on the machine disturbs them less. The run stops if a variant is not what its name
says.
"""

from __future__ import annotations

import argparse
import gc
import os
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from common import save
from plain_unet import PlainUNet
from torch import nn

import todo_compile
from todo_compile._torch import dynamo_backend, inductor, inductor_mode
from todo_compile.dynamo.backend import todo_inductor
from todo_compile.options import DEFAULT_KV_TOKENS
from todo_compile.precision import PRECISIONS, dtype_of

VARIANTS = ("dense", "rewritten", "bound")
TINY: dict[str, Any] = {"widths": (8, 16, 16), "text": 12, "heads": 2, "groups": 4, "layers": 1}


@dataclass(frozen=True)
class Subject:
    """A module, its inputs at one size, and the default bound on its keys."""

    module: nn.Module
    inputs: tuple[torch.Tensor, ...]
    kv_tokens: int


def make_module(model: str, dtype: torch.dtype, device: str) -> nn.Module:
    """``plain`` (SD1.5 without diffusers), ``tiny``, or a name that todo-compile knows."""
    if model in ("plain", "tiny"):
        return PlainUNet(**(TINY if model == "tiny" else {})).to(device, dtype)
    from todo_compile import models

    source = models.resolve(model)
    weights = models.find_weights(source, models.WeightsChoice.parse("random"), dtype=dtype)
    loaded = models.load(source, weights, dtype=dtype, hashed=False)
    loaded.module.to(device)
    return loaded.module


def subject(
    model: str, module: nn.Module, px: int, batch: int, dtype: torch.dtype, device: str
) -> Subject:
    """`module` with inputs for images of `px` × `px`."""
    side = px // 8
    if model in ("plain", "tiny"):
        generator = torch.Generator().manual_seed(0)
        text = TINY["text"] if model == "tiny" else 768
        inputs = (
            torch.randn(batch, 4, side, side, generator=generator),
            torch.full((batch,), 500.0),
            torch.randn(batch, 77, text, generator=generator),
        )
        made = tuple(t.to(device, dtype if t.dim() > 1 else t.dtype) for t in inputs)
        return Subject(module, made, 16 if model == "tiny" else DEFAULT_KV_TOKENS)
    from todo_compile import models
    from todo_compile.capture.inputs import example_inputs
    from todo_compile.models.loading import LoadedModel

    source = models.resolve(model)
    loaded = LoadedModel(module, source, dtype, None, None, 0)
    example = example_inputs(loaded, models.Resolution(px, px), batch=batch)
    return Subject(
        example.wrapper,
        tuple(t.to(device) for t in example.args),
        source.native.kv_tokens or DEFAULT_KV_TOKENS,
    )


@dataclass(frozen=True)
class Sample:
    """One call: seconds, on a CPU the processor's seconds, on a GPU the peak of its memory."""

    seconds: float
    cpu_seconds: float | None = None
    peak_bytes: int | None = None


def sample(call: Callable[[], object], device: str) -> Sample:
    """Time one call."""
    if device != "cuda":
        start, cpu = time.perf_counter(), time.process_time()
        call()
        return Sample(time.perf_counter() - start, time.process_time() - cpu)
    torch.cuda.reset_peak_memory_stats()
    before, after = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    before.record()
    call()
    after.record()
    torch.cuda.synchronize()
    seconds = before.elapsed_time(after) / 1e3
    return Sample(seconds, peak_bytes=torch.cuda.max_memory_allocated())


class Watched:
    """A variant's backend, which times the first run of what it compiles apart from compiling."""

    def __init__(
        self, what: Subject, variant: str, inner: str, factors: str | None, mode: str | None
    ) -> None:
        self.inner = inner
        self.patches: dict[str, Any] = inductor_mode(mode) if mode else {}
        self.options: dict[str, Any] | None = None  # dense
        if variant != "dense":
            plan: dict[str, Any] = {"kv_tokens": 1 if variant == "bound" else what.kv_tokens}
            if variant == "rewritten" and factors is not None:
                plan = {"factors": factors}
            self.options = {**plan, "inner": inner, **self.patches}
        self.device = what.inputs[0].device.type
        self.first: Sample | None = None

    def __call__(self, graph: Any, inputs: Sequence[Any]) -> Callable[..., Any]:
        if self.options is not None:
            call = todo_inductor(graph, inputs, options=self.options)
        elif self.inner == "inductor":
            call = inductor(graph, inputs, self.patches)
        else:
            call = dynamo_backend(self.inner)(graph, list(inputs))

        def run(*arguments: Any) -> Any:
            if self.first is not None:
                return call(*arguments)
            results: list[Any] = []
            self.first = sample(lambda: results.append(call(*arguments)), self.device)
            return results[0]

        return run


def quartiles(values: Sequence[float]) -> dict[str, float]:
    """Median, first and third quartile, and how many values there were."""
    ordered = sorted(values)
    if len(ordered) < 2:
        low = high = ordered[0]
    else:
        low, _, high = statistics.quantiles(ordered, n=4, method="inclusive")
    return {
        "median": statistics.median(ordered),
        "q1": low,
        "q3": high,
        "count": float(len(ordered)),
    }


def load_average() -> float | None:
    """Processes that wanted the processor in the last minute."""
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else None


@torch.no_grad()
def measure(
    what: Subject,
    *,
    inner: str,
    rounds: int,
    warmup: int,
    factors: str | None = None,
    mode: str | None = None,
    variants: Sequence[str] = VARIANTS,
    device: str = "cpu",
    keep: Callable[[dict[str, Any]], object] = lambda _: None,
) -> dict[str, Any]:
    """Compile and time the variants.

    The first run of each is a measurement only if there are no rounds: one cold run each, for
    machines that take minutes for one.

    Args:
        keep: given what is known after every round: a long run may be stopped.

    Raises:
        SystemExit: a variant is not what it should be (nothing rewritten, equal outputs, NaN).
    """
    torch.compiler.reset()
    todo_compile.clear_reports()
    runs: dict[str, Callable[[], torch.Tensor]] = {}
    samples: dict[str, list[Sample]] = {v: [] for v in variants}
    first: dict[str, float] = {}
    outputs: dict[str, torch.Tensor] = {}
    reports: dict[str, Any] = {}
    for variant in variants:
        backend = Watched(what, variant, inner, factors, mode)
        function = torch.compile(what.module, backend=backend, dynamic=False, fullgraph=True)
        runs[variant] = lambda f=function: f(*what.inputs)
        before = len(todo_compile.reports())
        start = time.perf_counter()
        outputs[variant] = runs[variant]().float().cpu()
        whole = time.perf_counter() - start
        assert backend.first is not None
        first[variant] = whole - backend.first.seconds
        if rounds == 0:
            samples[variant].append(backend.first)
        new = todo_compile.reports()[before:]
        reports[variant] = new[0] if new else None
        _check(variant, new, outputs)
        ran = f"first run {backend.first.seconds:.4g} s, processor {backend.first.cpu_seconds}"
        print(f"{variant}: compiled in {first[variant]:.1f} s, {ran}", flush=True)
    for _ in range(warmup if rounds else 0):
        for run in runs.values():
            run()
    loads: list[float | None] = [load_average()]
    row: dict[str, Any] = {}
    if rounds == 0:
        row = _row(samples, first, reports, loads)
        keep(row)
    for index in range(rounds):
        loads.append(load_average())
        for variant in variants if index % 2 == 0 else variants[::-1]:
            samples[variant].append(sample(runs[variant], device))
        latest = ", ".join(f"{v} {samples[v][-1].seconds:.4g} s" for v in variants)
        print(f"round {index + 1}: {latest}", flush=True)
        row = _row(samples, first, reports, loads)
        keep(row)
    return row


def _check(variant: str, new: Sequence[Any], outputs: dict[str, torch.Tensor]) -> None:
    """A variant must be what its name says."""
    if not torch.isfinite(outputs[variant]).all():
        raise SystemExit(f"{variant}: the output is not finite")
    if variant == "dense":
        if new:
            raise SystemExit("dense: the rewriting backend ran")
        return
    if len(new) != 1 or new[0].rewritten == 0:
        raise SystemExit(f"{variant}: nothing was rewritten ({[r.summary() for r in new]})")
    if variant == "bound" and any(
        s.key_tokens_after != 1 for s in new[0].sites if s.action == "rewritten"
    ):
        raise SystemExit("bound: a rewritten site reads more than one key")
    for other in outputs.keys() - {variant}:
        if torch.equal(outputs[other], outputs[variant]):
            raise SystemExit(f"{variant}: gives exactly what {other} gives")


def _row(
    samples: dict[str, list[Sample]],
    first: dict[str, float],
    reports: dict[str, Any],
    loads: list[float | None],
) -> dict[str, Any]:
    times = {v: [s.seconds for s in found] for v, found in samples.items()}
    cpu = {v: [s.cpu_seconds for s in f if s.cpu_seconds is not None] for v, f in samples.items()}
    peaks = {v: [s.peak_bytes for s in f if s.peak_bytes is not None] for v, f in samples.items()}
    medians = {v: statistics.median(t) for v, t in times.items()}
    row: dict[str, Any] = {
        "seconds": {v: quartiles(t) for v, t in times.items()},
        "all_seconds": times,
        "all_cpu_seconds": cpu,
        "compile_seconds": first,
        "peak_bytes": {v: max(p) for v, p in peaks.items() if p},
        "load_average_before_round": loads,
        "dense_over": _ratios(times),
        "dense_over_in_cpu_seconds": _ratios(cpu),
    }
    report = reports.get("rewritten")
    if report is not None:
        row["rewrite_seconds"] = report.seconds
        row["rewrite_share_of_compile"] = report.seconds / first["rewritten"]
        row["sites"] = report.counts
        row["flops"] = {"dense": report.totals.flops, "rewritten": report.totals.flops_after}
        row["factors"] = sorted(
            {(s.level, s.factor) for s in report.sites if s.action == "rewritten"}
        )
    if set(VARIANTS) <= times.keys():
        saved, most = (
            medians["dense"] - medians["rewritten"],
            medians["dense"] - medians["bound"],
        )
        row["share_of_bound"] = {
            "speed": medians["bound"] / medians["rewritten"],
            "saved_time": saved / most if most > 0 else None,
        }
    return row


def _ratios(times: dict[str, list[float]]) -> dict[str, dict[str, float]]:
    """Dense over each other variant, one ratio a round."""
    dense = times.get("dense")
    if not dense:
        return {}
    return {
        variant: quartiles([d / t for d, t in zip(dense, found, strict=True)])
        for variant, found in times.items()
        if variant != "dense"
    }


def describe(row: dict[str, Any]) -> str:
    """A row for people."""
    parts = [f"{v} {q['median']:.4g} s" for v, q in row["seconds"].items()]
    for name in ("dense_over", "dense_over_in_cpu_seconds"):
        what = ", processor" if "cpu" in name else ""
        for variant, q in row[name].items():
            spread = f"[{q['q1']:.2f}, {q['q3']:.2f}]"
            parts.append(f"dense/{variant}{what} {q['median']:.2f}x {spread}")
    share = row.get("share_of_bound")
    if share is not None:
        parts.append(f"{share['speed']:.0%} of the bound's speed")
    if "rewrite_share_of_compile" in row:
        parts.append(f"rewriting {row['rewrite_share_of_compile']:.1%} of compile time")
    return "; ".join(parts)


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("--model", default="sd15", help="a known name, 'plain' or 'tiny'")
    made.add_argument("--px", type=int, nargs="+", default=[1024])
    made.add_argument("--batch", type=int, default=1)
    made.add_argument("--dtype", choices=PRECISIONS, default="bf16")
    made.add_argument("--device", choices=("cpu", "cuda"), default=None)
    made.add_argument("--inner", default="inductor", help="inductor, aot_eager or eager")
    made.add_argument("--mode", default=None, help="Inductor's, for all variants")
    made.add_argument("--rounds", type=int, default=5, help="0: one cold run of each")
    made.add_argument("--warmup", type=int, default=1, help="calls after the first, not timed")
    made.add_argument("--factors", default=None, help="instead of the default plan")
    made.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    made.add_argument("--channels-last", action="store_true")
    made.add_argument("--threads", type=int, default=None)
    made.add_argument("--out", default=None, help="name in benchmarks/results")
    return made


def main(arguments: Sequence[str] | None = None) -> None:
    chosen = parser().parse_args(arguments)
    device = chosen.device or ("cuda" if torch.cuda.is_available() else "cpu")
    if chosen.threads is not None:
        torch.set_num_threads(chosen.threads)
    dtype = dtype_of(chosen.dtype)
    module = make_module(chosen.model, dtype, device)
    if chosen.channels_last:
        module.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    settings = {**vars(chosen), "device": device, "threads": torch.get_num_threads()}
    name = chosen.out or f"speed-{chosen.model}-{device}-{chosen.dtype}-{chosen.inner}"
    rows: list[dict[str, Any]] = []
    for px in chosen.px:
        what = subject(chosen.model, module, px, chosen.batch, dtype, device)

        def keep(row: dict[str, Any], px: int = px) -> None:
            save(name, {"settings": settings, "rows": [*rows, {"px": px, **row}]})

        row = measure(
            what,
            inner=chosen.inner,
            rounds=chosen.rounds,
            warmup=chosen.warmup,
            factors=chosen.factors,
            mode=chosen.mode,
            variants=chosen.variants,
            device=device,
            keep=keep,
        )
        rows.append({"px": px, **row})
        print(f"{px} px: {describe(row)}\nin benchmarks/results/{name}.json", flush=True)
        del what
        gc.collect()


if __name__ == "__main__":
    main()
