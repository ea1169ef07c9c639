"""Nested arguments and results as flat tensors, and back.

A tree is described by plain JSON, so that a manifest can hold it and another process can read it::

    {"tensor": NAME}              a tensor
    {"constant": VALUE}           None, a truth value, a number, text
    {"text": REPR}                a dtype, a device, an enumeration's member, NaN
    {"tuple": [...]}, {"list": [...]}, {"dict": [[KEY, ...], ...]}
    {"namedtuple": CLASS, "items": [[NAME, ...], ...]}, {"fields": CLASS, "items": …}: a dataclass

No class is ever looked up by a name in a description: what comes back in place of a dataclass has
its fields and nothing else, see `Fields`.
"""

from __future__ import annotations

import dataclasses
import enum
import inspect
import math
import re
from collections import namedtuple
from collections.abc import Callable, Iterator, Mapping
from typing import Any, cast

import torch

Tree = dict[str, Any]
_CONTAINERS = ("tuple", "list", "dict", "namedtuple", "fields")
KINDS = {
    inspect.Parameter.POSITIONAL_ONLY: "positional",
    inspect.Parameter.POSITIONAL_OR_KEYWORD: "any",
    inspect.Parameter.KEYWORD_ONLY: "keyword",
    inspect.Parameter.VAR_POSITIONAL: "rest",
    inspect.Parameter.VAR_KEYWORD: "others",
}
"""How a parameter is given, as descriptions of signatures have it."""
_WORDS = (torch.dtype, torch.device, torch.layout, torch.memory_format, enum.Enum)


class TreeError(ValueError):
    """A value that is no tree of tensors, or another one than was described; a clause."""


class Fields(dict[str, Any]):
    """The fields of a dataclass: ``out.sample``, ``out["sample"]``, ``out[0]``."""

    def __getattr__(self, name: str) -> Any:
        if name in self:
            return self[name]
        raise AttributeError(name)

    def __getitem__(self, key: Any) -> Any:
        if isinstance(key, (int, slice)):
            return self.to_tuple()[key]
        return super().__getitem__(key)

    def to_tuple(self) -> tuple[Any, ...]:
        """All that is not None, in order, as transformers' and diffusers' outputs have it."""
        return tuple(value for value in self.values() if value is not None)


def children(value: object) -> tuple[str, list[tuple[Any, Any]]] | None:
    """(kind, (key, child) in order) of a container; None for anything else."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return "fields", [(f.name, getattr(value, f.name)) for f in dataclasses.fields(value)]
    if isinstance(value, Fields):
        return "fields", list(value.items())
    if isinstance(value, Mapping):
        return "dict", list(cast("Mapping[Any, Any]", value).items())
    if isinstance(value, tuple):
        parts = cast("tuple[Any, ...]", value)
        names = getattr(parts, "_fields", None)
        if names is not None:
            return "namedtuple", list(zip(names, parts, strict=True))
        return "tuple", list(enumerate(parts))
    if isinstance(value, list):
        return "list", list(enumerate(cast("list[Any]", value)))
    return None


def rebuilt(value: Any, tensors: Iterator[torch.Tensor]) -> Any:
    """`value` with its tensors replaced, in the order of `describe`; containers keep their class.

    Raises:
        TreeError: a container cannot be made again from its parts.
    """
    if isinstance(value, torch.Tensor):
        return next(tensors)
    found = children(value)
    if found is None:
        return value
    kind, parts = found
    new = {key: rebuilt(part, tensors) for key, part in parts}
    if all(new[key] is part for key, part in parts):
        return value
    try:
        if kind == "fields" and not isinstance(value, Fields):
            return dataclasses.replace(value, **new)
        if kind == "namedtuple":
            return type(value)(**new)
        return type(value)(new.values() if kind in ("tuple", "list") else new)
    except Exception as error:  # whatever a class of the user's does
        raise TreeError(f"a {type(value).__name__} cannot be made from its parts") from error


def describe(value: Any, name: Callable[[str, Any], str], path: str = "") -> Tree:
    """The description of a tree.

    Args:
        value: the tree.
        name: gives the name of the tensor at a path such as ``conditions_text``.
        path: of `value`.

    Raises:
        TreeError: something in it is neither a container, a tensor nor a constant.
    """
    if isinstance(value, torch.Tensor):
        return {"tensor": name(path, value)}
    if isinstance(value, _WORDS) or (isinstance(value, float) and not math.isfinite(value)):
        return {"text": repr(value)}
    if value is None or type(value) in (bool, int, float, str):
        return {"constant": value}
    found = children(value)
    if found is None:
        raise TreeError(f"{shown(path)} is {article(value)}")
    kind, parts = found
    if kind == "dict" and any(type(key) not in (str, int) for key, _ in parts):
        raise TreeError(f"{shown(path)} has a key that is neither text nor a number")
    below = [[key, describe(part, name, joined(path, key))] for key, part in parts]
    if kind in ("tuple", "list"):
        return {kind: [part for _, part in below]}
    if kind == "dict":
        return {"dict": below}
    return {kind: type(value).__name__, "items": below}


def compose(tree: Tree, tensors: Mapping[str, Any]) -> Any:
    """The value that a tree describes, with these tensors.

    Raises:
        KeyError, TypeError: it is no description.
    """
    if "tensor" in tree:
        return tensors[tree["tensor"]]
    if "constant" in tree or "text" in tree:
        return tree.get("constant", tree.get("text"))
    for kind, make in (("tuple", tuple[Any, ...]), ("list", list[Any])):
        if kind in tree:
            return make(compose(part, tensors) for part in tree[kind])
    items = {key: compose(part, tensors) for key, part in parts_of(tree)}
    if "dict" in tree:
        return items
    if "namedtuple" in tree:
        kind: Any = namedtuple  # its fields are known here alone
        return kind(_identifier(tree["namedtuple"]), list(items))(**items)
    return Fields(items)


def default_of(signature: inspect.Signature, name: str) -> Tree:
    """The tree of a parameter that was not given and has no default: ``*args``, ``**kwargs``."""
    rest = signature.parameters[name].kind is inspect.Parameter.VAR_POSITIONAL
    return {"tuple": []} if rest else {"dict": []}


def parts_of(tree: Tree) -> list[tuple[Any, Tree]]:
    """(key, part) of a container's description.

    Raises:
        TreeError: it is no container.
    """
    kind = next((one for one in _CONTAINERS if one in tree), None)
    if kind is None:
        raise TreeError(f"{tree!r:.80} describes nothing")
    if kind in ("tuple", "list"):
        return list(enumerate(tree[kind]))
    return [(key, part) for key, part in tree["dict" if kind == "dict" else "items"]]


def tensors_of(tree: Tree) -> list[str]:
    """Names of the tensors in a description, in order.

    Raises:
        TreeError: it is none.
    """
    if not isinstance(tree, dict):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise TreeError("no description")
    if "tensor" in tree:
        return [str(tree["tensor"])]
    if "constant" in tree or "text" in tree:
        return []
    return [name for _, part in parts_of(tree) for name in tensors_of(part)]


def match(tree: Tree, value: Any, path: str, take: Callable[[str, str, Any], None]) -> None:
    """Compare a value with a description, and hand over its tensors.

    Args:
        tree: the description.
        value: that should be of its form.
        path: of it, for messages.
        take: called with (name, path, tensor) for every tensor.

    Raises:
        TreeError: it has another form, or another constant.
    """
    if "tensor" in tree:
        if not isinstance(value, torch.Tensor):
            raise TreeError(f"{shown(path)} must be a tensor, not {article(value)}")
        take(tree["tensor"], path, value)
        return
    if "constant" in tree or "text" in tree:
        known = tree.get("constant", tree.get("text"))
        same = repr(value) == known if "text" in tree else _equal(value, known)
        if not same:
            given = article(value) if isinstance(value, torch.Tensor) else repr(value)
            raise TreeError(f"{shown(path)} was {known!r} when this was compiled, not {given:.80}")
        return
    kind = next(one for one in _CONTAINERS if one in tree)
    pairs = parts_of(tree)
    found = children(value)
    plain = {"list": "tuple", "namedtuple": "tuple", "fields": "dict"}
    if found is None or plain.get(found[0], found[0]) != plain.get(kind, kind):
        raise TreeError(f"{shown(path)} must be a {kind}, not {article(value)}")
    given = dict(found[1])
    if kind == "namedtuple" and found[0] in ("tuple", "list"):
        given = {key: given[i] for i, (key, _) in enumerate(pairs) if i in given}
    # What is absent is None, as in outputs of transformers and diffusers.
    extra = [key for key in given if key not in {k for k, _ in pairs} and given[key] is not None]
    if extra or (kind in ("tuple", "list") and len(given) != len(pairs)):
        has = ", ".join(str(key) for key, _ in pairs) or "nothing"
        got = ", ".join(str(key) for key in given) or "nothing"
        raise TreeError(f"{shown(path)} had {has} when this was compiled, not {got}")
    for key, part in pairs:
        match(part, given.get(key), joined(path, key), take)


def _equal(value: Any, known: Any) -> bool:
    if isinstance(value, torch.Tensor):
        return False
    return isinstance(value, bool) == isinstance(known, bool) and bool(value == known)


def joined(path: str, key: object) -> str:
    """The path of a part: ``conditions`` and ``text`` make ``conditions_text``."""
    return f"{path}.{key}" if path else str(key)


def shown(path: str) -> str:
    """A path for messages."""
    return path or "it"


def article(value: object) -> str:
    """What a value is, for messages."""
    return "None" if value is None else f"a {type(value).__name__}"


def _identifier(text: object) -> str:
    name = re.sub(r"\W", "_", str(text))
    return name if name.isidentifier() and not name.startswith("_") else "Fields"


class Names:
    """Names for tensors by their paths: each once, and fit for Python, ONNX and TensorRT.

    Args:
        taken: names that are given away already.
        whole: name of a tensor that is the whole tree.
    """

    def __init__(self, taken: set[str], whole: str) -> None:
        self._taken = set(taken)
        self._whole = whole
        self.found: dict[str, Any] = {}

    def __call__(self, path: str, value: Any) -> str:
        name = re.sub(r"\W", "_", path) if path else self._whole
        if not name.isidentifier():  # a number
            name = f"{self._whole}_{name}"
        free = next(
            one
            for one in (name, f"{self._whole}_{name}", *(f"{name}_{i}" for i in range(10**6)))
            if one not in self._taken
        )
        self._taken.add(free)
        self.found[free] = value
        return free
