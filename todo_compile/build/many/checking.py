"""A whole file checked before anything is built: all that is wrong with it, at once."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from todo_compile.build.many.document import Document, Mistake, read_document
from todo_compile.build.many.matrix import Build, choose, collisions, expand
from todo_compile.build.many.memory import default_budget, need, parse_memory
from todo_compile.build.many.schedule import Need
from todo_compile.disk import format_bytes
from todo_compile.errors import ConfigError, MissingPackageError, TodoError


@dataclass(frozen=True)
class Plan:
    """What will be done.

    Attributes:
        builds: in order.
        needs: for each, what it takes.
        budget: bytes of memory for all that run at once.
        jobs: most builds at once.
    """

    builds: Sequence[Build]
    needs: Sequence[Need]
    budget: int
    jobs: int


def builds_of(path: Path) -> list[Build]:
    """The builds that a file describes; whether their models exist is not checked.

    Raises:
        ConfigError: mistakes in its form, all of them.
    """
    _, builds, wrong = _read(path)
    if wrong:
        raise _refusal(path, wrong)
    return builds


def _read(path: Path) -> tuple[Document, list[Build], list[Mistake]]:
    document = read_document(path)
    builds, wrong = expand(document)
    return document, builds, [*document.mistakes, *wrong, *collisions(builds)]


def check(
    path: Path,
    *,
    only: Sequence[str] = (),
    memory: str | None = None,
    jobs: int | None = None,
    elsewhere: bool = False,
    report: Callable[[int, int, str], None] | None = None,
) -> Plan:
    """Read a build file and check every build as the command would, without doing its work.

    Weights are looked for (and downloaded, where they are on the hub) but not read.

    Args:
        path: of the file.
        only: numbers or outputs of the builds that are meant; empty for all. Of the others only the
            form is checked.
        memory: budget; None takes the file's, else a share of what is available.
        jobs: most builds at once; None takes the file's, else one for two processors.
        elsewhere: they will not run here, so that the memory of this machine does not count.
        report: called with (done, all, out) while builds are checked.

    Raises:
        ConfigError: mistakes, all of them.
        MissingPackageError: a build needs a package that is absent.
    """
    document, builds, wrong = _read(path)
    if not wrong:
        builds = choose(builds, only)
    budget, most = _limits(document, memory, jobs, wrong)
    chosen = memory is not None or document.settings.get("memory") is not None
    needs: list[Need] = []
    for number, build in enumerate(builds):
        if report is not None:
            report(number, len(builds), build.out)
        try:
            _check_place(build)
            needs.append(need(build.request.resolve(look=True).parts))
            if not elsewhere:
                _check_fits(needs[-1], budget, chosen)
        except MissingPackageError:
            raise  # no mistake of the file
        except TodoError as error:
            remedy = error.remedy or ""
            wrong.append(Mistake(build.line, f"{build.entry}: {error.message}", remedy))
    if wrong:
        raise _refusal(path, wrong)
    return Plan(builds, needs, budget, most)


def make_folders(builds: Sequence[Build]) -> None:
    """The folders that outputs will lie in.

    Raises:
        ConfigError: one cannot be made.
    """
    for folder in dict.fromkeys(Path(build.out).parent for build in builds):
        make_folder(folder, "Name another out, or make the folder.")


def make_folder(folder: Path, remedy: str) -> None:
    """A folder with those above it.

    Raises:
        ConfigError: it cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(
            f"The folder {folder} cannot be made: {error.strerror}.", remedy=remedy
        ) from error


def _limits(
    document: Document, memory: str | None, jobs: int | None, wrong: list[Mistake]
) -> tuple[int, int]:
    """(budget, most builds at once); what the command line says goes before what the file says."""
    budget, most = default_budget(), max(1, (os.cpu_count() or 1) // 2)
    given = document.settings.get("memory")
    if memory is not None:
        budget = parse_memory(memory)
    elif given is not None and given.data is not None:
        try:
            budget = parse_memory(str(given.data))
        except ConfigError as error:
            wrong.append(Mistake(given.line, f"memory: {error.message}", error.remedy or ""))
    given = document.settings.get("jobs")
    if jobs is not None:
        most = jobs
    elif given is not None and given.data is not None:
        if type(given.data) is int and given.data >= 1:
            most = given.data
        else:
            text = f"jobs: {given.data!r} is not a number of builds."
            wrong.append(Mistake(given.line, text, "Give a whole number from 1."))
    return budget, most


def _check_fits(need: Need, budget: int, chosen: bool) -> None:
    """Refuse a build that needs more than the user allows; a bound of our own is only a guess.

    Raises:
        ConfigError: it needs more.
    """
    if chosen and budget < need.bytes:
        raise ConfigError(
            f"it needs about {format_bytes(need.bytes)}, more than the memory of "
            f"{format_bytes(budget)} for all builds.",
            remedy="Give more memory, or none: then it runs alone, in what there is.",
        )


def _check_place(build: Build) -> None:
    """Check as the command does, except that a missing folder is no mistake: it will be made.

    Raises:
        TodoError: it cannot be written to.
    """
    parent = Path(build.out).parent
    if parent.exists():
        build.request.check_place()
        return
    above = next((p for p in parent.absolute().parents if p.exists()), None)
    if above is None or not above.is_dir() or not os.access(above, os.W_OK | os.X_OK):
        raise ConfigError(f"The folder {parent} cannot be made.", remedy="Name another out.")


def _refusal(path: Path, wrong: Sequence[Mistake]) -> ConfigError:
    lines = sorted({str(one): one for one in wrong}.values(), key=lambda one: one.line)
    count = "a mistake" if len(lines) == 1 else f"{len(lines)} mistakes"
    return ConfigError(
        "\n".join([f"{path} has {count}; nothing was built.", *(f"  {one}" for one in lines)]),
        remedy="Mend the file and try again; --dry-run shows what would be built.",
    )
