"""What is known of a build option besides its type and default; it stands with the field."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, InstanceOf

from todo_compile.batches import BatchRange, TextRange, parse_batch, parse_text
from todo_compile.bundle.plan import TunedPlan
from todo_compile.errors import given_path


@dataclass(frozen=True, slots=True)
class Option:
    """An option, for all that show or read it: the command, files of builds, Python, manifests.

    Attributes:
        help: for people; the text of ``--help``.
        panel: heading in the help. "" for what only Python takes.
        short: of the command line, ``-m``.
        metavar: what stands for the value in the help.
        only: what it is for, an output (``bundle``, ``engine``, ``onnx`` and what is made of it)
            or what is built (``model`` by
            name, ``module`` of the user's own); elsewhere it is refused.
        decides: key in a manifest's ``request``, which says what an output is: None is the option's
            own name, "" is for what changes nothing about the output. What a job resolves under the
            same key (weights become their hash) stands there instead of the option's own value.
        joined: a list of values is one word with commas.
        file: the value names a file or folder.
        placeholders: a file of builds may write ``{NAME}`` in it.
    """

    help: str
    panel: str = ""
    short: str = ""
    metavar: str | None = None
    only: Literal["bundle", "engine", "onnx", "model", "module", ""] = ""
    decides: str | None = None
    joined: bool = False
    file: bool = False
    placeholders: bool = False


def _text(value: object) -> object:
    """Numbers and paths where the command line has text: ``res: 1024``, ``factors: 2``."""
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return str(value) if number or isinstance(value, Path) else value


def _several(value: object) -> object:
    """A list of one, where several values are possible."""
    return value if isinstance(value, (list, tuple)) else (value,)


def _batch(value: object) -> object:
    """Python's ``(1, 4)`` as the command line writes it."""
    return str(parse_batch(value)) if isinstance(value, (list, tuple, BatchRange)) else value


def _tokens(value: object) -> object:
    """The same of the tokens of a text."""
    return str(parse_text(value)) if isinstance(value, (list, tuple, TextRange)) else value


def _factors(value: object) -> object:
    """Python's ``(4, (2, 1))``, whose pairs are (rows, columns), as the command line writes it."""
    if not isinstance(value, (list, tuple)):
        return value
    parts: list[Any] = list(value)  # pyright: ignore[reportUnknownArgumentType]
    return ",".join(
        f"{p[1]}x{p[0]}" if isinstance(p, (list, tuple)) and len(p) == 2 else str(p) for p in parts
    )


def path_named(name: str) -> BeforeValidator:
    """Text or a path, as text; anything else is an error that calls it `name`."""

    def check(value: object) -> object:
        given_path(value, name)
        return str(value)

    return BeforeValidator(check)


def _plan(value: object) -> object:
    """A plan, or the path of its file as text."""
    if value is None or isinstance(value, TunedPlan):
        return value
    return str(given_path(value, "plan"))


Plan = Annotated[str | InstanceOf[TunedPlan], BeforeValidator(_plan)]
Text = Annotated[str, BeforeValidator(_text)]
Several = Annotated[tuple[Text, ...], BeforeValidator(_several)]
Batch = Annotated[Text, BeforeValidator(lambda value: _text(_batch(value)))]
Tokens = Annotated[Text, BeforeValidator(lambda value: _text(_tokens(value)))]
Factors = Annotated[Text, BeforeValidator(_factors)]


def option_of(metadata: Sequence[Any]) -> Option | None:
    """The `Option` among a field's metadata."""
    return next((one for one in metadata if isinstance(one, Option)), None)
