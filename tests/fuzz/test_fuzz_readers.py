"""Damaged files of every kind: only our own errors come out."""

from __future__ import annotations

from pathlib import Path

import pytest
from readers import READERS, attempt


@pytest.mark.parametrize("reader", READERS)
def test_damaged_files(tmp_path: Path, reader: str) -> None:
    outcomes = [attempt(reader, tmp_path, seed) for seed in range(100)]
    assert set(outcomes) - {"accepted"}
