"""A clean slate for every test of the backend."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

import todo_compile


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    torch.compiler.reset()
    todo_compile.clear_reports()
    yield
    torch.compiler.reset()
