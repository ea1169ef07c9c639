"""From an ONNX file to a TensorRT engine, over ``tensorrt`` and ``tensorrt_rtx`` alike."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from todo_compile.disk import disk_full, format_bytes
from todo_compile.errors import EngineError
from todo_compile.export._build_log import Memory, memory, read_log, remedy_for, telling_error
from todo_compile.export._child import Outcome, run_worker
from todo_compile.export.onnx import data_name

if TYPE_CHECKING:
    from todo_compile.export.library import Library
    from todo_compile.export.targets import Targets
    from todo_compile.progress import Progress, Step

LOG_HEADER = "todo-compile: TensorRT build log"
_PHASES = {"parse": 0.05, "build": 0.95}


@dataclass(frozen=True)
class EngineOptions:
    """How to build.

    Attributes:
        weight_streaming: the engine can keep part of its weights in host memory when it runs.
        workspace_bytes: the most scratch memory a layer may take; None for the library's default.
        timing_cache: file that classic TensorRT reads and writes; RTX has none and says so.
        detailed: keep layer names in the engine, for `inspect`.
        profile: input → its least, usual and largest shape, of those that are not fixed in the ONNX
            file.
        keep_log: keep the log beside the output also when all went well.
    """

    weight_streaming: bool = False
    workspace_bytes: int | None = None
    timing_cache: Path | None = None
    detailed: bool = False
    profile: Mapping[str, Sequence[Sequence[int]]] = field(
        default_factory=dict[str, Sequence[Sequence[int]]]
    )
    keep_log: bool = False


@dataclass(frozen=True)
class TensorSpec:
    """Name, shape (-1 for a size that has a range) and type ("float16") of an input or output."""

    name: str
    shape: tuple[int, ...]
    dtype: str


@dataclass(frozen=True)
class EngineInfo:
    """What `build_engine` built.

    Attributes:
        path: the engine.
        library: "tensorrt" or "tensorrt_rtx".
        version: of the library.
        targets: GPUs it was built for.
        bytes: size of the file.
        memory: GPU memory when it runs, as the builder reports it.
        seconds: for "parse" and "build", writing the file included.
        peak_rss_bytes: the most memory the builder's process held, None on Windows.
        inputs: in order.
        outputs: in order.
    """

    path: Path
    library: str
    version: str
    targets: tuple[str, ...]
    bytes: int
    memory: Memory
    seconds: dict[str, float]
    peak_rss_bytes: int | None
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]


def build_engine(
    onnx: Path,
    plan: Path,
    *,
    library: Library,
    targets: Targets,
    log: Path,
    progress: Progress,
    options: EngineOptions | None = None,
) -> EngineInfo:
    """Build an engine in a child process.

    Not atomic by itself: give it a `plan` in a `files.Stage`. Ctrl-C ends the child at once.

    Args:
        onnx: the model; external weights lie where it says, relative to it.
        plan: where the engine goes.
        library: from `library.choose_library`.
        targets: from `targets.resolve_targets`.
        log: where TensorRT's log is kept if the build fails (or `options.keep_log`); an old log of
            ours is removed at the start.
        progress: gets the step "engine".
        options: see `EngineOptions`.

    Raises:
        EngineError: TensorRT refused the network, ran out of memory or crashed; names the log.
        BundleError: the disk is full.
    """
    options = options or EngineOptions()
    forget_log(log)
    # Beside the engine while it runs: with the stage it goes away by itself.
    running_log = plan.with_name(f"{plan.name}.log")
    running_log.write_text(f"{LOG_HEADER}\n", encoding="utf-8")
    request = {
        "do": "build",
        "library": library.name,
        "onnx": str(onnx),
        "weights": str(onnx.with_name(data_name(onnx))),
        "plan": str(plan),
        "targets": [] if targets.current else list(targets.names),
        "weight_streaming": options.weight_streaming,
        "workspace_bytes": options.workspace_bytes,
        "timing_cache": None if options.timing_cache is None else str(options.timing_cache),
        "detailed": options.detailed,
        "profile": {name: [list(s) for s in shapes] for name, shapes in options.profile.items()},
    }
    with progress.step("engine") as step:
        outcome = run_worker(request, log=running_log, on_event=_listener(progress, step))
        lines = read_log(running_log)
        done = outcome.returncode == 0 and bool(outcome.result)
        if not done or options.keep_log:
            shutil.copyfile(running_log, log)
        running_log.unlink()
        if not done:
            raise _failure(outcome, lines, plan, log)
        info = _info(plan, library, targets, outcome.result, memory(lines))
        step.note(format_bytes(info.bytes))
    return info


def forget_log(log: Path) -> None:
    """Remove the log of an earlier failure; a file that is not ours stays."""
    if log.is_file():
        with log.open("rb") as file:
            ours = file.read(len(LOG_HEADER)) == LOG_HEADER.encode()
        if ours:
            log.unlink()


class _Listener:
    def __init__(self, progress: Progress, step: Step) -> None:
        self._progress = progress
        self._step = step
        self._base = 0.0
        self._share = 1.0

    def __call__(self, event: dict[str, Any]) -> None:
        if event["event"] == "warning":
            self._progress.warn(event["message"])
        elif event["event"] == "phase":
            names = list(_PHASES)
            self._base = sum(_PHASES[name] for name in names[: names.index(event["name"])])
            self._share = _PHASES[event["name"]]
            self._step.update(self._base, 1.0, event["name"])
        else:
            self._step.update(self._base + self._share * event["done"], 1.0, event["detail"])


def _listener(progress: Progress, step: Step) -> _Listener:
    return _Listener(progress, step)


def _info(
    plan: Path, library: Library, targets: Targets, result: dict[str, Any], used: Memory
) -> EngineInfo:
    def specs(tensors: list[dict[str, Any]]) -> tuple[TensorSpec, ...]:
        return tuple(TensorSpec(t["name"], tuple(t["shape"]), t["dtype"]) for t in tensors)

    return EngineInfo(
        path=plan,
        library=library.name,
        version=result["version"],
        targets=targets.names,
        bytes=plan.stat().st_size,
        memory=used,
        seconds=result["seconds"],
        peak_rss_bytes=result["peak_rss_bytes"],
        inputs=specs(result["inputs"]),
        outputs=specs(result["outputs"]),
    )


def _failure(outcome: Outcome, lines: list[str], plan: Path, log: Path) -> Exception:
    """The error that a failed worker amounts to."""
    if outcome.errno in {errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC)}:
        return disk_full(plan)
    see = f"The full log: {log}"
    if outcome.returncode == -9:
        return EngineError(
            "The builder's process was killed, most likely because memory ran out.",
            remedy="Building takes about 1 GB and 2.4 times the size of the weights. Close other "
            f"programs, or build on a machine with more memory. {see}",
        )
    message = telling_error(lines) or outcome.error
    if message:
        advice = remedy_for(message)
        return EngineError(
            f"TensorRT could not build the engine: {message}",
            remedy=see if advice is None else f"{advice} {see}",
        )
    last = next((line for line in reversed(lines) if line.strip()), "")
    return EngineError(
        f"The builder's process ended with status {outcome.returncode}: {last}", remedy=see
    )
