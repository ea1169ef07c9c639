"""The page about what ``--json`` prints, from the models that print it and their docstrings."""

from __future__ import annotations

import dataclasses
import inspect
import re
import typing
from collections.abc import Iterator
from typing import Any

from pydantic import BaseModel


def page() -> str:
    """Every answer with its version and fields, then the types that they are made of."""
    from todo_compile.cli.answers import ANSWERS

    parts = [
        "# JSON",
        "What commands print on standard output with `--json`. `format` says what an answer is; "
        "`version` is raised when a field goes or changes its meaning, not when one is added.",
    ]
    found: dict[str, type] = {}
    for answer in ANSWERS:
        version = answer.model_fields["version"].default
        title = _plain((inspect.getdoc(answer) or "").splitlines()[0].rstrip("."))
        name = answer.model_fields["format"].default
        parts += [f"## {title}", f"`format` is `{name}`, `version` is {version}.", _table(answer)]
        found |= {kind.__name__: kind for kind in _inner(answer)}
    parts.append("## Their parts")
    for name, kind in sorted(found.items()):
        parts += [f"### {name}", _plain((inspect.getdoc(kind) or "").splitlines()[0]), _table(kind)]
    return "\n\n".join(parts) + "\n"


def _fields(kind: type) -> dict[str, Any]:
    hints = typing.get_type_hints(kind)
    if issubclass(kind, BaseModel):
        return {name: hints[name] for name in kind.model_fields}
    return {field.name: hints[field.name] for field in dataclasses.fields(kind)}


def _inner(kind: type) -> Iterator[type]:
    """The models and dataclasses that a type is made of, itself left out."""
    for hint in _fields(kind).values():
        for one in _types(hint):
            if issubclass(one, BaseModel) or dataclasses.is_dataclass(one):
                yield one
                yield from _inner(one)


def _types(hint: Any) -> Iterator[type]:
    if isinstance(hint, type) and not typing.get_args(hint):
        yield hint
    for argument in typing.get_args(hint):
        yield from _types(argument)


def _table(kind: type) -> str:
    texts = _descriptions(kind)
    rows = ["| field | type | what |", "|---|---|---|"]
    for name, hint in _fields(kind).items():
        if name not in ("format", "version") or name in texts:
            rows.append(f"| `{name}` | {_shown(hint)} | {texts.get(name, '')} |")
    return "\n".join(rows)


def _descriptions(kind: type) -> dict[str, str]:
    """Field → what the docstring says; "a, b: …" is for both."""
    text = inspect.getdoc(kind) or ""
    section = re.search(r"^(?:Attributes|Args):\n((?:    .*\n?|\n)+)", text, re.MULTILINE)
    found: dict[str, str] = {}
    for entry in re.split(r"\n    (?=\S)", "\n" + (section[1] if section else "")):
        names, _, said = entry.partition(": ")
        for name in names.split(","):
            found[name.strip()] = " ".join(_plain(said).split()).replace("|", "\\|")
    return found


def _shown(hint: Any) -> str:
    """A type as JSON has it."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Annotated:
        return _shown(arguments[0])
    if origin is typing.Literal:
        return ", ".join(f"`{one}`" for one in arguments)
    if origin in (tuple, list):
        inner = [_shown(one) for one in arguments if one is not ...]
        return f"list of {inner[0]}" if len(set(inner)) == 1 else f"list: {', '.join(inner)}"
    if origin is dict:
        return f"object of {_shown(arguments[1])}"
    if origin is not None:
        return " or ".join(_shown(one) for one in arguments)
    names: dict[Any, str] = {
        str: "text", int: "whole number", float: "number", bool: "true or false",
        type(None): "null", Any: "anything",
    }  # fmt: skip
    if hint in names:
        return names[hint]
    return f"[{hint.__name__}](#{hint.__name__.lower()})"


def _plain(text: str) -> str:
    return text.replace("``", "`")
