"""A bundle: the components of a pipeline in one folder, described by one ``bundle.json``.

Every component is an ordinary output (model file, manifest, perhaps a weights' file); the bundle
names its file and the hash of its manifest, and the manifest has the hashes of the files. So
``bundle.json`` vouches for everything, and since it is written last, a build that is killed leaves
a folder that is refused, never one that is half old and half new. Beside the components lie the
light files that a pipeline needs (tokenizer, scheduler, configurations), in diffusers' places.

Nothing in a bundle is unpickled, and nothing in it can name a file outside of it.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from pathlib import Path

from todo_compile.bundle import moves
from todo_compile.bundle.alone import only_one
from todo_compile.bundle.description import Bundle, ComponentEntry, ComponentName
from todo_compile.bundle.entries import parse, read_small, relative_name, wrong_files
from todo_compile.bundle.manifest import MAX_BYTES, Manifest, manifest_path
from todo_compile.bundle.manifest import parse as parse_manifest
from todo_compile.disk import disk_errors, format_bytes
from todo_compile.errors import BundleError, given_path

BUNDLE_JSON = "bundle.json"
PARTS = ".parts"
_REBUILD = "Build the bundle again with todo-compile."
_MAX_BYTES = 2**20


def is_bundle(folder: Path) -> bool:
    """Whether `folder` says of itself that it is a bundle, or that it was just becoming one."""
    return os.path.isfile(folder / BUNDLE_JSON) or moves.is_unfinished(folder / PARTS)


def _finish_moves(folder: Path) -> None:
    """End what a build began that was killed while its files took their places.

    Raises:
        BundleError: another process is at it, or the files cannot be moved.
    """
    parts = folder / PARTS
    if moves.is_unfinished(parts):
        with only_one(folder), disk_errors(folder / BUNDLE_JSON):
            moves.finish(parts)  # unless another process did it meanwhile
            shutil.rmtree(parts, ignore_errors=True)


def inside(folder: Path, name: str) -> Path:
    """The path of `name` in `folder`.

    Raises:
        BundleError: it leads out of the folder, by its name or by a link.
    """
    try:
        path = folder / relative_name(name)
    except ValueError as error:
        raise BundleError(f"{folder}: {error}.", remedy=_REBUILD) from error
    # A link is resolved, and so is the folder, which may itself be reached through one.
    if not path.resolve().is_relative_to(folder.resolve()):
        raise BundleError(f"{path} is a link that leads out of the bundle.", remedy=_REBUILD)
    return path


def read_bundle(folder: Path) -> Bundle:
    """Read ``bundle.json``; looks at no other file (see `check_bundle`).

    If a build was killed while the new files took their places, the rest are moved first.

    Args:
        folder: the bundle, or its ``bundle.json``.

    Raises:
        BundleError: there is none, or it is damaged, of another version, or names a file outside.
        ConfigError: `folder` is no path, or longer than a file system takes.
    """
    folder = given_path(folder, "the bundle's path")
    folder = folder.parent if folder.name == BUNDLE_JSON else folder
    path = folder / BUNDLE_JSON
    _finish_moves(folder)
    if not os.path.exists(path):
        raise BundleError(
            f"{folder} is not a finished bundle: it has no {BUNDLE_JSON}, which is written last.",
            remedy=_REBUILD,
        )
    inside(folder, BUNDLE_JSON)
    data = read_small(path, _MAX_BYTES, remedy=_REBUILD)
    bundle = parse(Bundle, data, path, remedy=_REBUILD)
    for _, entry in bundle.entries():
        inside(folder, entry.file)
    for file in bundle.loose():
        inside(folder, file.name)
    return bundle


def component_manifest(folder: Path, component: ComponentName, entry: ComponentEntry) -> Manifest:
    """The manifest of a component, if it is the one that the bundle was finished with.

    The bytes that are parsed are the bytes that were hashed.

    Raises:
        BundleError: absent, changed, damaged, or another component's.
    """
    path = inside(folder, manifest_path(Path(entry.file)).name)
    if not path.is_file():
        raise BundleError(f"{path.name} is missing.", remedy=_REBUILD)
    data = read_small(path, MAX_BYTES, remedy=_REBUILD)
    if hashlib.sha256(data).hexdigest() != entry.manifest_sha256:
        raise BundleError(
            f"{path.name} is not the manifest that the bundle was finished with.",
            remedy=_REBUILD,
        )
    manifest = parse_manifest(data, path)
    if manifest.model.get("component") != component:
        raise BundleError(
            f"{entry.file} is a {manifest.model.get('component')}, not a {component}.",
            remedy=_REBUILD,
        )
    if all(file.name != entry.file for file in manifest.files):
        raise BundleError(f"{path.name} does not describe {entry.file}.", remedy=_REBUILD)
    for file in manifest.files:
        inside(folder, file.name)
    return manifest


def denoisers(bundle: Bundle, folder: Path) -> list[Manifest]:
    """Manifests of the denoising model in every phase, at the first resolution.

    Raises:
        BundleError: one is absent or changed.
    """
    if (name := bundle.denoiser) is None:
        return []
    entries = [bundle.components[name], *bundle.phases]
    return [component_manifest(folder, name, entry) for entry in entries]


def details(bundle: Bundle, folder: Path) -> list[str]:
    """What its manifests add to `Bundle.summary`: the plan, and what it takes on the disk.

    Raises:
        BundleError: a manifest is absent or changed.
    """
    whole: dict[str, int] = {one.name: one.bytes for one in bundle.light_files}
    plain = dict(whole)
    for size in (bundle, *bundle.sizes):
        for name, entry in size.components.items():
            files = component_manifest(folder, name, entry).files
            plain |= {file.name: file.bytes for file in files}
    whole |= plain
    for component, entry in bundle.entries():
        files = component_manifest(folder, component, entry).files
        whole |= {file.name: file.bytes for file in files}
    total, more = sum(whole.values()), sum(whole.values()) - sum(plain.values())
    later = f", of which later phases {format_bytes(more)}" if bundle.phases else ""
    plan = next((m.plan for m in denoisers(bundle, folder) if m.plan is not None), None)
    every = None if plan is None else range(1, len(plan.starts) + 1)
    return [
        *(plan.lines(every) if plan is not None else ()),
        f"disk           {format_bytes(total)}{later}",
    ]


def check_bundle(
    bundle: Bundle, folder: Path, *, hashes: bool = True, engines: bool = True
) -> list[str]:
    """What is wrong with the files of a bundle; empty if they are intact. Nothing is loaded.

    Sizes come first; files are read only if all sizes are right.

    Args:
        bundle: from `read_bundle`.
        folder: the same folder.
        hashes: read every file and compare its hash; without, names, manifests and sizes alone.
        engines: look at the components' own files; without, at their manifests alone, for who has
            them elsewhere.
    """
    wrong: list[str] = []
    manifests: list[Manifest] = []
    for component, entry in bundle.entries():
        try:
            manifests.append(component_manifest(folder, component, entry))
        except BundleError as error:
            wrong.append(error.message.rstrip("."))
    if not engines:
        manifests = []
    files = [file for manifest in manifests for file in manifest.files]
    for file in bundle.loose():
        try:
            inside(folder, file.name)
        except BundleError as error:
            wrong.append(error.message.rstrip("."))
        else:
            files.append(file)
    # Twins share their weights' file: it is named and read once.
    found = wrong_files(files, folder, hashes=hashes and not wrong)
    return list(dict.fromkeys([*wrong, *found]))
