"""Python's cyclic garbage collection, left out where it only costs.

Importing torch and tracing a model make hundreds of thousands of objects that stay. Each of the
collector's runs looks through all of them again, and finds nothing to free.
"""

from __future__ import annotations

import gc
from collections.abc import Generator
from contextlib import contextmanager


@contextmanager
def paused_collection(*, for_good: bool = False) -> Generator[None]:
    """While open, no garbage is looked for; what has no references is freed as ever.

    Args:
        for_good: nor in what there is at the end. The first run afterwards would walk through all
            of it, for a process that then prints a few lines and ends.
    """
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if for_good:
            gc.freeze()
        if was:
            gc.enable()
