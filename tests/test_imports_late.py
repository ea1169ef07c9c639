"""An import of our own stands at the top of its file, unless a reason for less is known.

A command shall answer a mistake at once, so what takes seconds to import (torch) or is optional
(onnx, diffusers) is imported when it is needed. An import inside a function is right if:

- what it brings imports another package that the file itself has done without so far;
- the file is among those that ``todo-compile --help`` or ``import todo_compile`` reads;
- at the top it would close a circle.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path

import todo_compile

ROOT = Path(todo_compile.__file__).parent
OURS = ROOT.name
AT_START = (f"{OURS}.cli.app", f"{OURS}.api")
NO_WEIGHT = {"pydantic"}  # whatever describes a build has it


@dataclass
class Module:
    """One file: what it imports at its top, and in functions with the lines."""

    ours: set[str] = field(default_factory=set[str])
    others: set[str] = field(default_factory=set[str])
    late: list[tuple[int, str]] = field(default_factory=list[tuple[int, str]])


def modules() -> dict[str, Module]:
    paths = {
        ".".join(path.relative_to(ROOT.parent).with_suffix("").parts).removesuffix(
            ".__init__"
        ): path
        for path in ROOT.rglob("*.py")
    }
    found = {name: Module() for name in paths}
    for name, path in paths.items():
        for node, inside in imports(ast.parse(path.read_text(encoding="utf-8")), False):
            for target in targets(node, paths):
                if not target.startswith(OURS):
                    if not inside and target not in sys.stdlib_module_names:
                        found[name].others.add(target)
                elif inside:
                    found[name].late.append((node.lineno, target))
                else:
                    found[name].ours.add(target)
    return found


def imports(node: ast.AST, inside: bool) -> Iterator[tuple[ast.Import | ast.ImportFrom, bool]]:
    """(import, whether in a function); those for types alone do not count."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, (ast.Import, ast.ImportFrom)):
            yield child, inside
        elif not (isinstance(child, ast.If) and "TYPE_CHECKING" in ast.dump(child.test)):
            yield from imports(child, inside or isinstance(child, ast.FunctionDef))


def targets(node: ast.Import | ast.ImportFrom, known: Iterable[str]) -> list[str]:
    """Our modules by their whole names, others by the name of the package."""
    if isinstance(node, ast.Import):
        names = [one.name for one in node.names]
    else:
        homes: dict[str, str] = {}  # of names that a package fetches when they are first asked for
        if node.module in (OURS, f"{OURS}.models"):
            homes = vars(import_module(node.module))["_HOMES"]
        names = [homes.get(one.name, one.name) for one in node.names]
        whole = [f"{node.module}.{name}" for name in names]
        names = [name if name in known else str(node.module) for name in whole]
    return [name if name.startswith(OURS) else name.split(".")[0] for name in names]


def read_with(found: dict[str, Module], *names: str) -> set[str]:
    """All modules that are read when these are."""
    seen: set[str] = set()
    left = list(names)
    while left:
        name = left.pop()
        if name in found and name not in seen:
            seen.add(name)
            left += [*found[name].ours, name.rpartition(".")[0]]
    return seen


def needless(found: dict[str, Module]) -> set[str]:
    """``module:line imports module`` of each late import that might stand at the top."""
    at_start = read_with(found, *AT_START)

    def weight(name: str) -> set[str]:
        read = read_with(found, name)
        return set[str]().union(*(found[one].others for one in read)) - NO_WEIGHT

    return {
        f"{name}:{line} imports {other}"
        for name, module in found.items()
        if name not in at_start
        for line, other in module.late
        if name not in read_with(found, other) and weight(other) <= weight(name)
    }


def test_no_import_is_late_without_need() -> None:
    assert needless(modules()) == set()


def test_the_rule_can_fail() -> None:
    found = modules()
    assert "torch" not in {
        name for one in read_with(found, *AT_START) for name in found[one].others
    }
    light, heavy = f"{OURS}.bundle.entries", f"{OURS}.passes.pipeline"
    found[f"{OURS}.bundle.alone"].late += [(1, light), (2, heavy)]
    found[light].late.append((3, f"{OURS}.bundle.manifest"))  # which imports it
    found[f"{OURS}.cli.app"].late.append((4, f"{OURS}.disk"))
    assert needless(found) == {f"{OURS}.bundle.alone:1 imports {light}"}
