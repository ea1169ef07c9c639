"""Python's cyclic garbage collection, left out where it only costs.

Importing torch and tracing a model make hundreds of thousands of objects that stay. Each of the
collector's runs looks through all of them again, and finds nothing to free.
"""

from __future__ import annotations

import gc
from collections.abc import Generator
from contextlib import contextmanager


@contextmanager
def paused_collection() -> Generator[None]:
    """While open, no garbage is looked for; what has no references is freed as ever."""
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()
