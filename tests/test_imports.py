"""Imports run one way: a stage knows those before it, and nobody after it.

    models → capture → passes → export → bundle → runtime → tuning → build

Beside them stand `dynamo` and `drift`, which use stages and are used by the command line, and by
builds and the runtime, which run parts of a graph. Files of the root are for all, but for the
public face, which is for users alone. Imports for types alone do not count: nothing depends on
them when it runs. Within a room files form no circle, late imports counted.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import todo_compile

ROOT = Path(todo_compile.__file__).parent
STAGES = ["models", "capture", "passes", "export", "bundle", "runtime", "tuning", "build"]
BESIDE = ("dynamo", "drift")
KNOWS = {
    # which phase a step is in, by a plan in a file
    "dynamo": {"models", "capture", "passes", "bundle", "runtime"},
    "drift": {"models", "capture", "passes"},
    "export": set[str](),  # a graph comes, whoever made it
    "bundle": set[str](),  # files lie there, whoever wrote them
}
ALSO = {"build": {"drift"}, "runtime": {"drift"}, "tuning": {"drift"}}
FACE = ("api", "cli")
JOB = f"{ROOT.name}.build.job"  # its `build` is the door to what builds it


def rooms() -> set[str]:
    return {path.name for path in ROOT.iterdir() if (path / "__init__.py").is_file()}


def room_of(path: Path) -> str:
    parts = path.relative_to(ROOT).parts
    return parts[0] if len(parts) > 1 else path.stem


def statements() -> Iterator[tuple[Path, ast.Import | ast.ImportFrom]]:
    """Every import of every file, but for those for types alone."""
    for path in sorted(ROOT.rglob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for_types = {
            id(inner)
            for node in ast.walk(tree)
            if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)
            for inner in ast.walk(node)
        }
        for node in ast.walk(tree):
            if isinstance(node, (ast.Import, ast.ImportFrom)) and id(node) not in for_types:
                yield path, node


def imports() -> Iterator[tuple[Path, str, str]]:
    """(file, its room, the room that it imports from) of every import of our own."""
    for path, node in statements():
        if isinstance(node, ast.Import):
            names = [one.name for one in node.names]
        elif node.module == ROOT.name:
            names = [f"{ROOT.name}.{one.name}" for one in node.names]
        else:
            names = [node.module or ""]
        for name in names:
            parts = name.split(".")
            if parts[0] == ROOT.name and len(parts) > 1 and parts[1] != room_of(path):
                yield path, room_of(path), parts[1]


def within_rooms() -> dict[str, set[str]]:
    """Module → modules of its own room that it imports."""
    found: dict[str, set[str]] = {}
    for path, node in statements():
        parts = (ROOT.name, *path.relative_to(ROOT).with_suffix("").parts)
        room = ".".join(parts[:2])
        if not isinstance(node, ast.ImportFrom) or len(parts) < 3:
            continue
        for one in node.names:
            both = (node.module or "", f"{node.module}.{one.name}")
            ours = [n for n in both if n.startswith(f"{room}.") and is_file(n)]
            found.setdefault(".".join(parts), set()).update(ours[-1:])
    return found


def is_file(module: str) -> bool:
    return ROOT.parent.joinpath(*module.split(".")).with_suffix(".py").is_file()


def circles(graph: dict[str, set[str]]) -> set[str]:
    """The modules that import themselves in the end."""

    def reaches(start: str) -> set[str]:
        seen: set[str] = set()
        left = list(graph.get(start, ()))
        while left:
            name = left.pop()
            if name not in seen:
                seen.add(name)
                left += graph.get(name, ())
        return seen

    return {name for name in graph if name in reaches(name)}


def may(room: str, other: str) -> bool:
    """Whether `room` may import from `other`."""
    if room in FACE:
        return other != "cli"
    if other in FACE:
        return False
    if other not in rooms():
        return True  # a file of the root
    if room in KNOWS:
        return other in KNOWS[room]
    if room not in STAGES:
        return False  # files of the root know no stage
    before = STAGES[: STAGES.index(room)]
    return other in before or other in ALSO.get(room, set())


def test_every_room_has_a_place() -> None:
    assert rooms() - {"cli"} == {*STAGES, *BESIDE}


def test_imports_run_one_way() -> None:
    wrong = {
        f"{path.relative_to(ROOT)} ({room}) imports {other}"
        for path, room, other in imports()
        if room not in ("__init__", "__main__") and not may(room, other)
    }
    assert wrong == set()


def test_no_circle_within_a_room() -> None:
    graph = within_rooms()
    assert len(graph) > 100
    graph[JOB].remove(f"{ROOT.name}.build.compiler")
    assert circles(graph) == set()


def test_the_search_for_circles_can_fail() -> None:
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": {"a"}}) == {"b", "c"}


def test_the_rule_can_fail() -> None:
    """What was so once, and shall not be again."""
    for room, other in (
        ("build", "cli"), ("bundle", "export"), ("export", "bundle"), ("build", "api"),
        ("runtime", "dynamo"), ("disk", "bundle"), ("passes", "build"), ("models", "capture"),
        ("tuning", "build"), ("runtime", "build"), ("bundle", "tuning"),
    ):  # fmt: skip
        assert not may(room, other), (room, other)
