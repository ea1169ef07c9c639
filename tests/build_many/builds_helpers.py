"""Build files in a few words."""

from __future__ import annotations

from pathlib import Path

from todo_compile.build.many.document import Document, read_document
from todo_compile.build.many.matrix import Build, expand


def document(folder: Path, text: str) -> Document:
    path = folder / "builds.yaml"
    path.write_text(text, encoding="utf-8")
    return read_document(path)


def builds(folder: Path, text: str) -> list[Build]:
    """The builds of a file without mistakes."""
    found = document(folder, text)
    made, wrong = expand(found)
    assert [str(one) for one in (*found.mistakes, *wrong)] == []
    return made


def mistakes(folder: Path, text: str) -> list[str]:
    found = document(folder, text)
    return [str(one) for one in (*found.mistakes, *expand(found)[1])]
