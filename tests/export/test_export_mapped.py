"""Pages of the weights' file that the builder has read are given back, and nothing else is."""

from __future__ import annotations

import mmap
import sys
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from todo_compile.export._mapped import release_pages
from todo_compile.export._tensorrt_worker import _monitor

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
SIZE = 2**22


@contextmanager
def mapped(path: Path, rights: int = mmap.PROT_READ) -> Generator[mmap.mmap]:
    """A file of ours mapped for this process alone, every page read."""
    path.write_bytes(b"weights!" * (SIZE // 8))
    with path.open("rb") as file:
        found = mmap.mmap(file.fileno(), SIZE, flags=mmap.MAP_PRIVATE, prot=rights)
    with found:
        assert found[:] == path.read_bytes()
        assert resident(path) == SIZE
        yield found


def resident(path: Path) -> int:
    """Bytes of a mapped file that count as this process's memory."""
    lines = iter(Path("/proc/self/smaps").read_text().splitlines())
    for line in lines:
        if line.endswith(str(path.resolve())):
            return int(next(one for one in lines if one.startswith("Rss:")).split()[1]) * 1024
    raise AssertionError(f"{path} is not mapped")


def test_pages_are_given_back_and_read_again(tmp_path: Path) -> None:
    other = tmp_path / "m.onnx.data.more"
    with mapped(tmp_path / "a name with spaces") as found, mapped(other):
        release_pages(tmp_path / "a name with spaces")
        assert resident(tmp_path / "a name with spaces") == 0
        assert resident(other) == SIZE
        assert found[:] == (tmp_path / "a name with spaces").read_bytes()


def test_a_link_is_followed(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "data")
    with mapped(tmp_path / "data"):
        release_pages(tmp_path / "link")
        assert resident(tmp_path / "data") == 0


def test_what_may_have_been_written_stays(tmp_path: Path) -> None:
    with mapped(tmp_path / "data", mmap.PROT_READ | mmap.PROT_WRITE) as found:
        found[:4] = b"ours"
        release_pages(tmp_path / "data")
        assert found[:4] == b"ours"


def test_no_such_file(tmp_path: Path) -> None:
    release_pages(tmp_path / "none")  # small weights lie in the model's file


def test_the_builder_gives_them_back_at_the_end_of_a_phase(tmp_path: Path) -> None:
    events: Any = SimpleNamespace(send=lambda *_, **__: None)
    monitor = _monitor(SimpleNamespace(IProgressMonitor=object), events, tmp_path / "data")
    with mapped(tmp_path / "data"):
        monitor.phase_start("build", None, 2)
        monitor.phase_start("copy", "build", 1)
        monitor.step_complete("copy", 0)
        assert resident(tmp_path / "data") == SIZE
        monitor.phase_finish("copy")
        assert resident(tmp_path / "data") == 0
