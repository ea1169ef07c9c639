"""One small tuning run of the demo model, shared by all tests that need a real plan."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from tune_helpers import Small


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:  # pyright: ignore[reportUnusedFunction]
    """Pictures of 64 px are too small to share; on a busy machine two threads would wait."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def small(tmp_path_factory: pytest.TempPathFactory) -> Small:
    """One small run."""
    pytest.importorskip("scipy")
    torch.set_num_threads(1)
    return Small.run(tmp_path_factory.mktemp("tune"))
