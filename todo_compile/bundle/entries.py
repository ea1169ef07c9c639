"""Files as manifests and bundles describe them, and how such a description is read and written.

Every file has its size and hash; its name leads nowhere out of the folder of the description.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from todo_compile.disk import disk_errors, flush
from todo_compile.errors import BundleError
from todo_compile.foreign import ForeignError, open_regular, parse_object, read_bytes

FORMAT = 1
"""Version of the layout of manifests and bundles."""
Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


class Frozen(BaseModel):
    """Part of a description: fixed, and with no field that we do not know."""

    model_config = ConfigDict(frozen=True, extra="forbid")


Described = TypeVar("Described", bound=Frozen)


def plain_name(name: str) -> str:
    """A file of the description's own folder: no way out of it, on any system.

    Raises:
        ValueError: it is not.
    """
    if not re.fullmatch(r"[^/\\:\x00]+", name) or name in {".", ".."}:
        raise ValueError(f"{name!r} is not a plain file name")
    return name


def relative_name(name: str) -> str:
    """A file of the description's folder or of a folder in it, with ``/`` on every system.

    Raises:
        ValueError: absolute, with ``.`` or ``..``, or with characters that mean something to a
            file system.
    """
    parts = name.split("/")
    if not 1 <= len(parts) <= 4:
        raise ValueError(f"{name!r} is not a name inside the folder")
    for part in parts:
        plain_name(part)
    return name


class FileEntry(Frozen):
    """One file.

    Attributes:
        name: of the file, without a folder.
        bytes: its size.
        sha256: of its content.
    """

    name: Annotated[str, AfterValidator(plain_name)]
    bytes: Annotated[int, Field(ge=0)]
    sha256: Sha256


def file_entry(path: Path) -> FileEntry:
    """Size and hash of a file."""
    return FileEntry(name=path.name, bytes=path.stat().st_size, sha256=file_sha256(path))


def file_sha256(path: Path) -> str:
    """Hash of a regular file, read in pieces."""
    with open_regular(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def wrong_files(entries: Iterable[FileEntry], folder: Path, *, hashes: bool) -> list[str]:
    """What is wrong with the files in `folder`, a phrase each; empty if they are intact.

    Args:
        entries: the files. One that stands there twice is read once.
        folder: where they lie.
        hashes: read the files, if all sizes are right; without, existence and sizes alone.
    """
    wrong: list[str] = []
    expected: dict[str, str] = {}
    for entry in entries:
        path = folder / entry.name
        expected[entry.name] = entry.sha256
        if not path.is_file():
            wrong.append(f"{entry.name} is missing")
        elif (size := path.stat().st_size) != entry.bytes:
            wrong.append(f"{entry.name} has {size} bytes instead of {entry.bytes}")
    if wrong or not hashes:
        return wrong
    return [
        f"{name} was changed (its hash differs)"
        for name, sha256 in expected.items()
        if file_sha256(folder / name) != sha256
    ]


def read_small(path: Path, most: int, *, remedy: str) -> bytes:
    """The bytes of a description, never more than `most` of them.

    Raises:
        BundleError: absent, unreadable, or larger.
    """
    try:
        return read_bytes(path, most)
    except FileNotFoundError as error:
        raise BundleError(f"{path} does not exist.", remedy=remedy) from error
    except (OSError, ForeignError) as error:
        raise BundleError(f"{path} cannot be read: {error}.", remedy=remedy) from error


def parse(kind: type[Described], data: bytes, path: Path, *, remedy: str) -> Described:
    """The description in `data`, which was read from `path`.

    Raises:
        BundleError: damaged or of another version.
    """
    try:
        values = parse_object(data)
        if values.get("format", FORMAT) != FORMAT:
            raise BundleError(
                f"{path} has format {values['format']}, this version reads {FORMAT}.",
                remedy=remedy,
            )
        return kind.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise BundleError(f"{path} is damaged: {where}: {first['msg']}.", remedy=remedy) from error
    except ForeignError as error:
        raise BundleError(f"{path} is damaged: {error}.", remedy=remedy) from error


def write(description: Frozen, path: Path) -> None:
    """Write a description (into a stage: this is not atomic by itself).

    Raises:
        BundleError: it cannot be written.
    """
    with disk_errors(path):
        path.write_text(description.model_dump_json(indent=1) + "\n", encoding="utf-8")
        flush(path)


def now() -> str:
    """UTC time in ISO form, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")
