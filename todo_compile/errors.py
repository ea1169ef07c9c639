"""Errors that a user can mend: each says what is wrong and what to do about it.

The command line prints ``message`` and ``remedy`` without a traceback and leaves with
``exit_code``; the Python API raises them. Anything else that escapes is a bug of ours.
"""

from __future__ import annotations

from pathlib import Path

from todo_compile.foreign import printable

INTERRUPTED = "interrupted; nothing is left half-written"
"""What is said where Ctrl-C or a scheduler ends the work."""


class TodoError(Exception):
    """Base of all errors meant for users.

    Args:
        message: what is wrong, one sentence.
        remedy: what to do about it; shown on a line of its own.
    """

    exit_code = 2

    def __init__(self, message: str, *, remedy: str | None = None) -> None:
        # Names in it may come from files of others, and it may be shown on a terminal.
        self.message = printable(message)
        self.remedy = None if remedy is None else printable(remedy)
        both = self.message if self.remedy is None else f"{self.message}\n{self.remedy}"
        super().__init__(both)


class ConfigError(TodoError):
    """An option or a combination of options that cannot work."""


class ModelError(TodoError):
    """A model or its weights cannot be found, read or trusted."""


class CaptureError(TodoError):
    """A module cannot be turned into a graph."""

    exit_code = 3


class PassError(TodoError):
    """A pass broke one of its own promises; the graph must not be used."""

    exit_code = 4


class ExportError(TodoError):
    """ONNX could not be written or did not reproduce the graph."""

    exit_code = 5


class EngineError(TodoError):
    """TensorRT is absent, refused the network, or ran out of something."""

    exit_code = 6


class BundleError(TodoError):
    """An output or its manifest is damaged, foreign, or cannot be written."""

    exit_code = 7


class InputError(TodoError):
    """An engine was asked for something that it was not built for."""

    exit_code = 8


class MissingPackageError(TodoError):
    """An optional package is not installed, or its import fails."""

    exit_code = 9


class GateError(TodoError):
    """What was built draws too far from the dense model."""

    exit_code = 10


class StoppedError(TodoError):
    """Several builds were interrupted, of which some may be finished."""

    exit_code = 130


_LONGEST_NAME = 255
"""Bytes, on all common file systems."""


def given_path(value: object, name: str) -> Path:
    """The path that a caller of the Python API gave as `name`.

    Raises:
        ConfigError: it is none, or longer than any file system takes.
    """
    if not isinstance(value, (str, Path)) or not str(value) or "\0" in str(value):
        raise ConfigError(
            f"{name} is {value!r:.60}, which is not a path.", remedy="Give text or a pathlib.Path."
        )
    path = Path(value)
    longest = max((part for part in path.parts), key=len, default="")
    if len(longest.encode(errors="surrogatepass")) > _LONGEST_NAME:
        raise ConfigError(
            f"{name} holds the name {longest:.40}…, which is too long.",
            remedy=f"Names of files and folders have at most {_LONGEST_NAME} bytes.",
        )
    return path


def first_line(error: object, *, limit: int | None = None) -> str:
    """What an error of another library says, in one line.

    Args:
        error: the exception, or its text. An exception without text gives its class name.
        limit: most characters; longer lines end in "…".
    """
    lines = str(error).strip().splitlines()
    line = lines[0] if lines else type(error).__name__
    return line if limit is None or len(line) <= limit else line[: limit - 1] + "…"
