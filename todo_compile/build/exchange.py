"""The moment in which a bundle's new files take the old ones' places.

Nothing but the note of `bundle.moves` is written then, and before anything goes.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from todo_compile.build.compiler import CompileResult
from todo_compile.bundle import moves
from todo_compile.bundle.bundle import BUNDLE_JSON
from todo_compile.bundle.files import staged
from todo_compile.bundle.manifest import manifest_path
from todo_compile.errors import BundleError


def exchange(
    folder: Path,
    parts: Path,
    results: Mapping[str, CompileResult],
    others: Sequence[str],
    stale: set[str],
) -> None:
    """See that all new files are there, then put them in their places.

    From the removal of the old ``bundle.json`` to the end there is no bundle; a process that is
    killed meanwhile leaves a note, and whoever looks for the bundle next finishes the moves.

    Args:
        folder: of the bundle.
        parts: where the new ``bundle.json`` and `others` are.
        results: the outputs, here or among the parts.
        others: names of further files.
        stale: names of the old bundle's files; those that are outputs' again stay.

    Raises:
        BundleError: a new file has disappeared; the old bundle stands.
    """
    _refuse_gaps(parts, results, others)
    outputs: list[str] = []
    for result in results.values():
        names = [entry.name for entry in result.manifest.files]
        names.append(manifest_path(result.path).name)
        stale = stale - set(names)
        if result.path.parent != folder:
            outputs += names
    # Weights that outputs share are named twice.
    moves.publish(
        parts,
        remove=[BUNDLE_JSON, *sorted(stale)],
        move=list(dict.fromkeys([*outputs, *others, BUNDLE_JSON])),
    )


def _refuse_gaps(parts: Path, results: Mapping[str, CompileResult], others: Sequence[str]) -> None:
    new = [parts / name for name in (*others, BUNDLE_JSON)]
    for result in results.values():
        names = [entry.name for entry in result.manifest.files]
        new += [result.path.with_name(name) for name in names]
        new.append(manifest_path(result.path))
    if gone := next((path for path in new if not path.is_file()), None):
        raise BundleError(
            f"{gone} has disappeared since it was made; what stood before stands.",
            remedy="Run the command again, and see what removes files there.",
        )


def copied(origin: Path, part: Path, goal: Path) -> bool:
    """Copy a file to the parts, whole or not at all; False if it is at its goal already.

    No link: the weights' folder is the user's, and what is written there later is no build's.
    """
    if goal.exists() and goal.samefile(origin):
        return False  # the model lies in the bundle's own folder
    with staged(with_folder(part)) as stage:
        shutil.copyfile(origin, stage.publish(part.name))
    return True


def with_folder(path: Path) -> Path:
    """`path`, whose folder is made if need be."""
    path.parent.mkdir(exist_ok=True)
    return path
