"""What TensorRT's log says to people: memory figures, and why a build failed."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

# Beyond what the first errors say, the rest repeats them.
_TAIL_BYTES = 4 << 20


@dataclass(frozen=True)
class Memory:
    """GPU memory as the builder reports it, in bytes; None where it said nothing.

    Attributes:
        activation: for everything that flows through the network, scratch included.
        scratch: the most that one layer needs for itself.
        weights: of the engine.
    """

    activation: int | None
    scratch: int | None
    weights: int | None


_FIGURES = {
    "activation": re.compile(r"Total Activation Memory: (\d+) bytes"),
    "scratch": re.compile(r"Max Scratch Memory: (\d+) bytes"),
    "weights": re.compile(r"Total Weights Memory: (\d+) bytes"),
}


def memory(lines: Iterable[str]) -> Memory:
    """The last figures in a log; with several targets, the largest."""
    found: dict[str, int] = {}
    for line in lines:
        for name, pattern in _FIGURES.items():
            if match := pattern.search(line):
                found[name] = max(found.get(name, 0), int(match[1]))
    return Memory(found.get("activation"), found.get("scratch"), found.get("weights"))


def read_log(path: Path) -> list[str]:
    """The lines of a log, only the end of a very long one."""
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - _TAIL_BYTES))
        return file.read().decode(errors="replace").splitlines()


@dataclass(frozen=True)
class _Cause:
    pattern: re.Pattern[str]
    remedy: str


_TOO_LARGE = (
    "A tensor is over TensorRT's limit of 2^31-1 elements; most likely the attention scores, "
    "because attention was not fused. Use --opset 23, fewer --kv-tokens, or a lower --res."
)
_CAUSES = (
    _Cause(
        re.compile(r"volume|exceeds.*2\^31|2147483647|too many elements|[Tt]ensor.*too large"),
        _TOO_LARGE,
    ),
    _Cause(
        re.compile(r"must all be of the same type|[Tt]ype mismatch|same types?|kHALF.*kFLOAT"),
        "The graph mixes precisions, which a strongly typed engine refuses. "
        "Try --precision fp32, and report the model.",
    ),
    _Cause(
        re.compile(r"cudaError 35|driver version is insufficient|no CUDA-capable"),
        "This needs an NVIDIA driver, which this machine lacks. Build for named targets "
        "(--target sm89) without weight refitting.",
    ),
    _Cause(
        re.compile(r"OutOfMemory \(Requested size was"),
        "One layer wants that much GPU memory; most likely the attention scores, because "
        "attention was not fused. Use --opset 23, fewer --kv-tokens, or a lower --res.",
    ),
    _Cause(
        re.compile(
            r"[Oo]ut ?[Oo]f ?[Mm]emory|cannot allocate|bad_alloc|OutOfMemory|insufficient memory"
            r"|requested .* bytes"
        ),
        "Memory ran out. Use fewer --kv-tokens, a lower --res or fewer targets.",
    ),
    _Cause(
        re.compile(r"No importer registered|[Uu]nsupported|not supported"),
        "This TensorRT does not know an operator of the graph. Try another --opset or a newer "
        "TensorRT.",
    ),
)
_SECOND_HAND = re.compile(
    r"In node|checkMacros|Failed to (parse|build)|buildSerializedNetwork.*failed|"
    r"Could not find any implementation$|^\[ERROR\] *$"
)


def telling_error(lines: Iterable[str]) -> str | None:
    """The error that explains a failure best: the first that has a known cause, else the first
    that is not a mere consequence of another."""
    errors = [line for line in lines if line.startswith(("[ERROR]", "[INTERNAL_ERROR]"))]
    texts = [line.partition("] ")[2].strip() for line in errors]
    known = [text for text in texts if remedy_for(text) is not None]
    first_hand = [text for text in texts if text and not _SECOND_HAND.search(text)]
    for choice in (known, first_hand, texts):
        if choice:
            return choice[0]
    return None


def remedy_for(text: str) -> str | None:
    """What to do about an error of TensorRT's, if it is one that we know."""
    for cause in _CAUSES:
        if cause.pattern.search(text):
            return cause.remedy
    return None
