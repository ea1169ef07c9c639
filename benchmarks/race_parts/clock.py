"""One call's time and memory, and what many of them come to."""

from __future__ import annotations

import os
import re
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

_STATUS = Path("/proc/self/status")
_CLEAR = Path("/proc/self/clear_refs")


@dataclass(frozen=True)
class Sample:
    """One call.

    Attributes:
        seconds: of the clock; on a GPU between two events of its stream.
        processor_seconds: of all threads of this process; None on a GPU. Other work on the machine
            disturbs them less than the clock's.
        peak_bytes: most memory in use during the call beyond what was in use before it: allocated
            by torch on a GPU, else resident; None where neither can be asked.
    """

    seconds: float
    processor_seconds: float | None = None
    peak_bytes: int | None = None

    @property
    def cost(self) -> float:
        """What ratios are made of."""
        return self.seconds if self.processor_seconds is None else self.processor_seconds


def sample(call: Callable[[], object], device: str) -> Sample:
    """Time one call on ``cpu`` or ``cuda``."""
    if device == "cuda":
        return _on_gpu(call)
    before = resident(reset=True)
    start, processor = time.perf_counter(), time.process_time()
    call()
    seconds, processor = time.perf_counter() - start, time.process_time() - processor
    peak = resident(name="VmHWM")
    used = peak - before if before is not None and peak is not None else None
    return Sample(seconds, processor, used)


def _on_gpu(call: Callable[[], object]) -> Sample:
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    held = torch.cuda.memory_allocated()
    before, after = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    before.record()
    call()
    after.record()
    torch.cuda.synchronize()
    peak = torch.cuda.max_memory_allocated() - held
    return Sample(before.elapsed_time(after) / 1e3, peak_bytes=peak)


def resident(name: str = "VmRSS", *, reset: bool = False) -> int | None:
    """Bytes of this process, now or at most since the last reset; only Linux says."""
    if not _STATUS.exists() or not os.access(_CLEAR, os.W_OK):
        return None
    if reset:
        _CLEAR.write_text("5", encoding="ascii")  # "5": the peak begins anew
    found = re.search(rf"^{name}:\s+(\d+) kB", _STATUS.read_text(encoding="ascii"), re.MULTILINE)
    return int(found[1]) * 1024 if found else None


def quartiles(values: Sequence[float]) -> dict[str, float]:
    """Median, first and third quartile, and how many values there were."""
    ordered = sorted(values)
    low = high = ordered[0]
    if len(ordered) > 1:
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
