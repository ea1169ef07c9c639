"""diffusers and transformers, kept from talking to a user who has not called them."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any


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
