"""The one gate for data that others wrote: what is read, how much of it, and how it is shown.

Model folders, bundles, LoRAs and build files come from strangers. Whoever reads JSON or YAML reads
it here: from regular files only (a FIFO would block, a device has no end), inside the folder that
they belong to, up to a size, a depth and a number of values, without doubled keys, infinities or
numbers that no field of ours could mean. What is wrong is a `ForeignError`; each reader makes it an
error of its own, with a remedy.
"""

from __future__ import annotations

import json
import math
import os
import re
import stat
from collections.abc import Generator
from contextlib import contextmanager
from io import BufferedReader
from pathlib import Path
from typing import Any, cast

MAX_BYTES = 2**20
"""Of a configuration: the largest known (a processor's) has 30 kB."""
MAX_DEPTH = 32
MAX_VALUES = 2**20
_MAX_DIGITS = 20  # 2⁶⁴ has as many: what is larger counts nothing

_MAX_BITS = 1024

# What would steer a terminal or reorder a line, and halves of characters, which cannot be written.
_UNPRINTABLE = re.compile(
    r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff\ud800-\udfff]"
)


class ForeignError(ValueError):
    """What is wrong with foreign data, a clause without a full stop."""


def printable(text: str) -> str:
    r"""`text` with what a terminal would obey written out: ESC becomes ``\u001b``.

    Line breaks and tabs stay. JSON that was dumped with its characters as they are stays JSON.
    """
    return _UNPRINTABLE.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def spelled(value: object) -> str:
    """`value` as text; of a whole number that Python would not write out, how long it is."""
    if isinstance(value, int) and value.bit_length() > _MAX_BITS:
        return f"a number of {value.bit_length()} bits"
    return str(value)


@contextmanager
def open_regular(path: Path) -> Generator[BufferedReader]:
    """Open a file for reading if it is a regular one, or a link to one; never waits.

    Raises:
        ForeignError: it is a FIFO, a device, a socket.
        OSError: absent, a folder, not readable.
    """
    # Asked before it is opened, since opening alone sets some devices going; and again after, since
    # it may have been exchanged. Without blocking a FIFO opens at once.
    check_regular(path)
    handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    with os.fdopen(handle, "rb") as file:
        _check_regular(path, os.fstat(handle).st_mode)
        yield file


def check_regular(path: Path) -> None:
    """Refuse what is no regular file, nor a link to one, before somebody else opens it.

    Raises:
        ForeignError: it is a FIFO, a device, a socket, a folder.
        OSError: absent.
    """
    _check_regular(path, path.stat().st_mode)


def _check_regular(path: Path, mode: int) -> None:
    if stat.S_ISDIR(mode):
        raise ForeignError(f"{path} is a folder, not a file")
    if not stat.S_ISREG(mode):
        raise ForeignError(f"{path} is no regular file")


def check_inside(path: Path, folder: Path) -> None:
    """Refuse a path that a link leads out of `folder`.

    A hub cache keeps a snapshot's files as links to ``blobs`` beside ``snapshots``: there the
    repository's whole folder counts.

    Raises:
        ForeignError: it does.
        OSError: the path goes in circles.
    """
    home = folder.resolve()
    places = [home]
    # …/models--org--name/snapshots/REVISION[/component]
    places += [
        above.parents[1]
        for above in (home, home.parent)
        if above.parent.name == "snapshots" and above.parents[1].name.startswith("models--")
    ]
    real = path.resolve()
    if not any(real.is_relative_to(place) for place in places):
        raise ForeignError(f"{path} is a link that leads out of {folder}")


def read_bytes(path: Path, most: int = MAX_BYTES, *, within: Path | None = None) -> bytes:
    """The content of a regular file of at most `most` bytes.

    Args:
        path: the file.
        most: bytes.
        within: the folder that it must lie in, links followed.

    Raises:
        ForeignError: larger, no regular file, or outside.
        OSError: absent or not readable.
    """
    if within is not None:
        check_inside(path, within)
    with open_regular(path) as file:
        data = file.read(most + 1)
    if len(data) > most:
        raise ForeignError(f"{path.name} is too large: it has more than {most:,} bytes")
    return data


def parse_json(data: bytes | str) -> Any:
    """JSON within the bounds of this module.

    Raises:
        ForeignError: not UTF-8, not JSON, too deep, too many values, a key given twice, a number
            that is not finite or has more than 20 digits, half a character.
    """
    try:
        text = data if isinstance(data, str) else data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ForeignError(f"it is not UTF-8 text: {error}") from error
    # Every value but the first follows one of these; those in texts count too, which does no harm.
    if sum(map(text.count, ",[{")) > MAX_VALUES:
        raise ForeignError(f"it has more than {MAX_VALUES:,} values")
    try:
        value = json.loads(
            text,
            object_pairs_hook=_object,
            parse_constant=_constant,
            parse_float=_float,
            parse_int=_int,
        )
    except RecursionError as error:
        raise ForeignError("it is nested too deeply") from error
    except ForeignError:
        raise
    except ValueError as error:
        raise ForeignError(f"it is not JSON: {error}") from error
    _check_tree(value)
    return value


def parse_object(data: bytes | str) -> dict[str, Any]:
    """As `parse_json`, of an object.

    Raises:
        ForeignError: as `parse_json`, or it is something else.
    """
    value = parse_json(data)
    if not isinstance(value, dict):
        raise ForeignError("it is no object")
    return cast("dict[str, Any]", value)


def read_object(path: Path, most: int = MAX_BYTES, *, within: Path | None = None) -> dict[str, Any]:
    """A JSON object in a file: `read_bytes` and `parse_object`.

    Raises:
        ForeignError, OSError: as these.
    """
    return parse_object(read_bytes(path, most, within=within))


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))
        raise ForeignError(f"the key {twice!r:.60} is given twice")
    return found


def _constant(text: str) -> Any:
    raise ForeignError(f"{text} is no number")


def _float(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ForeignError(f"{text:.30} is no finite number")
    return value


def _int(text: str) -> int:
    if len(text.lstrip("-")) > _MAX_DIGITS:
        raise ForeignError(f"{text:.30}… is too large a number")
    return int(text)


def _check_tree(value: object) -> None:
    """Depth and texts; without recursion, since depth is what is looked for."""
    level: list[object] = [value]
    for _ in range(MAX_DEPTH):
        below: list[object] = []
        for one in level:
            if isinstance(one, dict):
                items = cast("dict[str, object]", one)
                below += [*items.keys(), *items.values()]
            elif isinstance(one, list):
                below += cast("list[object]", one)
            elif isinstance(one, str) and not one.isascii() and _halved(one):
                raise ForeignError("a text in it has half a character")
        if not below:
            return
        level = below
    raise ForeignError("it is nested too deeply")


def _halved(text: str) -> bool:
    return any("\ud800" <= character <= "\udfff" for character in text)
