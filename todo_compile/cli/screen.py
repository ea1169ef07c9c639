"""Where all commands print: text comes out as it is, whatever it holds.

Names in manifests, models, build files and paths are chosen by others. rich would take ``[/red]``
for markup, and a terminal obeys what follows an ESC. Here nothing but what we style ourselves (a
`Text`) has a style, and what would steer a terminal is written out.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any

from rich.console import Console
from rich.text import Text

from todo_compile.foreign import printable


class Screen(Console):
    """A console without markup, highlighting or control characters."""

    def __init__(self, **options: Any) -> None:
        super().__init__(markup=False, highlight=False, emoji=False, **options)

    def render_str(self, text: str, **options: Any) -> Text:
        """All texts pass here, those in tables too."""
        return super().render_str(printable(text), **options)

    def print(self, *objects: Any, **options: Any) -> None:
        """Lines are broken for a terminal only: a path in a log stays in one piece."""
        if not self.is_terminal and all(isinstance(one, (str, Text)) for one in objects):
            options.setdefault("soft_wrap", True)
        super().print(*objects, **options)

    def facts(self, lines: Iterable[str], indent: int = 0) -> None:
        """Print lines of a label and a text, see `tables.facts`."""
        from todo_compile.cli.tables import facts

        for line in facts(lines, self.width if self.is_terminal else None, indent):
            self.print(line)


stderr = Screen(stderr=True)


def stdout() -> Screen:
    """Standard output; tables are wide where it is no terminal."""
    return Screen(width=None if sys.stdout.isatty() else 160)
