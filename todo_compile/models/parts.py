"""What a pipeline is made of, as ``model_index.json`` and the parts' configurations say.

    model_index.json   {"_class_name": "FluxPipeline", "transformer": ["diffusers", "Flux…"], …}
    NAME/config.json, scheduler/scheduler_config.json, tokenizer/tokenizer_config.json

A registered pipeline has the same in one file of `todo_compile/models/known/`. No weights are
looked at.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from todo_compile.errors import ModelError
from todo_compile.foreign import ForeignError, read_object
from todo_compile.models import hub
from todo_compile.models.bounds import check_config
from todo_compile.models.registry import known_parts
from todo_compile.models.trust import INDEX, check_folder, read_index

if TYPE_CHECKING:
    from todo_compile.models.source import Source

_FILES = ("config.json", "scheduler_config.json", "tokenizer_config.json")
_MAX_TOKENIZER = 64 * 2**20
_MAX_LENGTH = 2**15  # a tokenizer that says more knows no bound


@dataclass(frozen=True)
class Part:
    """One part of a pipeline.

    Attributes:
        library: ``diffusers``, ``transformers``, or a folder of diffusers' pipelines.
        name: its class.
        config: as in its file; empty if it has none.
    """

    library: str
    name: str
    config: Mapping[str, Any] = field(hash=False, repr=False)


@dataclass(frozen=True)
class Parts:
    """A pipeline's class and parts.

    Attributes:
        pipeline: its class in diffusers.
        settings: what else its constructor takes.
        parts: by name; None for one that this pipeline does without.
        frames: of the video that it is asked for; None for what it draws when it is not told.
    """

    pipeline: str
    settings: Mapping[str, Any] = field(hash=False)
    parts: Mapping[str, Part | None] = field(hash=False)
    frames: int | None = None

    @property
    def text(self) -> str:
        """All of it in one line: equal for equal pipelines."""
        parts = {
            k: None if p is None else [p.library, p.name, dict(p.config)]
            for k, p in self.parts.items()
        }
        return json.dumps(
            [self.pipeline, dict(self.settings), parts, self.frames], sort_keys=True, default=str
        )


def parts_of(source: Source) -> Parts | None:
    """The parts of the pipeline that a denoising model belongs to; None if nothing says so.

    Raises:
        ModelError: as `read_parts`.
    """
    if source.entry is not None and source.entry.pipeline:
        return read_known(source.entry.name)
    if source.folder is not None:
        inside = source.folder.name == source.component
        return read_parts(source.folder.parent if inside else source.folder)
    if source.kind == "hub":
        return fetch_parts(source.hub_ids[0])
    return None


def read_known(name: str) -> Parts:
    """The parts of a registered pipeline."""
    found = known_parts(name)
    return _parts(found["index"], found["parts"])


def read_parts(root: Path) -> Parts | None:
    """The parts of the pipeline in the folder `root`; None if it has no ``model_index.json``.

    Raises:
        ModelError: a file cannot be read, asks for code, or describes nothing that can be made.
    """
    if not (root / INDEX).is_file():
        return None
    check_folder(root)
    index = read_index(root)
    configs: dict[str, Any] = {}
    for name, value in index.items():
        if not isinstance(value, list):
            continue
        path = next((p for f in _FILES if (p := root / name / f).is_file()), None)
        if path is not None:
            configs[name] = _read(path, root)
    return _parts(index, configs)


def fetch_parts(hub_id: str) -> Parts | None:
    """The same of a hub repository, from the cache or the hub."""
    root = hub.download(hub_id, [INDEX, *(f"*/{name}" for name in _FILES)])
    return read_parts(root)


def _parts(index: Mapping[str, Any], configs: Mapping[str, Any]) -> Parts:
    found: dict[str, Part | None] = {}
    for name, value in index.items():
        if isinstance(value, list):
            library, class_name = cast("list[Any]", value)
            config = dict(configs.get(name, {}))
            if "tokenizer" not in name:
                check_config(config, f"{name}/config.json")
            found[name] = None if library is None else Part(str(library), str(class_name), config)
    settings = {k: v for k, v in index.items() if not isinstance(v, list) and not k.startswith("_")}
    return Parts(str(index.get("_class_name", "")), settings, found)


def token_limit(part: Part) -> int | None:
    """Most tokens that a tokenizer gives, as its configuration says."""
    value = part.config.get("model_max_length")
    return value if isinstance(value, int) and 0 < value <= _MAX_LENGTH else None


def _read(path: Path, root: Path) -> dict[str, Any]:
    try:
        most = _MAX_TOKENIZER if path.name == "tokenizer_config.json" else None
        return (
            read_object(path, within=root) if most is None else read_object(path, most, within=root)
        )
    except (OSError, ForeignError) as error:
        raise ModelError(
            f"{path} cannot be read as JSON: {error}.",
            remedy="Download or save the model again.",
        ) from error
