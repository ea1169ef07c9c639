"""The documents name what exists: options, files and Python names; the site itself is CI's."""

from __future__ import annotations

import importlib
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import typer.main

import todo_compile
from todo_compile.cli.answers import ANSWERS
from todo_compile.cli.app import app

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
GROUP: Any = typer.main.get_command(app)
sys.path.append(str(ROOT / "docs"))


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", page.read_text(encoding="utf-8")):
        assert (page.parent / target).exists(), target


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_commands_and_options_exist(page: Path) -> None:
    """Every `todo-compile …` in a document is one that the command line takes."""
    text = page.read_text(encoding="utf-8").replace("\\\n", " ")
    for line in re.findall(r"(?:^|`)\s*todo-compile ([^`\n]+)", text, re.MULTILINE):
        words = re.sub(r"\s#.*", "", line).split()
        name = words[0] if not words[0].startswith("-") else "compile"
        if name not in GROUP.commands:
            assert name in ("--help", "…"), line
            continue
        known = {opt for p in GROUP.commands[name].params for opt in p.opts} | {"--help", "-h"}
        assert {w.partition("=")[0] for w in words if w.startswith("-")} <= known, line


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_python_names_exist(page: Path) -> None:
    for name in re.findall(r"todo_compile\.(\w+)\(", page.read_text(encoding="utf-8")):
        assert hasattr(todo_compile, name), name


def test_reference_has_every_option() -> None:
    site_pages: Any = importlib.import_module("site_pages")

    text = site_pages.commands()
    for name, command in GROUP.commands.items():
        part = text.partition(f"\n## {name}\n")[2].partition("\n## ")[0]
        for option in (o for p in command.params for o in p.opts if o.startswith("--")):
            assert f"`{option}`" in part, (name, option)
    assert set(site_pages.PUBLIC) >= {n for n in todo_compile._HOMES if n[0].islower()}


def test_reference_has_every_answer() -> None:
    """Each has its table, and no field and no part goes without a word."""
    site_answers: Any = importlib.import_module("site_answers")
    text = site_answers.page()
    for answer in ANSWERS:
        assert f"`{answer.model_fields['format'].default}`" in text
        assert {"format", "version"} < answer.model_fields.keys()
    rows = re.findall(r"^\| `(\w+)` \| (.*) \| (.*) \|$", text, re.MULTILINE)
    assert len(rows) > 100
    assert [name for name, kind, said in rows if not kind or not said] == []
