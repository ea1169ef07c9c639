"""The process in which TensorRT runs: ``python -m todo_compile.export._tensorrt_worker``.

Reads one JSON request, a line on stdin; writes events, JSON lines on stdout; everything else
(TensorRT's log, native prints, tracebacks) goes to stderr. When stdin closes, whoever asked is
gone, and so are we. Imports neither torch nor ONNX.

Requests: ``{"do": "probe" | "build" | "inspect", "library": "tensorrt_rtx", …}``.
Events: ``progress`` (done 0..1, detail), ``phase`` (name), ``warning``, ``result``, ``error``.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import sys
import threading
import time
import warnings
from pathlib import Path
from typing import Any, TextIO

from todo_compile.export._mapped import release_pages

_EVENT_SECONDS = 0.1


class _Events:
    """Where events go; callable from any of TensorRT's threads."""

    def __init__(self, out: TextIO) -> None:
        self._out = out
        self._lock = threading.Lock()

    def send(self, event: str, **content: Any) -> None:
        with self._lock:
            self._out.write(json.dumps({"event": event, **content}) + "\n")
            self._out.flush()


def main() -> int:
    """Serve one request; returns the exit status."""
    # Ctrl-C reaches the whole group of processes; the parent decides what becomes of us.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # Events keep the real stdout to themselves: native code prints to descriptor 1 too.
    events = _Events(os.fdopen(os.dup(1), "w", encoding="utf-8"))
    os.dup2(2, 1)
    warnings.simplefilter("ignore", DeprecationWarning)
    request: dict[str, Any] = json.loads(sys.stdin.readline())
    threading.Thread(target=_leave_with_parent, daemon=True).start()
    actions = {"probe": _probe, "build": _build, "inspect": _inspect}
    try:
        trt = importlib.import_module(request["library"])
        events.send("result", **actions[request["do"]](trt, request, events))
    except _Refused as refusal:
        events.send("error", message=str(refusal))
        return 1
    except OSError as error:
        events.send("error", message=str(error), errno=error.errno)
        return 1
    return 0


class _Refused(Exception):
    """TensorRT said no; the log says why."""


def _leave_with_parent() -> None:
    while sys.stdin.read(4096):
        pass
    os._exit(3)


def _probe(trt: Any, request: dict[str, Any], events: _Events) -> dict[str, Any]:
    del request, events
    return {"version": trt.__version__, "targets": sorted(_capabilities(trt), key=_number)}


def _capabilities(trt: Any) -> dict[str, Any]:
    """What the library can build for by name: "sm89" → its enum; classic TensorRT has none."""
    members: dict[str, Any] = getattr(getattr(trt, "ComputeCapability", None), "__members__", {})
    return {name.lower(): value for name, value in members.items() if name.startswith("SM")}


def _number(name: str) -> int:
    return int(name.removeprefix("sm"))


def _logger(trt: Any) -> Any:
    class Logger(trt.ILogger):
        """Everything to stderr, which is the log file."""

        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, msg: str) -> None:
            # A single write: TensorRT logs from several threads.
            os.write(2, f"[{severity.name}] {msg}\n".encode(errors="replace"))

    return Logger()


def _monitor(trt: Any, events: _Events, weights: Path) -> Any:
    class Monitor(trt.IProgressMonitor):
        """TensorRT's nested phases as one number between 0 and 1.

        At the end of each, the thread that builds gives back what it read of the weights' file:
        the largest phase of all, which lays the engine out, follows the one that copies them.
        """

        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self._lock = threading.Lock()
            self._phases: dict[str, tuple[str | None, int, int]] = {}
            self._sent = 0.0
            self._high = 0.0

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            with self._lock:
                self._phases[phase_name] = (parent_phase, max(num_steps, 1), 0)
            self._report(phase_name)

        def step_complete(self, phase_name: str, step: int) -> bool:
            with self._lock:
                parent, total, _ = self._phases.get(phase_name, (None, 1, 0))
                self._phases[phase_name] = (parent, total, step + 1)
            self._report(phase_name)
            return True

        def phase_finish(self, phase_name: str) -> None:
            with self._lock:
                self._phases.pop(phase_name, None)
            release_pages(weights)

        def _report(self, name: str) -> None:
            with self._lock:
                self._high = max(self._high, self._fraction(name))
                now = time.monotonic()
                if now - self._sent < _EVENT_SECONDS:
                    return
                self._sent = now
                done = self._high
            events.send("progress", done=done, detail=name)

        def _fraction(self, name: str) -> float:
            inner = 0.0
            step: str | None = name
            while step is not None and step in self._phases:
                parent, total, done = self._phases[step]
                inner = min(1.0, (done + inner) / total)
                step = parent
            return inner

    return Monitor()


def _write_all(file: Any, data: memoryview) -> None:
    """Write all of `data`; one call takes at most 2 GiB on Linux."""
    while data:
        data = data[file.write(data) :]


def _build_to_file(trt: Any, builder: Any, network: Any, config: Any, path: Path) -> None:
    """Build and write the engine to `path`, in pieces as it comes where the library can.

    SD1.5 peaks at 5.5 GB that way, at 5.9 GB with the engine whole in memory.
    """
    with path.open("wb", buffering=0) as file:
        if not hasattr(builder, "build_serialized_network_to_stream"):
            engine = builder.build_serialized_network(network, config)
            if engine is None:
                raise _Refused("")
            _write_all(file, memoryview(engine).cast("B"))
            return
        writer = _writer(trt, file)
        built = builder.build_serialized_network_to_stream(network, config, writer)
        if writer.error is not None:
            raise writer.error
        if not built or not writer.written:
            raise _Refused("")


def _writer(trt: Any, file: Any) -> Any:
    class Writer(trt.IStreamWriter):
        """Receives the engine, 64 MiB at a time."""

        def __init__(self) -> None:
            trt.IStreamWriter.__init__(self)
            self.written = 0
            self.error: OSError | None = None

        def write(self, data: bytes) -> int:
            try:
                _write_all(file, memoryview(data))
            except OSError as error:
                # An exception cannot cross native code; a short count stops the build.
                self.error = error
                return 0
            self.written += len(data)
            return len(data)

    return Writer()


def _build(trt: Any, request: dict[str, Any], events: _Events) -> dict[str, Any]:
    logger = _logger(trt)
    builder = trt.Builder(logger)
    flags = 0
    if hasattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED"):
        flags = 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
    network = builder.create_network(flags)
    parser = trt.OnnxParser(network, logger)
    start = time.perf_counter()
    events.send("phase", name="parse")
    if not parser.parse_from_file(request["onnx"]):
        found = [str(parser.get_error(i)) for i in range(parser.num_errors)]
        raise _Refused(found[0] if found else "the ONNX file could not be read")
    parsed = time.perf_counter()

    config = builder.create_builder_config()
    cache = _configure(trt, config, request, events)
    if request["profile"]:
        _add_profile(builder, network, config, request["profile"])
    _allow_decomposition(trt, network)
    monitor = _monitor(trt, events, Path(request["weights"]))
    config.progress_monitor = monitor
    events.send("phase", name="build")
    _build_to_file(trt, builder, network, config, Path(request["plan"]))
    built = time.perf_counter()
    io = {
        "inputs": [_spec(network.get_input(i)) for i in range(network.num_inputs)],
        "outputs": [_spec(network.get_output(i)) for i in range(network.num_outputs)],
    }
    if cache is not None:
        _save_cache(config, Path(request["timing_cache"]))
    return {
        **io,
        "version": trt.__version__,
        "seconds": {
            "parse": parsed - start,
            "build": built - parsed,
        },
        "peak_rss_bytes": _peak_rss(),
    }


def _configure(trt: Any, config: Any, request: dict[str, Any], events: _Events) -> Any:
    """Apply the request to `config`; returns the timing cache in use, or None."""
    if request["targets"]:
        known = _capabilities(trt)
        config.num_compute_capabilities = len(request["targets"])
        for index, name in enumerate(request["targets"]):
            if not config.set_compute_capability(known[name], index):
                raise _Refused(f"the library refuses the target {name}")
    if request["weight_streaming"]:
        config.set_flag(trt.BuilderFlag.WEIGHT_STREAMING)
    if request["workspace_bytes"]:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, request["workspace_bytes"])
    if request["detailed"]:
        config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    if not request["timing_cache"]:
        return None
    if request["library"] == "tensorrt_rtx":
        events.send(
            "warning",
            message="TensorRT for RTX times nothing when it builds: --timing-cache has no effect.",
        )
        return None
    path = Path(request["timing_cache"])
    content = path.read_bytes() if path.exists() else b""
    cache = config.create_timing_cache(content)
    if cache is not None and config.set_timing_cache(cache, False):
        return cache
    events.send("warning", message=f"The timing cache {path} does not fit; it is made anew.")
    cache = config.create_timing_cache(b"")
    config.set_timing_cache(cache, False)
    return cache


def _add_profile(
    builder: Any, network: Any, config: Any, shapes: dict[str, list[list[int]]]
) -> None:
    """Tell the builder the least, usual and largest shape of every input that has a range."""
    profile = builder.create_optimization_profile()
    for index in range(network.num_inputs):
        tensor = network.get_input(index)
        if -1 not in tuple(tensor.shape):
            continue
        three = shapes[tensor.name]
        # Since TensorRT 10 a wrong shape raises; before, it said so by what it returned.
        if profile.set_shape(tensor.name, *map(tuple, three)) is False:
            raise _Refused(f"the library refuses the shapes {three} of {tensor.name}")
    if config.add_optimization_profile(profile) < 0:
        raise _Refused(f"the library refuses a profile of {shapes}")


def _allow_decomposition(trt: Any, network: Any) -> None:
    """Let attention that has no fused kernel (a VAE's 512 channels) be built from products.

    Unless told so the library refuses with a range of batches, and for some sizes (heads of 8
    channels). Where a kernel is found it is taken all the same: the engine has the same bytes.
    """
    kind = getattr(trt.LayerType, "ATTENTION_OUTPUT", None)
    if kind is None:
        return  # a classic TensorRT that knows no attention layer decomposes always
    for index in range(network.num_layers):
        layer = network.get_layer(index)
        if layer.type == kind:
            layer.__class__ = trt.IAttentionOutputLayer  # the bindings' way to cast
            layer.attention.decomposable = True


def _save_cache(config: Any, path: Path) -> None:
    staged = path.with_name(f".{path.name}.tmp-{os.getpid()}")
    try:
        staged.write_bytes(memoryview(config.get_timing_cache().serialize()).cast("B"))
        os.replace(staged, path)
    finally:
        staged.unlink(missing_ok=True)


def _spec(tensor: Any) -> dict[str, Any]:
    return {
        "name": tensor.name,
        "shape": [int(side) for side in tensor.shape],
        "dtype": _dtype(tensor.dtype),
    }


def _dtype(dtype: Any) -> str:
    """TensorRT's names as everybody else's: HALF is float16."""
    names = {"HALF": "float16", "FLOAT": "float32", "BF16": "bfloat16"}
    name = str(dtype.name)
    return names.get(name, name.lower())


def _inspect(trt: Any, request: dict[str, Any], events: _Events) -> dict[str, Any]:
    del events
    runtime = trt.Runtime(_logger(trt))
    engine = runtime.deserialize_cuda_engine(Path(request["plan"]).read_bytes())
    if engine is None:
        raise _Refused("")
    inspector = engine.create_engine_inspector()
    text = inspector.get_engine_information(trt.LayerInformationFormat.JSON)
    return {"layers": json.loads(text)["Layers"]}


def _peak_rss() -> int | None:
    """The most memory this process held, in bytes; None on Windows."""
    # Linux's rusage survives exec: it would report the parent's memory before we were loaded.
    if sys.platform == "linux":
        for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    try:
        import resource
    except ImportError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


if __name__ == "__main__":
    sys.exit(main())
