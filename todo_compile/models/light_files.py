"""The light files of a pipeline that a bundle takes along: tokenizers, scheduler, configurations.

They are read from the pipeline's folder or hub snapshot. For a registered model without one (random
weights, no network) what is built in stands in for it; a tokenizer's vocabulary is not built in.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from todo_compile.errors import ModelError
from todo_compile.foreign import ForeignError, parse_object, read_bytes
from todo_compile.models import hub
from todo_compile.models.builtin import SCHEDULERS
from todo_compile.models.components import pipeline_folder
from todo_compile.models.source import Source

_SINGLE = (
    "model_index.json",
    "scheduler/scheduler_config.json",
    "feature_extractor/preprocessor_config.json",
)
_FOLDERS = ("tokenizer", "tokenizer_2", "tokenizer_3", "tokenizer_4")
# Data only: no weights, and nothing that could be imported; transformers renders templates of chats
# in a sandbox.
LIGHT = (".json", ".txt", ".model", ".jinja")
_MAX_BYTES = 64 * 2**20


def light_files(
    sources: Mapping[str, Source], *, fetch: bool, torch: Sequence[str] = ()
) -> dict[str, bytes]:
    """Content of the light files by name (``tokenizer/vocab.json``), for the parts in `sources`.

    Args:
        sources: the bundle's components by name, the denoising model first.
        fetch: download from the hub what is not in its cache.
        torch: parts that are not compiled, whose configurations are wanted.

    Raises:
        ModelError: a file cannot be read or is far too large, or the hub cannot be reached.
    """
    main = next(iter(sources.values()))
    found: dict[str, bytes] = {}
    root = _root(main, fetch)
    if root is not None:
        more = [root / name / "config.json" for name in torch]
        for path in (*_wanted(root), *(path for path in more if path.is_file())):
            found[path.relative_to(root).as_posix()] = _read(path, root)
    if main.file is not None:
        found = {name: data for name, data in found.items() if name.startswith(_FOLDERS)}
        found["scheduler/scheduler_config.json"] = _json(main.file.scheduler)
    if main.entry is not None and main.entry.name in SCHEDULERS:
        found.setdefault("scheduler/scheduler_config.json", _json(SCHEDULERS[main.entry.name]))
    for source in sources.values():
        found.setdefault(f"{source.subfolder}/config.json", _json(source.config))
    if "scheduler/scheduler_config.json" in found:
        index = _index(main.pipeline, sources, found)
        index |= main.file.family.settings if main.file is not None else {}
        found.setdefault("model_index.json", _json(index))
    return dict(sorted(found.items()))


def _root(source: Source, fetch: bool) -> Path | None:
    if source.folder is not None:
        return pipeline_folder(source)
    if source.file is not None:  # vocabularies that lie in the hub cache by chance
        snapshots = (hub.cached_snapshot(h, f"{_FOLDERS[0]}/vocab.json") for h in source.hub_ids)
        return next((snapshot for snapshot in snapshots if snapshot is not None), None)
    folders = [hub.cached_folder(hub_id, source.subfolder) for hub_id in source.hub_ids]
    root = next((folder.parent for folder in folders if folder is not None), None)
    if fetch and (root is None or not (root / "tokenizer").is_dir()):
        patterns = [*_SINGLE, *(f"{name}/*{end}" for name in _FOLDERS for end in LIGHT)]
        return hub.download(source.hub_ids[0], patterns)
    return root


def _wanted(root: Path) -> Iterable[Path]:
    yield from (root / name for name in _SINGLE if (root / name).is_file())
    yield from sorted(root.glob("*_scheduler/scheduler_config.json"))
    for name in _FOLDERS:
        if (root / name).is_dir():
            files = sorted((root / name).iterdir())
            yield from (f for f in files if f.suffix in LIGHT and f.is_file())


def _read(path: Path, root: Path) -> bytes:
    try:
        return read_bytes(path, _MAX_BYTES, within=root)
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error.strerror}.") from error
    except ForeignError as error:
        raise ModelError(
            f"{error}; it cannot be a part of a tokenizer or a configuration.",
            remedy="Move it out of the pipeline's folder.",
        ) from error


def _index(
    pipeline: str, sources: Mapping[str, Source], found: Mapping[str, bytes]
) -> dict[str, Any]:
    """A ``model_index.json`` for a pipeline that came without one."""
    name = "scheduler/scheduler_config.json"
    try:
        scheduler = parse_object(found[name]).get("_class_name")
    except ForeignError as error:
        raise ModelError(
            f"{name} is damaged: {error}.", remedy="Download or save the model again."
        ) from error
    index: dict[str, Any] = {
        "_class_name": pipeline,
        "scheduler": ["diffusers", scheduler],
    }
    for source in sources.values():
        text = source.component.startswith("text_encoder")
        library = "transformers" if text else "diffusers"
        index[source.subfolder] = [library, source.class_name]
        if text:
            tokenizer = source.component.replace("text_encoder", "tokenizer")
            index[tokenizer] = ["transformers", "CLIPTokenizer"]
    if pipeline == "StableDiffusionPipeline":
        index |= {"safety_checker": [None, None], "feature_extractor": [None, None]}
        index["requires_safety_checker"] = False
    return index


def _json(values: Mapping[str, Any]) -> bytes:
    return (json.dumps(dict(values), indent=2, sort_keys=True) + "\n").encode()
