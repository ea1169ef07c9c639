"""Shared by all tests; being here, it also puts this folder (`oracle`, `graphs`) on the path."""

from __future__ import annotations

import gc
import os
import signal

import pytest
import torch
from hypothesis import HealthCheck, settings

_common = {
    "deadline": None,  # captures take what they take
    "suppress_health_check": [HealthCheck.too_slow, HealthCheck.data_too_large],
    "print_blob": True,
}
settings.register_profile("ci", derandomize=True, database=None, **_common)
settings.register_profile("explore", **_common)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))

# A test run in the background inherits an ignored SIGINT and would hand it on to the processes that
# the Ctrl-C tests start; a handler of our own is reset to the default in them.
signal.signal(signal.SIGINT, signal.default_int_handler)
if hasattr(signal, "SIGHUP"):
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # so does nohup

torch.set_num_threads(min(2, os.cpu_count() or 1))


@pytest.fixture(scope="module", autouse=True)
def _old_objects_are_out_of_the_way() -> None:  # pyright: ignore[reportUnusedFunction]
    """Every build collects garbage, and need not look through a million objects of torch's."""
    gc.collect()
    gc.freeze()
