"""A build file as it is written: keys, values, and the line of each, for messages.

YAML as people expect it: ``off`` and ``no`` are words, not truth values, ``0x10`` and ``1:30`` are
text, a key given twice is a mistake. Nothing but plain data is ever made of it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from todo_compile.errors import ConfigError
from todo_compile.foreign import MAX_DEPTH, ForeignError, read_bytes

_MAX_NODES = 50_000
_TOP = ("memory", "jobs", "defaults", "builds")
_EXAMPLE = "See `todo-compile build --help` for an example."


@dataclass(frozen=True)
class Mistake:
    """What is wrong in a file.

    Attributes:
        line: counted from 1.
        message: what is wrong, and where.
        remedy: what to do.
    """

    line: int
    message: str
    remedy: str = ""

    def __str__(self) -> str:
        return f"line {self.line}: {self.message}" + (f" {self.remedy}" if self.remedy else "")


@dataclass(frozen=True)
class Value:
    """A scalar, or a list of scalars and lists of scalars."""

    data: Any
    line: int


@dataclass(frozen=True)
class Entry:
    """A mapping of options."""

    name: str
    line: int
    values: Mapping[str, Value]


@dataclass
class Document:
    """A file, with what is wrong in its form.

    Attributes:
        settings: ``memory`` and ``jobs``, if given.
        defaults: options of all builds.
        builds: in order.
        mistakes: in order of finding.
    """

    settings: dict[str, Value] = field(default_factory=dict[str, Value])
    defaults: Entry = field(default_factory=lambda: Entry("defaults", 1, {}))
    builds: list[Entry] = field(default_factory=list[Entry])
    mistakes: list[Mistake] = field(default_factory=list[Mistake])


class _Loader(yaml.SafeLoader):
    """Only true and false, null and decimal numbers are read as such; all else is text.

    Depth and size are bounded while nodes are made, references followed: a node that is referred to
    a thousand times counts a thousand times.
    """

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._depth = self._made = 0
        self._sizes: dict[int, int] = {}

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise ForeignError("it is nested too deeply")
        self._made += 1
        if self._made > _MAX_NODES:  # before the rest is read, which takes seconds
            raise ForeignError(f"it has more than {_MAX_NODES:,} values")
        known = self.check_event(yaml.AliasEvent)
        node = super().compose_node(parent, index)
        self._depth -= 1
        if known and id(node) not in self._sizes:
            raise ForeignError("a part of it refers to itself")
        if not known and node is not None:
            self._sizes[id(node)] = size = 1 + sum(self._sizes[id(one)] for one in _inner(node))
            if size > _MAX_NODES:
                raise ForeignError(f"it has more than {_MAX_NODES:,} values")
        return node


def _inner(node: yaml.Node) -> list[yaml.Node]:
    if isinstance(node, yaml.MappingNode):
        return [one for pair in node.value for one in pair]
    return list(node.value) if isinstance(node, yaml.SequenceNode) else []


_Loader.yaml_implicit_resolvers = {}
for _tag, _pattern, _starts in (
    ("bool", r"true|True|false|False", "tTfF"),
    ("null", r"~|null|Null|", "~nN"),
    ("int", r"-?(0|[1-9][0-9]{0,18})", "-0123456789"),
    ("float", r"-?[0-9]{1,18}\.[0-9]{1,99}", "-0123456789"),
):
    _Loader.add_implicit_resolver(
        f"tag:yaml.org,2002:{_tag}",
        re.compile(f"^({_pattern})$"),
        [*_starts, *([""] if _tag == "null" else [])],
    )


def read_document(path: Path) -> Document:
    """Read a build file; what is wrong in its form is in its `mistakes`.

    Raises:
        ConfigError: it cannot be read, or is no YAML mapping.
    """
    try:
        text = read_bytes(path).decode("utf-8")
    except ForeignError as error:
        raise ConfigError(f"{error}.", remedy="Name a file with builds.") from error
    except OSError as error:
        raise ConfigError(
            f"{path} cannot be read: {error.strerror}.", remedy="Name a file with builds."
        ) from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not UTF-8 text.", remedy=_EXAMPLE) from error
    try:
        loader = _Loader(text)
        root = loader.get_single_node()
    except ForeignError as error:
        raise ConfigError(f"{path} is not a build file: {error}.", remedy=_EXAMPLE) from error
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f" line {mark.line + 1}:" if mark is not None else ""
        raise ConfigError(
            f"{path} is not YAML:{line} {error.problem or error.context}.",
            remedy="Mend the file. Most mistakes are in the indentation or in quotes.",
        ) from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is not YAML: {error}.", remedy=_EXAMPLE) from error
    if not isinstance(root, yaml.MappingNode):
        raise ConfigError(
            f"{path} holds no builds: it must be a mapping with the key builds.", remedy=_EXAMPLE
        )
    return _Reader(loader).document(root)


class _Reader:
    """From nodes to a `Document`."""

    def __init__(self, loader: _Loader) -> None:
        self._loader = loader
        self._found = Document()

    def document(self, root: yaml.MappingNode) -> Document:
        found = self._found
        places = self._keys(root, "")
        for name, (node, line) in places.items():
            if name in ("memory", "jobs"):
                value = self._value(node, name)
                if value is not None:
                    found.settings[name] = value
            elif name == "defaults":
                found.defaults = self._entry(node, "defaults", line)
            elif name != "builds":
                self._wrong(line, f"unknown key {name!r}.", f"Known: {', '.join(_TOP)}.")
        builds, line = places.get("builds", (None, 1))
        if not isinstance(builds, yaml.SequenceNode) or not builds.value:
            self._wrong(line, "builds must be a list with at least one build.", _EXAMPLE)
            return found
        for number, node in enumerate(builds.value, start=1):
            found.builds.append(self._entry(node, f"build {number}", _line(node)))
        return found

    def _entry(self, node: yaml.Node, name: str, line: int) -> Entry:
        if not isinstance(node, yaml.MappingNode):
            self._wrong(line, f"{name} must be a mapping of options.", _EXAMPLE)
            return Entry(name, line, {})
        values: dict[str, Value] = {}
        for key, (child, _) in self._keys(node, f"{name}: ").items():
            value = self._value(child, f"{name}: {key}")
            if value is not None:
                values[key] = value
        return Entry(name, line, values)

    def _keys(self, node: yaml.MappingNode, where: str) -> dict[str, tuple[yaml.Node, int]]:
        found: dict[str, tuple[yaml.Node, int]] = {}
        for key, value in node.value:
            name = str(key.value) if isinstance(key, yaml.ScalarNode) else "[…]"
            if name in found:
                self._wrong(_line(key), f"{where}{name} is given twice.", "Keep one of them.")
            found[name] = (value, _line(key))
        return found

    def _value(self, node: yaml.Node, where: str, depth: int = 0) -> Value | None:
        """None if it is not plain data."""
        line = _line(node)
        if isinstance(node, yaml.ScalarNode):
            try:
                return Value(self._loader.construct_object(node), line)
            except (yaml.YAMLError, ValueError):
                self._wrong(line, f"{where} is no plain value.", "Write it as text.")
                return None
        if isinstance(node, yaml.SequenceNode) and depth < 2:
            found = [self._value(one, where, depth + 1) for one in node.value]
            if any(one is None for one in found):
                return None
            return Value([one.data for one in found if one is not None], line)
        self._wrong(
            line, f"{where} must be a value, or a list of values.", "Nothing else can be nested."
        )
        return None

    def _wrong(self, line: int, message: str, remedy: str) -> None:
        self._found.mistakes.append(Mistake(line, message, remedy))


def _line(node: yaml.Node) -> int:
    return node.start_mark.line + 1
