"""Files that take their places together, though the process may be killed half way.

The new files are complete, in a folder beside the places (a stage, or a bundle's parts). What
shall be removed and moved is noted in that folder first, as a journal. Whoever looks for the output
after a kill finds the note and finishes the moves: there is the old output, or the new one.

A note may come with a stranger's folder. It can only move files of its own folder to the folder
around it, and only remove there; neither may be reached through a link.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator

from todo_compile.bundle.entries import Frozen, parse, read_small, relative_name, write
from todo_compile.errors import BundleError

NOTE = ".moves"
_MAX_BYTES = 2**20
_REMEDY = "Build it again with todo-compile."
_Name = Annotated[str, AfterValidator(relative_name)]


class Moves(Frozen):
    """What one output's publication does.

    Attributes:
        remove: names beside the folder: what vouches for the old files first, then old files that
            the new output does not have.
        move: names in the folder, the same beside it; what vouches for others comes last.
    """

    remove: list[_Name]
    move: list[_Name]


def publish(folder: Path, *, remove: Sequence[str], move: Sequence[str]) -> None:
    """Move files from `folder` to the folder around it, all of them in the end.

    The files must be complete and on the disk. The caller keeps other processes out.

    Raises:
        OSError: a file cannot be moved; the note stays, and `finish` goes on later.
    """
    if len(move) > 1 or remove:
        write(Moves(remove=list(remove), move=list(move)), folder / f"{NOTE}.new")
        os.replace(folder / f"{NOTE}.new", folder / NOTE)
        flush_folder(folder)
    _carry_out(folder, remove, move)


def is_unfinished(folder: Path) -> bool:
    """Whether `folder` holds files whose moves were begun and not ended."""
    # os.path: False for names that cannot be, too.
    return os.path.isfile(folder / NOTE) and not folder.is_symlink()


def finish(folder: Path) -> None:
    """End the moves that a killed process began, if one did. The caller keeps other processes out.

    Raises:
        BundleError: the note is damaged, or a link leads out of the folder; nothing was moved.
        OSError: a file cannot be moved.
    """
    if not is_unfinished(folder):
        return
    note = folder / NOTE
    moves = parse(Moves, read_small(note, _MAX_BYTES, remedy=_REMEDY), note, remedy=_REMEDY)
    home = folder.parent
    for name in (*moves.remove, *moves.move):
        for path in (home / name, folder / name):
            link = next((p for p in path.parents if home in p.parents and p.is_symlink()), None)
            if link is not None:
                raise BundleError(
                    f"{link} is a link, and nothing is moved through links.", remedy=_REMEDY
                )
    _carry_out(folder, moves.remove, moves.move)


def _carry_out(folder: Path, remove: Sequence[str], move: Sequence[str]) -> None:
    home = folder.parent
    for name in remove:
        # What was moved already is new, and stays.
        if name not in move or os.path.lexists(folder / name):
            (home / name).unlink(missing_ok=True)
    for name in move:
        if os.path.lexists(folder / name):
            (home / name).parent.mkdir(parents=True, exist_ok=True)
            os.replace(folder / name, home / name)
    for changed in dict.fromkeys((home / name).parent for name in move):
        flush_folder(changed)
    (folder / NOTE).unlink(missing_ok=True)


def flush_folder(folder: Path) -> None:
    """Make the renames themselves durable; Windows has no such call and needs none."""
    if os.name == "nt":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
