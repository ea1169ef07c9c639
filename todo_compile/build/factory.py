"""Modules that the user's own code makes: ``FILE.py:FACTORY`` or ``PACKAGE.MODULE:FACTORY``.

The code is executed, as by ``python FILE.py``: it is the user's, who names it on the command line
or in a file of builds. Nothing that comes with a model or a bundle can name such code.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
import traceback
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from todo_compile.errors import ConfigError, first_line

if TYPE_CHECKING:
    from torch import nn

_FORM = "Write FILE.py:FACTORY or PACKAGE.MODULE:FACTORY."
_RETURN = "Let it return (module, args) or (module, args, kwargs), args being a tuple."


def check_address(address: str) -> tuple[str, str]:
    """(file or module, name of the factory) of an address; nothing is executed.

    Raises:
        ConfigError: it has another form, or the file does not exist.
    """
    place, colon, name = address.rpartition(":")
    if not colon or not place or not all(part.isidentifier() for part in name.split(".")):
        raise ConfigError(f"--module {address!r} names no factory.", remedy=_FORM)
    if _is_file(place):
        if not Path(place).expanduser().is_file():
            raise ConfigError(f"The file {place} does not exist.", remedy=_FORM)
    elif not all(part.isidentifier() for part in place.split(".")):
        raise ConfigError(f"{place!r} is neither a .py file nor a module.", remedy=_FORM)
    return place, name


def make_module(address: str) -> tuple[nn.Module, Sequence[Any], Mapping[str, Any]]:
    """Execute the user's factory.

    Returns:
        The module, and the args and kwargs of an example call.

    Raises:
        ConfigError: it cannot be found, fails, or returns something else.
    """
    place, name = check_address(address)
    with _importable(place), _failing(address):
        found: Any = _execute(place)
        for part in name.split("."):
            if not hasattr(found, part):
                raise ConfigError(f"{place} has no {name}.", remedy=_FORM)
            found = getattr(found, part)
        if not callable(found):
            raise ConfigError(f"{address} cannot be called.", remedy=_RETURN)
        made: Any = found()
    return _checked(made, address)


def check_module(module: object, args: object, kwargs: object) -> None:
    """Refuse what cannot be a module with example inputs.

    Raises:
        ConfigError: the remedy says what is wanted.
    """
    from torch import nn

    if not isinstance(module, nn.Module):
        raise ConfigError(
            f"{module!r:.80} is not a torch module.",
            remedy="Give a torch.nn.Module, or the name of a model without args.",
        )
    if not isinstance(args, (tuple, list)):
        raise ConfigError(
            f"args is {'missing' if args is None else f'a {type(args).__name__}'}.",
            remedy="Give the example inputs as a tuple, (x,) for one: module(*args, **kwargs).",
        )
    if not isinstance(kwargs, Mapping):
        raise ConfigError(
            f"kwargs is a {type(kwargs).__name__}.", remedy="Give a mapping of names to inputs."
        )


def _checked(made: Any, address: str) -> tuple[nn.Module, Sequence[Any], Mapping[str, Any]]:
    parts = cast("tuple[Any, ...]", made) if isinstance(made, tuple) else (made,)
    if len(parts) not in (2, 3):
        raise ConfigError(
            f"{address} returned {len(parts)} value{'' if len(parts) == 1 else 's'}.",
            remedy=_RETURN,
        )
    module, args, kwargs = parts if len(parts) == 3 else (*parts, {})
    try:
        check_module(module, args, kwargs)
    except ConfigError as error:
        message = f"{address} returned something else: {error.message}"
        raise ConfigError(message, remedy=_RETURN) from error
    return module, args, kwargs


def _is_file(place: str) -> bool:
    return place.endswith(".py")


def _execute(place: str) -> Any:
    if not _is_file(place):
        return importlib.import_module(place)
    path = Path(place).expanduser().resolve()
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    before = sys.modules.get(path.stem)
    sys.modules[path.stem] = module  # dataclasses look their module up
    try:
        spec.loader.exec_module(module)
    finally:
        if before is not None:  # a file may be called as a package is
            sys.modules[path.stem] = before
    return module


@contextmanager
def _importable(place: str) -> Generator[None]:
    """With what lies beside a file, or in the working directory, importable as for a script."""
    folder = Path(place).expanduser().resolve().parent if _is_file(place) else Path.cwd()
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        if str(folder) in sys.path:
            sys.path.remove(str(folder))


@contextmanager
def _failing(address: str) -> Generator[None]:
    """Errors of the user's code, with their place."""
    try:
        yield
    except ConfigError:
        raise
    except (Exception, SystemExit) as error:  # whatever code of the user's does
        frame = traceback.extract_tb(error.__traceback__)[-1]
        raise ConfigError(
            f"{address} failed: {type(error).__name__}: {first_line(error)} "
            f"({Path(frame.filename).name}, line {frame.lineno}).",
            remedy="Run the factory by itself: what it does is your code.",
        ) from error
