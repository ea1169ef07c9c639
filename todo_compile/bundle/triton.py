"""Model repositories for Triton Inference Server, of outputs that are built.

    repository/
      NAME-unet/config.pbtxt         a model for each output, ONNX or classic TensorRT
      NAME-unet/1/unet.onnx          (links, where the file system has them)
      NAME/config.pbtxt              of a bundle: the whole pipeline, which calls the other models
      NAME/1/model.py
      NAME/1/bundle/                 its description, tokenizers, scheduler, …

Batches are not put together by the server (``max_batch_size: 0``): a timestep has no batch. Scalars
are [1] in a configuration: onnxruntime's backend takes them so, TensorRT's by a reshape (the
sources of both).
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from todo_compile.bundle.bundle import (
    BUNDLE_JSON,
    check_bundle,
    component_manifest,
    is_bundle,
    read_bundle,
)
from todo_compile.bundle.description import Bundle
from todo_compile.bundle.manifest import Manifest, check_files, manifest_path, read
from todo_compile.bundle.tensors import Tensor
from todo_compile.disk import disk_errors
from todo_compile.errors import BundleError, ConfigError

PARTS = "bundle"
"""Folder of a pipeline's description in its version."""
_BACKENDS = {"onnx": "onnxruntime_onnx", "tensorrt": "tensorrt_plan"}
_TYPES = {
    "float32": "TYPE_FP32",
    "float16": "TYPE_FP16",
    "bfloat16": "TYPE_BF16",
    "int64": "TYPE_INT64",
    "int32": "TYPE_INT32",
    "bool": "TYPE_BOOL",
}
_MODEL = '''"""The pipeline of a bundle; its parts are models of this server.

Its environment needs todo-compile[generate].
"""

from todo_compile.runtime.triton import TritonPythonModel

__all__ = ["TritonPythonModel"]
'''
# (name, type, dims, optional) of the pipeline's model.
_ASKED = (
    ("prompt", "TYPE_STRING", 1, False),
    ("negative_prompt", "TYPE_STRING", 1, True),
    ("steps", "TYPE_INT32", 1, True),
    ("guidance", "TYPE_FP32", 1, True),
    ("seed", "TYPE_INT64", 1, True),
    ("width", "TYPE_INT32", 1, True),
    ("height", "TYPE_INT32", 1, True),
)


@dataclass(frozen=True)
class Model:
    """A model of the repository.

    Attributes:
        name: in the server.
        config: its ``config.pbtxt``.
        files: name in its version → file.
        texts: name in its version → content.
    """

    name: str
    config: str
    files: Mapping[str, Path]
    texts: Mapping[str, str]


def served_name(prefix: str, file: str) -> str:
    """What the model of an output is called in the server."""
    stem = file.rpartition(".")[0]
    return f"{prefix}-{re.sub(r'[^A-Za-z0-9_-]+', '-', stem)}"


def models_of(path: Path, name: str | None = None) -> list[Model]:
    """The models of a bundle or of one output, the pipeline last.

    Args:
        path: a bundle's folder, an ONNX file or an engine.
        name: begins all names; None takes the folder's, or the file's.

    Raises:
        BundleError: it is damaged.
        ConfigError: Triton has no backend for it, or the name cannot be one.
    """
    name = _name(path, name)
    if not is_bundle(path):
        manifest = read(path)
        if wrong := check_files(manifest, path.parent):
            raise BundleError(f"{path} is damaged: {'; '.join(wrong)}.", remedy="Build it again.")
        return [_output(name, path, manifest)]
    bundle = read_bundle(path)
    if wrong := check_bundle(bundle, path):
        raise BundleError(f"{path} is damaged: {'; '.join(wrong)}.", remedy="Build it again.")
    found: dict[str, Model] = {}
    for component, entry in bundle.entries():
        manifest = component_manifest(path, component, entry)
        served = served_name(name, entry.file)
        found[served] = _output(served, path / entry.file, manifest)
    return [*found.values(), _pipeline(name, path, bundle)]


def _name(path: Path, name: str | None) -> str:
    found = name or path.resolve().stem
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}", found):
        raise ConfigError(
            f"{found!r} cannot be the name of a model in Triton.",
            remedy="Give one of letters, digits, _ and -: --name sd15-1024",
        )
    return found


def _output(name: str, path: Path, manifest: Manifest) -> Model:
    library = (manifest.library or "").partition(" ")[0]
    if library not in ("", "tensorrt"):
        called = "an AOTInductor package" if manifest.packaged else "an engine of TensorRT for RTX"
        raise ConfigError(
            f"{path.name} is {called}, which Triton has no backend for.",
            remedy="Build it as ONNX (a bundle: --format onnx), or with --library tensorrt on the "
            "GPU that will serve it.",
        )
    kind = "tensorrt" if library else "onnx"
    lines = [
        f"# {manifest.model.get('name')}, {manifest.model.get('class')}"
        f" at {manifest.model.get('resolution', 'its example inputs')}, by todo-compile"[:200],
        f'name: "{name}"',
        f'platform: "{_BACKENDS[kind]}"',
        "max_batch_size: 0",
        f'default_model_filename: "{path.name}"',
        *_tensors("input", manifest.inputs, kind),
        *_tensors("output", manifest.outputs, kind),
    ]
    files = {entry.name: path.with_name(entry.name) for entry in manifest.files}
    return Model(name, "\n".join(lines) + "\n", files, {})


def _tensors(what: str, tensors: Sequence[Tensor], kind: str) -> Iterator[str]:
    for tensor in tensors:
        if tensor.dtype not in _TYPES:
            raise ConfigError(
                f"Triton has no type for {tensor.name}, {tensor.dtype}.", remedy="Report it."
            )
        dims = ", ".join(map(str, tensor.shape)) or "1"
        scalar = "\n  reshape: { shape: [ ] }" if not tensor.shape and kind == "tensorrt" else ""
        yield (
            f'{what} {{\n  name: "{tensor.name}"\n  data_type: {_TYPES[tensor.dtype]}\n'
            f"  dims: [ {dims} ]{scalar}\n}}"
        )


def _pipeline(name: str, path: Path, bundle: Bundle) -> Model:
    lines = [
        f"# A picture for a prompt: {bundle.pipeline_class} at {', '.join(bundle.resolutions)}",
        f'name: "{name}"',
        'backend: "python"',
        "max_batch_size: 0",
    ]
    for asked, kind, dims, optional in _ASKED:
        more = "\n  optional: true" if optional else ""
        lines.append(
            f'input {{\n  name: "{asked}"\n  data_type: {kind}\n  dims: [ {dims} ]{more}\n}}'
        )
    lines.append(
        'output {\n  name: "images"\n  data_type: TYPE_UINT8\n  dims: [ -1, -1, -1, 3 ]\n}'
    )
    lines.append("instance_group { kind: KIND_CPU count: 1 }")
    names = [BUNDLE_JSON, *(one.name for one in bundle.loose())]
    names += [manifest_path(Path(entry.file)).name for _, entry in bundle.entries()]
    files = {f"{PARTS}/{one}": path / one for one in names}
    return Model(name, "\n".join(lines) + "\n", files, {"model.py": _MODEL})


def write_repository(models: Sequence[Model], repository: Path) -> list[Path]:
    """Write models into a repository, which may hold others; each is there whole or not at all.

    Returns:
        Their folders, in the order of `models`.

    Raises:
        ConfigError: one of them is there already, or the place is no folder.
        BundleError: the disk is full, or the folder cannot be written.
    """
    if repository.exists() and not repository.is_dir():
        raise ConfigError(f"{repository} is no folder.", remedy="Name another --out.")
    if taken := [m.name for m in models if (repository / m.name).exists()]:
        raise ConfigError(
            f"{repository} has {', '.join(taken)} already.",
            remedy="Remove it first, or choose another --name.",
        )
    with disk_errors(repository / models[-1].name):
        repository.mkdir(parents=True, exist_ok=True)
        stage = repository / f".{models[-1].name}.tmp-{os.getpid()}"
        try:
            for model in models:
                _write(model, stage / model.name)
            # A server that looks now finds a pipeline only when its parts are there.
            for model in models:
                os.replace(stage / model.name, repository / model.name)
        finally:
            shutil.rmtree(stage, ignore_errors=True)
    return [repository / model.name for model in models]


def _write(model: Model, folder: Path) -> None:
    version = folder / "1"
    version.mkdir(parents=True)
    for name, source in model.files.items():
        target = version / name
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(source, target)
        except OSError:  # another file system, or one without links
            shutil.copyfile(source, target)
    for name, text in model.texts.items():
        (version / name).write_text(text, encoding="utf-8")
    (folder / "config.pbtxt").write_text(model.config, encoding="utf-8")
