"""List an engine's layers, in a child process that loads TensorRT."""

from __future__ import annotations

from pathlib import Path

from todo_compile.errors import EngineError
from todo_compile.export._child import run_worker
from todo_compile.export.library import choose_library


def engine_layers(plan: Path, library: str) -> tuple[str, ...]:
    """Names of the layers of an engine.

    Args:
        plan: the engine; its manifest must have been checked.
        library: what built it, such as "tensorrt_rtx 1.7.1".

    Raises:
        EngineError: the library is absent, or there is no GPU (deserialising needs a driver).
    """
    chosen = choose_library(library.split(maxsplit=1)[0])
    outcome = run_worker({"do": "inspect", "library": chosen.name, "plan": str(plan)})
    if "layers" not in outcome.result:
        raise EngineError(
            f"TensorRT cannot open it ({outcome.error or outcome.last_words}).",
            remedy="Inspecting layers needs a GPU with its driver.",
        )
    return tuple(
        str(layer["Name"] if isinstance(layer, dict) else layer)
        for layer in outcome.result["layers"]
    )
