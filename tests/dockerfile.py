"""A Dockerfile's instructions, as far as ours goes: no stages, no heredocs, JSON or shell form."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Step:
    """One instruction: its word in capitals, and what follows in one line."""

    word: str
    text: str

    @property
    def words(self) -> list[str]:
        return shlex.split(self.text)


def read(path: Path) -> list[Step]:
    """The steps, without comments, with continued lines joined."""
    lines = [x for x in path.read_text(encoding="utf-8").splitlines() if not x.startswith("#")]
    joined = re.sub(r"\\\n\s*", "", "\n".join(lines))
    steps: list[Step] = []
    for line in filter(None, map(str.strip, joined.splitlines())):
        word, _, text = line.partition(" ")
        assert re.fullmatch("[A-Z]+", word), line
        steps.append(Step(word, text.strip()))
    return steps


def variables(steps: list[Step]) -> dict[str, str]:
    """What ARG and ENV set, as if nothing was given."""
    found: dict[str, str] = {}
    for step in steps:
        if step.word in ("ARG", "ENV"):
            for word in step.words:
                name, _, value = word.partition("=")
                found[name] = value
    return found
