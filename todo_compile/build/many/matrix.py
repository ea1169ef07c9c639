"""From entries with lists to single builds.

A list is an axis: a build is made for each of its values, and for each combination of several
lists. A list within the list is one value of several parts::

    res: [1024, 2048]            two builds
    res: [[1024, 2048x1152]]     one bundle for two resolutions
    lora: [null, a.safetensors]  without, and with
"""

from __future__ import annotations

import difflib
import itertools
import math
import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePath
from typing import Any

from pydantic import ValidationError

from todo_compile.build.job import foreign_kinds, format_of
from todo_compile.build.many.document import Document, Entry, Mistake, Value
from todo_compile.build.request import BuildRequest
from todo_compile.errors import ConfigError, TodoError

MAX_BUILDS = 1000
_PLACEHOLDER = re.compile(r"\{([^{}]*)\}")
_OPTIONS = BuildRequest.keys()


@dataclass(frozen=True)
class Build:
    """One build of a file.

    Attributes:
        entry: name of the entry that it is of.
        line: of the entry.
        request: what to build.
        axes: names of the options that the entry varies.
        number: in the file, from 1; what it is called by (`choose`).
    """

    entry: str
    line: int
    request: BuildRequest
    axes: tuple[str, ...] = ()
    number: int = 0

    @property
    def out(self) -> str:
        """Where it goes, as written."""
        return self.request.out


def expand(document: Document) -> tuple[list[Build], list[Mistake]]:
    """All builds of a file that can be read, in order, and what is wrong with the others."""
    wrong = _unknown(document.defaults)
    builds: list[Build] = []
    for entry in document.builds:
        mistakes = _unknown(entry)
        # An unknown default is among the mistakes already; builds are read without it.
        defaults = {k: v for k, v in document.defaults.values.items() if k in _OPTIONS}
        values = {**defaults, **entry.values}
        axes = {k: v for k, v in values.items() if isinstance(v.data, list)}
        mistakes += [
            Mistake(v.line, f"{entry.name}: {k} is an empty list.", "Give a value, or remove it.")
            for k, v in axes.items()
            if not v.data
        ]
        count = math.prod(len(v.data) for v in axes.values())
        if len(builds) + count > MAX_BUILDS:
            mistakes.append(
                Mistake(
                    entry.line,
                    f"{entry.name}: its lists make {count} builds; a file can have {MAX_BUILDS}.",
                    "Shorten them, or use several files.",
                )
            )
        if mistakes:
            wrong += mistakes
            continue
        found: dict[str, Mistake] = {}  # each once, however many builds it spoils
        for chosen in _combinations(values):
            made = _build(entry, chosen, tuple(k for k, v in axes.items() if len(v.data) > 1))
            if isinstance(made, Build):
                builds.append(replace(made, number=len(builds) + 1))
            else:
                found.update({str(one): one for one in made})
        wrong += found.values()
    return builds, wrong


def choose(builds: Sequence[Build], names: Sequence[str]) -> list[Build]:
    """The builds that are called by their number or their ``out``; all where none is named.

    Raises:
        ConfigError: there is no such build.
    """
    if not names:
        return list(builds)
    known = {str(build.number): build for build in builds}
    known |= {build.out: build for build in builds if build.out not in known}
    for name in names:
        if name not in known:
            raise ConfigError(
                f"The file has no build {name}.",
                remedy=f"It has 1 to {len(builds)}; --list shows them.",
            )
    chosen = {known[name].number for name in names}
    return [build for build in builds if build.number in chosen]


def collisions(builds: Sequence[Build]) -> list[Mistake]:
    """Builds that would write over each other: the same ``out`` (also where capitals are no other
    letters), one within another's folder, or what lies beside an engine."""
    wrong: list[Mistake] = []
    places: dict[Path, Build] = {}
    for build in builds:
        place = _on_any_disk(Path(build.out).resolve())
        other = places.setdefault(place, build)
        if other is not build:
            wrong.append(_same(build, other))
    for place, build in places.items():
        engine = places.get(place.with_suffix(""))
        if engine is not None and place.suffix == ".onnx" and format_of(engine.out) == "tensorrt":
            wrong.append(
                Mistake(
                    build.line,
                    f"{build.entry}: {build.out} is what {engine.out} has beside it for "
                    "onnxruntime.",
                    "Name another out.",
                )
            )
        over = next((p for p in place.parents if p in places and places[p].request.bundle), None)
        if over is not None:
            wrong.append(
                Mistake(
                    build.line,
                    f"{build.entry}: {build.out} lies in the bundle {places[over].out}.",
                    "Name another place: a bundle's folder holds nothing else.",
                )
            )
    return list({str(one): one for one in wrong}.values())


def _on_any_disk(place: Path) -> Path:
    """A path as file systems see it that do not tell capitals or spellings of an accent apart."""
    return Path(unicodedata.normalize("NFC", str(place)).casefold())


def _same(build: Build, other: Build) -> Mistake:
    if other.entry == build.entry:
        axes = ", ".join("{" + axis + "}" for axis in build.axes if axis != "out")
        return Mistake(
            build.line,
            f"{build.entry}: several of its builds go to {build.out}.",
            f"Tell them apart by placeholders in out: {axes}.",
        )
    if Path(build.out).resolve() != Path(other.out).resolve():
        return Mistake(
            build.line,
            f"{build.entry}: {build.out} is the same as {other.out} (line {other.line}) to file "
            "systems that do not tell capitals apart.",
            "Name another out.",
        )
    return Mistake(
        build.line,
        f"{build.entry}: {build.out} is where {other.entry} (line {other.line}) goes too.",
        "Name another out.",
    )


def _combinations(values: Mapping[str, Value]) -> list[dict[str, Value]]:
    lists = [
        [Value(one, v.line) for one in v.data] if isinstance(v.data, list) else [v]
        for v in values.values()
    ]
    return [dict(zip(values, chosen, strict=True)) for chosen in itertools.product(*lists)]


def _unknown(entry: Entry) -> list[Mistake]:
    known = list(_OPTIONS)
    wrong: list[Mistake] = []
    for key, value in entry.values.items():
        if key not in known:
            near = difflib.get_close_matches(key.replace("_", "-"), known, n=1, cutoff=0.7)
            remedy = f"Did you mean {near[0]}?" if near else f"Known: {', '.join(known)}."
            text = f"{entry.name}: unknown option {key!r}."
            wrong.append(Mistake(value.line, text, remedy))
    return wrong


def _build(
    entry: Entry, chosen: Mapping[str, Value], axes: tuple[str, ...]
) -> Build | list[Mistake]:
    values: dict[str, Any] = {}
    for key, value in chosen.items():
        data = value.data
        if data is None:  # takes a default away
            continue
        if isinstance(data, list) and _OPTIONS[key].joined:
            data = ",".join(map(str, data))
        values[key] = data
    needs = ("out",) if "module" in values else ("model", "res", "out")
    missing = [key for key in needs if key not in values]
    if missing:
        return [
            Mistake(
                entry.line,
                f"{entry.name}: {' and '.join(missing)} is missing.",
                "Every build needs model, res and out.",
            )
        ]
    wrong: list[Mistake] = []
    for key, value in list(values.items()):
        if _OPTIONS[key].placeholders and isinstance(value, str):
            values[key] = _filled(entry, key, values, chosen[key].line, wrong)
    if wrong:
        return wrong
    # What the defaults say about engines is for the file's engines.
    foreign = foreign_kinds(format_of(str(values["out"])) or str(values.get("format")))
    values = {
        k: v for k, v in values.items() if _OPTIONS[k].only not in foreign or k in entry.values
    }
    try:
        return Build(entry.name, entry.line, BuildRequest.model_validate(values), axes)
    except TodoError as error:
        if isinstance(error.__cause__, ValidationError):
            return [_explained(entry, chosen, one) for one in error.__cause__.errors()]
        return [Mistake(entry.line, f"{entry.name}: {error.message}", error.remedy or "")]


def _explained(entry: Entry, chosen: Mapping[str, Value], error: Any) -> Mistake:
    key = str(error["loc"][0])
    given = error["input"]
    return Mistake(
        chosen[key].line if key in chosen else entry.line,
        f"{entry.name}: {key}: {given!r} is not possible: {error['msg']}.",
        f"Give --{key} as on the command line (todo-compile compile --help).",
    )


def _filled(
    entry: Entry, option: str, values: Mapping[str, Any], line: int, wrong: list[Mistake]
) -> str:
    """A path with its placeholders filled in by the values of the build's own options."""
    known = [key for key in values if not _OPTIONS[key].placeholders]

    def fill(found: re.Match[str]) -> str:
        key = found[1]
        if key in known:
            return _slug(key, values[key])
        wrong.append(
            Mistake(
                line,
                f"{entry.name}: {option}: nothing is known of {{{key}}}.",
                f"Set that option, or use one that is set: {', '.join(known)}.",
            )
        )
        return ""

    return _PLACEHOLDER.sub(fill, str(values[option]))


def _slug(key: str, value: Any) -> str:
    """A value as a part of a file's name: ``org/model`` → ``model``."""
    parts = value if isinstance(value, list) else [value]
    texts = [str(part).lower() if isinstance(part, bool) else str(part) for part in parts]
    if _OPTIONS[key].file:
        texts = [PurePath(text.rstrip("/\\")).name.removesuffix(".safetensors") for text in texts]
    return "+".join(re.sub(r"[^\w.,x-]+", "-", text) for text in texts)
