"""Damaged files of every kind and mistaken command lines: only our own errors come out."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from command_lines import run, without_work
from readers import READERS, attempt


@pytest.mark.parametrize("reader", READERS)
def test_good_file(tmp_path: Path, reader: str) -> None:
    """What is damaged elsewhere is right as it is."""
    name, good, read_it = READERS[reader]
    (tmp_path / name).write_bytes(good)
    read_it(tmp_path / name)


@pytest.mark.parametrize("reader", READERS)
def test_damaged_files(tmp_path: Path, reader: str) -> None:
    outcomes = [attempt(reader, tmp_path, seed) for seed in range(100)]
    assert set(outcomes) - {"accepted"}


def test_command_lines(tmp_path: Path) -> None:
    with without_work(tmp_path):
        found = Counter(run(seed) for seed in range(100))
    assert found["exit 2"] > 50
    assert found["exit 130"] > 2, "hardly any line is right as far as the work"
