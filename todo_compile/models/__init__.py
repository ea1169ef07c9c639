"""Known models, and where their weights come from.

The road from a ``--model`` string to a module that can be captured (see `capture.inputs`)::

    source = resolve("sdxl")  # the architecture; no weights yet
    weights = find_weights(source, WeightsChoice.parse("auto"), dtype=torch.float16)
    model = load(source, weights, dtype=torch.float16)  # the module, in eval mode
    inputs = example_inputs(model, Resolution.parse("2048"), batch=2)
    exported = torch.export.export(inputs.wrapper, inputs.args)

`load` with ``fake=True`` skips the weights altogether. Importing this package imports neither
torch nor diffusers; only the calls that need them do.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from todo_compile.models.architecture import Native as Native
    from todo_compile.models.architecture import native as native
    from todo_compile.models.components import resolve_component as resolve_component
    from todo_compile.models.loading import LoadedModel as LoadedModel
    from todo_compile.models.loading import check_loras as check_loras
    from todo_compile.models.loading import load as load
    from todo_compile.models.loading import start_load as start_load
    from todo_compile.models.lora import Lora as Lora
    from todo_compile.models.lora import parse_lora as parse_lora
    from todo_compile.models.registry import REGISTRY as REGISTRY
    from todo_compile.models.registry import RegistryEntry as RegistryEntry
    from todo_compile.models.resolution import Resolution as Resolution
    from todo_compile.models.source import Source as Source
    from todo_compile.models.source import resolve as resolve
    from todo_compile.models.source import with_frames as with_frames
    from todo_compile.models.source import with_text_tokens as with_text_tokens
    from todo_compile.models.weights import Weights as Weights
    from todo_compile.models.weights import WeightsChoice as WeightsChoice
    from todo_compile.models.weights import find_weights as find_weights
    from todo_compile.models.weights import weights_hash as weights_hash

_HOMES = {
    "Native": "architecture",
    "native": "architecture",
    "resolve_component": "components",
    "Lora": "lora",
    "parse_lora": "lora",
    "LoadedModel": "loading",
    "check_loras": "loading",
    "load": "loading",
    "start_load": "loading",
    "REGISTRY": "registry",
    "RegistryEntry": "registry",
    "Resolution": "resolution",
    "Source": "source",
    "resolve": "source",
    "with_frames": "source",
    "with_text_tokens": "source",
    "Weights": "weights",
    "WeightsChoice": "weights",
    "find_weights": "weights",
    "weights_hash": "weights",
}


def __getattr__(name: str) -> object:
    # Names are fetched when first used, so that `import todo_compile.models` stays light. No file
    # of this package may be called as one of them, or the submodule would hide the name.
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value
