"""What a pipeline's folder may say before diffusers or transformers reads it.

``model_index.json`` names a class and a library for every part, and the libraries import what it
names: some versions even Python that lies in the folder. Configurations can ask for code too
(``auto_map``, attention kernels from the hub) and for files elsewhere (``vocab_file``). So
everything that will be read is read here first, and what is not plain is refused.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from contextlib import suppress
from functools import cache
from inspect import isclass
from pathlib import Path
from types import ModuleType
from typing import Any, cast

from todo_compile.errors import ModelError
from todo_compile.foreign import MAX_BYTES, ForeignError, check_inside, check_regular, read_object

INDEX = "model_index.json"
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,99}")
_LIBRARIES = ("diffusers", "transformers")
_ORIGIN = "The folder may have been tampered with; get the model from its origin."
# Keys that make a library import code, from the folder or from the hub.
_CODE = ("auto_map", "custom_pipelines", "custom_generate", "use_kernels")
_ATTENTION = ("attn_implementation", "_attn_implementation", "_attn_implementation_internal")
_PLAIN_ATTENTION = (None, "eager", "sdpa", "flash_attention_2", "flash_attention_3")
# Paths from the machine where it was saved, which transformers keeps and does not read.
_UNREAD = ("special_tokens_map_file",)
_MAX_TOKENIZER = 64 * 2**20
_MOST_TIMES = 100_000
_WEIGHTS = (".safetensors", ".bin", ".ckpt", ".pt", ".pth", ".msgpack", ".h5", ".gguf")
"""Files that may be links to wherever there is room; pickles are refused by whoever would read."""


def read_index(folder: Path) -> dict[str, Any]:
    """``model_index.json`` of a pipeline's folder, checked; empty if there is none.

    Raises:
        ModelError: it cannot be read, or names anything but classes of diffusers and transformers.
    """
    path = folder / INDEX
    if not path.exists():
        return {}
    try:
        values = read_object(path, within=folder)
    except (OSError, ForeignError) as error:
        raise ModelError(
            f"{path} cannot be read as JSON: {error}.",
            remedy="Download or save the model again.",
        ) from error
    check_index(values, path)
    return values


def check_index(values: Mapping[str, Any], path: Path) -> None:
    """Refuse an index by which a library would import what is not its own.

    Args:
        values: the index.
        path: of it, for messages.

    Raises:
        ModelError: a class is no plain name, or one that its library does not have; a library is
            neither diffusers, a pipeline's part of it, nor transformers.
    """
    pipeline = values.get("_class_name")
    if pipeline is not None and not (_plain(pipeline) and _has("diffusers", str(pipeline))):
        raise _refused(path, "_class_name", pipeline, "which is no pipeline of diffusers")
    for name, value in values.items():
        if isinstance(value, dict):
            raise _refused(path, name, value, "which is no class")
        if not isinstance(value, list):
            continue  # a setting
        items = cast("list[object]", value)
        if items == [None, None]:
            continue  # a part that the pipeline does without
        if len(items) != 2 or not all(map(_plain, items)):
            raise _refused(path, name, items, "which are no library and class")
        library, found = map(str, items)
        if not _has(library, found):
            raise _refused(path, name, items, "which neither diffusers nor transformers has")


def read_scheduler(path: Path) -> dict[str, Any]:
    """A ``scheduler_config.json``, checked.

    Raises:
        ForeignError: it is damaged, or describes tables that would take the memory.
        OSError: it cannot be read.
    """
    values = read_object(path, within=path.parent)
    times = values.get("num_train_timesteps", 1)
    if type(times) is not int or not 1 <= times <= _MOST_TIMES:
        raise ForeignError(f"num_train_timesteps is {str(times)[:20]}")
    return values


def check_folder(folder: Path) -> None:
    """Check all that a pipeline's loader would read of a folder besides weights.

    Raises:
        ModelError: as `read_index`; a file leads out of the folder or is damaged; a configuration
            asks for code or for files elsewhere.
    """
    index = read_index(folder)
    for name, value in index.items():
        if not isinstance(value, list) or not (folder / name).is_dir():
            continue
        check_part(folder / name, folder)


def check_part(folder: Path, within: Path) -> None:
    """Check the folder of a tokenizer or another part before its library reads it.

    Args:
        folder: of the part.
        within: the pipeline's or bundle's folder.

    Raises:
        ModelError: as `check_folder`.
    """
    for path in sorted(folder.iterdir() if folder.is_dir() else ()):
        if path.exists() and not path.is_dir():
            _check_file(path, within)


def _check_file(path: Path, within: Path) -> None:
    try:
        if not path.name.endswith("config.json"):
            # Vocabularies, shard indices and weights are read by their libraries.
            if path.suffix not in _WEIGHTS:
                check_inside(path, within)
            check_regular(path)
            return
        most = _MAX_TOKENIZER if path.name == "tokenizer_config.json" else MAX_BYTES
        values = read_object(path, most, within=within)
    except (OSError, ForeignError) as error:
        raise ModelError(
            f"{path} cannot be read: {error}.",
            remedy="Download or save the model again.",
        ) from error
    for key, value in values.items():
        if key in _CODE and value:
            raise _refused(path, key, value, "which would run code")
        if key in _ATTENTION and value not in _PLAIN_ATTENTION:
            raise _refused(path, key, value, "which would load a kernel")
        elsewhere = key.endswith("_file") and key not in _UNREAD and value is not None
        if elsewhere and not (isinstance(value, str) and Path(value).name == value):
            raise _refused(path, key, value, "which is no file beside it")


@cache
def _names(module: str) -> frozenset[str]:
    """What an imported module has."""
    return frozenset(dir(sys.modules[module]))  # transformers takes half a second to make it


def pipeline_module(library: str) -> Any:
    """The folder of diffusers' pipelines that an index calls a library; None if there is none."""
    from diffusers import pipelines

    if library in dir(pipelines):
        return getattr(pipelines, library)
    # Those that diffusers no longer cares for: unclip, wuerstchen.
    found = getattr(getattr(pipelines, "deprecated", None), library, None)
    return found if isinstance(found, ModuleType) else None


def _plain(name: object) -> bool:
    return isinstance(name, str) and _NAME.fullmatch(name) is not None


def _has(library: str, name: str) -> bool:
    """Whether `library` itself has the class `name`; nothing but the two libraries is imported."""
    try:
        import diffusers
    except ImportError:
        return library in _LIBRARIES  # without it nothing can be loaded either
    if library == "diffusers":
        return name in _names(diffusers.__name__)
    module = pipeline_module(library)
    if module is not None:  # stable_diffusion has the safety checker
        return name in _names(module.__name__)
    if library != "transformers":
        return False
    try:
        import transformers
    except ImportError:
        return True
    # diffusers takes an image processor for the feature extractor that older folders name.
    if any(
        found in _names(transformers.__name__)
        for found in (name, name.replace("FeatureExtractor", "ImageProcessor"))
    ):
        return True
    # What it was called before: transformers 5 still has T5TokenizerFast, but lists it no longer.
    with suppress(ImportError):
        return isclass(getattr(transformers, name, None))
    return False


def _refused(path: Path, key: str, value: object, why: str) -> ModelError:
    return ModelError(f"{path}: {key} is {value!r:.80}, {why}; it is refused.", remedy=_ORIGIN)
