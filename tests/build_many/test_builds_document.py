"""Build files as written: plain data, with lines; nothing surprising, nothing dangerous."""

from __future__ import annotations

from pathlib import Path

import pytest
from builds_helpers import document

from todo_compile.build.many.document import read_document
from todo_compile.errors import ConfigError


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("off", "off"),  # YAML 1.1 has it for a truth value
        ("no", "no"),
        ("1:30", "1:30"),  # and this for 90
        ("010", "010"),
        ("2048x1152", "2048x1152"),
        ("1..4", "1..4"),
        ("2026-11-24", "2026-11-24"),
        ("true", True),
        ("null", None),
        ("", None),
        ("1024", 1024),
        ("0.7", 0.7),
        ("'1024'", "1024"),
        ("[1, [a, b]]", [1, ["a", "b"]]),
    ],
)
def test_values(tmp_path: Path, text: str, value: object) -> None:
    found = document(tmp_path, f"builds:\n  - key: {text}\n")
    assert found.mistakes == []
    assert found.builds[0].values["key"].data == value
    assert found.builds[0].values["key"].line == 2


def test_lines_settings_and_anchors(tmp_path: Path) -> None:
    found = document(
        tmp_path,
        "memory: 12GB\njobs: 2\ndefaults:\n  res: &all [1, 2]\nbuilds:\n- a: 1\n\n- b: *all\n",
    )
    assert {k: (v.data, v.line) for k, v in found.settings.items()} == {
        "memory": ("12GB", 1),
        "jobs": (2, 2),
    }
    assert [(e.name, e.line) for e in found.builds] == [("build 1", 6), ("build 2", 8)]
    assert found.builds[1].values["b"].data == [1, 2]


def test_all_mistakes_of_form_at_once(tmp_path: Path) -> None:
    found = document(
        tmp_path,
        "color: red\n"
        "builds:\n"
        "  - a: 1\n"
        "    a: 2\n"
        "  - text\n"
        "  - c: {x: 1}\n"
        "  - d: [[[1]]]\n"
        "  - e: !!python/object/apply:os.system [ls]\n"
        "  - f: !!int x\n",
    )
    assert [str(one).split(".")[0] for one in found.mistakes] == [
        "line 1: unknown key 'color'",
        "line 4: build 1: a is given twice",
        "line 5: build 2 must be a mapping of options",
        "line 6: build 3: c must be a value, or a list of values",
        "line 7: build 4: d must be a value, or a list of values",
        "line 9: build 6: f is no plain value",
    ]
    assert found.builds[4].values["e"].data == ["ls"]  # a list, whatever its tag says


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("builds: [", "is not YAML: line 1"),
        ("builds:\n\t- a: 1", "is not YAML: line 2"),
        ("a: 1\n---\nb: 2", "is not YAML: line 2"),
        ("- a", "holds no builds"),
        ("", "holds no builds"),
        ("builds: " + "x" * 2**20, "is too large"),
    ],
)
def test_no_yaml(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says) as caught:
        document(tmp_path, text)
    assert caught.value.remedy


@pytest.mark.parametrize("text", ["builds: []", "builds: 3", "jobs: 2", "builds:"])
def test_no_builds(tmp_path: Path, text: str) -> None:
    assert "must be a list with at least one build" in str(document(tmp_path, text).mistakes[0])


def test_unreadable(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        read_document(tmp_path / "absent.yaml")
    (tmp_path / "x.yaml").write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="is not UTF-8"):
        read_document(tmp_path / "x.yaml")


def test_many_aliases_cost_nothing(tmp_path: Path) -> None:
    """The billion laughs, and a long list in a long list: what is referred to counts each time."""
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 12)]
    for text, says in (
        ("\n".join([*lines, "builds:", "  - res: *a11"]), "more than 50,000 values"),
        (f"a: &a [{'x, ' * 999}x]\nbuilds:\n  - res: [{'*a, ' * 9999}*a]", "more than 50,000"),
        ("builds:\n  - res: &r [*r]\n", "refers to itself"),
        ("builds:\n  - &r {res: {a: *r}}\n", "refers to itself"),
        ("[" * 100_000, "nested too deeply"),
        ("".join(f"{' ' * i}a:\n" for i in range(500)), "nested too deeply"),
        ("- " * 5_000, "nested too deeply"),
    ):
        with pytest.raises(ConfigError, match=says):
            document(tmp_path, text)


@pytest.mark.parametrize("value", ["9" * 5000, f"1.{'0' * 5000}", "1e400", ".inf", ".nan"])
def test_odd_numbers_are_text(tmp_path: Path, value: str) -> None:
    found = document(tmp_path, f"builds:\n  - batch: {value}\n")
    assert found.builds[0].values["batch"].data == value
