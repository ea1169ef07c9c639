"""What mkdocs makes of the repository beside docs/: the front page and the reference.

The front page is the README and the commands' reference is what ``--help`` is made of, so nothing
is written twice. Links to files outside docs/ lead to the repository.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).parent))
import site_answers

ROOT = Path(__file__).parents[1]
REPOSITORY = "https://github.com/todo-compile/todo-compile/blob/main/"
# In the order of the README's "Use it".
PUBLIC = (
    "plan", "rewrite", "compile", "compile_bundle", "load", "load_pipeline", "accelerate",
    "restore", "reports", "summary", "clear_reports", "PlanOptions", "Report", "SiteReport",
    "TodoError", "tune", "TunedPlan",
)  # fmt: skip


def on_files(files: Any, config: Any) -> Any:
    """Add the pages that are made here."""
    from mkdocs.structure.files import File

    pages = {
        "index.md": (ROOT / "README.md").read_text(encoding="utf-8"),
        "reference/commands.md": commands(),
        "reference/python.md": python(),
        "reference/json.md": site_answers.page(),
    }
    for name, text in pages.items():
        files.append(File.generated(config, name, content=text))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Links as they are right on GitHub → as they are right on the site."""
    if page.file.src_uri == "index.md":
        markdown = markdown.replace("](docs/", "](")
        return re.sub(r"\]\((?!https?:|#)([^)]+)\)", _from_root, markdown)
    return re.sub(r"\]\(\.\./([^)]+)\)", lambda m: f"]({REPOSITORY}{m[1]})", markdown)


def _from_root(found: re.Match[str]) -> str:
    target = found[1]
    inside = (ROOT / "docs" / target).exists()
    return found[0] if inside else f"]({REPOSITORY}{target})"


def commands() -> str:
    """Every command with all its options, from the command line itself."""
    import typer.main

    from todo_compile.cli.app import app

    group: Any = typer.main.get_command(app)
    context: Any = group.make_context("todo-compile", [], resilient_parsing=True)
    pages = ["# Commands", "Made from `todo-compile --help`."]
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        pages += [f"## {name}", _plain(command.help or "")]
        rows = ["| option | what | default |", "|---|---|---|"]
        for one in command.get_params(context):
            if one.name == "help":
                continue
            shown = ", ".join(f"`{opt}`" for opt in (*one.opts, *one.secondary_opts))
            if one.param_type_name == "argument":
                shown = f"`{one.name.upper()}`"
            elif one.metavar:
                # A bar would end the table's cell, and within backticks nothing escapes it.
                shown += f" <code>{_cell(one.metavar).replace(chr(92) + '|', '&#124;')}</code>"
            text = _plain(one.help or "")
            fixed = re.search(r"\\?\[default: (.*)\]", text)
            default = fixed[1] if fixed else "" if one.default in (None, False, ()) else one.default
            text = re.sub(r"\s*\\?\[default: .*\]", "", text)
            needed = " (required)" if one.required else ""
            rows.append(f"| {shown}{needed} | {_cell(text)} | {_cell(str(default))} |")
        pages.append("\n".join(rows))
    return "\n\n".join(pages) + "\n"


def _plain(text: str) -> str:
    return re.sub(r"\[/?(bold|dim)\]", "", text.replace("\\[", "["))


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")


def python() -> str:
    """The public names, from their docstrings."""
    import todo_compile

    pages = ["# Python"]
    for name in PUBLIC:
        value = getattr(todo_compile, name)
        pages.append(f"::: {value.__module__}.{value.__qualname__}")
    return "\n\n".join(pages) + "\n"
