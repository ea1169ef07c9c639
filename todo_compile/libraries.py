"""diffusers and transformers: kept quiet, and kept from importing what nobody has asked for."""

from __future__ import annotations

import importlib.metadata
import logging
import sys
import warnings
from collections.abc import Generator
from contextlib import contextmanager, nullcontext
from typing import Any
from unittest import mock

# What diffusers imports with any of its networks where it is installed: 2 of 8 seconds. The last is
# what Dynamo, which diffusers imports, takes where torch has it: a tenth of a second.
_UNASKED = (
    "transformers", "peft", "accelerate", "scipy", "torchao", "bitsandbytes", "xformers",
    "torch.distributed.fsdp",
)  # fmt: skip


@contextmanager
def diffusers_alone() -> Generator[None]:
    """While open, diffusers is imported as where only the extra "models" is installed.

    diffusers asks of each optional package whether it could be imported, once, and imports it then
    whether it is needed or not; no setting of its own says otherwise. `None` in `sys.modules` is
    Python's own word for a module that cannot be imported. diffusers keeps the answer: for a
    process that ends with what it was started for, never for a user's. It also reads the list of
    files of every installed package, for the versions of a few that no network needs; it is told
    that there are none.

    Nothing is done where diffusers has been imported already, as by the check of a folder's index.
    """
    absent = [] if "diffusers" in sys.modules else [n for n in _UNASKED if n not in sys.modules]
    hidden = dict.fromkeys(absent)
    sys.modules.update(hidden)  # pyright: ignore[reportArgumentType, reportCallIssue]
    unread = mock.patch.object(importlib.metadata, "packages_distributions", dict)
    try:
        with unread if hidden else nullcontext():
            yield
    finally:
        for name in hidden:
            if sys.modules.get(name) is None:
                sys.modules.pop(name, None)


@contextmanager
def quiet_libraries(level: int = logging.ERROR) -> Generator[None]:
    """Without bars, advice on packages and deprecations of diffusers and transformers.

    Args:
        level: of messages that still come through.
    """
    from diffusers.utils import logging as diffusers

    loggers = [logging.getLogger(name) for name in ("diffusers", "transformers", "huggingface_hub")]
    levels = [logger.level for logger in loggers]
    bars: list[Any] = [diffusers, *_transformers()]
    shown = [bool(one.is_progress_bar_enabled()) for one in bars]
    for logger in loggers:
        logger.setLevel(level)
    for one in bars:
        one.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            warnings.simplefilter("ignore", DeprecationWarning)
            yield
    finally:
        for logger, before in zip(loggers, levels, strict=True):
            logger.setLevel(before)
        for one, before in zip(bars, shown, strict=True):
            if before:
                one.enable_progress_bar()


def _transformers() -> list[Any]:
    """Its logging, where it is installed: some pipelines do without."""
    try:
        from transformers.utils import logging as found
    except ImportError:
        return []
    return [found]
