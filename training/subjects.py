"""What the demo model draws, and the words for it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path


@dataclass(frozen=True)
class Subject:
    """One picture of the data set.

    Attributes:
        code: code points of the emoji in hexadecimal, as the file is named.
        one: noun phrase with its article.
    """

    code: str
    one: str

    @property
    def bare(self) -> str:
        """The noun phrase without its article."""
        return self.one.split(" ", 1)[1]

    @property
    def pattern(self) -> str:
        """The prompt for many of it; the same words, so what they mean is learnt once."""
        return f"{self.one} pattern"


SUBJECTS: tuple[Subject, ...] = (
    Subject("1f34e", "a red apple"),
    Subject("1f353", "a strawberry"),
    Subject("2764-fe0f", "a red heart"),
    Subject("1f431", "a cat"),
    Subject("1f33b", "a sunflower"),
    Subject("1f60a", "a smiling face"),
    Subject("26bd", "a soccer ball"),
    Subject("1f355", "a slice of pizza"),
    Subject("2b50", "a star"),
    Subject("1f319", "a crescent moon"),
    Subject("1f344", "a mushroom"),
    Subject("1f680", "a rocket"),
    Subject("2602-fe0f", "an umbrella"),
    Subject("1f335", "a cactus"),
    Subject("1f419", "an octopus"),
    Subject("1f41e", "a ladybug"),
    Subject("1f349", "a slice of watermelon"),
    Subject("1f697", "a red car"),
    Subject("1f388", "a balloon"),
    Subject("1f427", "a penguin"),
    Subject("1f438", "a frog"),
    Subject("1f43c", "a panda"),
    Subject("1f383", "a pumpkin"),
    Subject("1f369", "a donut"),
)

PLAIN = (246, 246, 246)
"""Background where the prompt names none."""

BACKGROUNDS: dict[str, tuple[int, int, int]] = {
    "blue": (150, 190, 240),
    "pink": (250, 190, 215),
    "yellow": (250, 232, 150),
    "green": (165, 220, 175),
    "purple": (190, 170, 235),
    "black": (30, 30, 38),
}
"""Backgrounds that a prompt may name, as 8-bit RGB."""


def extended(names: Path, assets: Path, count: int) -> tuple[Subject, ...]:
    """`SUBJECTS`, and after them further emoji up to `count`, in Unicode's order.

    Flags, symbols and pictures of people are left out: they are text, or many alike.

    Args:
        names: ``data-by-emoji.json`` of npm's ``unicode-emoji-json``.
        assets: folder of the pictures.
        count: how many in all; fewer where there are no more.
    """
    found = list(SUBJECTS)
    taken = {subject.code for subject in SUBJECTS}
    entries = json.loads(names.read_text(encoding="utf-8"))
    for emoji, entry in entries.items():
        if len(found) >= count:
            break
        code = "-".join(f"{ord(letter):04x}" for letter in emoji)
        skipped = entry["group"] in ("Flags", "Symbols", "People & Body")
        if skipped or code in taken or not (assets / f"{code}.webp").is_file():
            continue
        name = entry["name"].lower()
        article = "an" if name[0] in "aeiou" else "a"
        found.append(Subject(code, f"{article} {name}"))
    return tuple(found[:count])


def write_subjects(subjects: Sequence[Subject], path: Path) -> None:
    """Note the subjects of a run beside its checkpoints."""
    path.write_text(json.dumps([asdict(s) for s in subjects], indent=1) + "\n", encoding="utf-8")


def read_subjects(path: Path) -> tuple[Subject, ...]:
    """Read what `write_subjects` wrote; the standard ones where there is no file."""
    if not path.is_file():
        return SUBJECTS
    return tuple(Subject(**entry) for entry in json.loads(path.read_text(encoding="utf-8")))
