"""The gate for data of others: what is refused, and that it is refused at once."""

from __future__ import annotations

import json
import os
import re
import sys
from pathlib import Path
from typing import Any

import pytest

import todo_compile
from todo_compile.errors import TodoError
from todo_compile.foreign import (
    ForeignError,
    check_inside,
    parse_json,
    printable,
    read_bytes,
    read_object,
)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[" * 100_000, "nested too deeply"),
        ("[" * 33 + "]" * 33, "nested too deeply"),
        ('{"a":' * 40 + "1" + "}" * 40, "nested too deeply"),
        ("[" + "0," * 2**20 + "0]", "more than 1,048,576 values"),
        ("[" + "{}," * 2**20 + "0]", "more than 1,048,576 values"),
        ('{"a": 1, "a": 2}', "the key 'a' is given twice"),
        ('{"b": {"a": 1, "c": 0, "a": 1}}', "the key 'a' is given twice"),
        ("NaN", "no number"),
        ("[Infinity]", "no number"),
        ("-Infinity", "no number"),
        ("1e400", "no finite number"),
        ("9" * 21, "too large a number"),
        ("-" + "9" * 5000, "too large a number"),
        (r'"\ud800"', "half a character"),
        (r'{"\udfff": 1}', "half a character"),
        ("{", "not JSON"),
        (b"\xff", "not UTF-8"),
        ("\ufeff{}", "not JSON"),
    ],
)
def test_refused(text: str | bytes, says: str) -> None:
    with pytest.raises(ForeignError, match=re.escape(says)):
        parse_json(text)


@pytest.mark.parametrize(
    "value", [{"a": [1, -2, 0.5, None, True, "é😀"]}, 2**64 - 1, [[[[{}]]]], "\u001b[31m"]
)
def test_plain_values_pass(value: Any) -> None:
    assert parse_json(json.dumps(value)) == value
    assert parse_json(json.dumps(value, ensure_ascii=False).encode()) == value


def test_size(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b" " * 11)
    assert len(read_bytes(tmp_path / "a", 11)) == 11
    with pytest.raises(ForeignError, match="more than 10 bytes"):
        read_bytes(tmp_path / "a", 10)


@pytest.mark.skipif(sys.platform == "win32", reason="no FIFOs")
def test_nothing_waits(tmp_path: Path) -> None:
    """A FIFO that nobody writes to, a device without an end, a folder, and links to them."""
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "link").symlink_to("fifo")
    (tmp_path / "zero").symlink_to("/dev/zero")
    for name in ("fifo", "link", "zero", "."):
        with pytest.raises(ForeignError, match=r"no regular file|is a folder"):
            read_bytes(tmp_path / name)


def test_links(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (tmp_path / "secret.json").write_text("{}")
    (folder / "config.json").write_text("{}")
    (folder / "inner").symlink_to("config.json")
    (folder / "outer").symlink_to(tmp_path / "secret.json")
    (folder / "up").symlink_to("..")
    (tmp_path / "other").symlink_to(folder)
    assert read_object(folder / "inner", within=folder) == {}
    assert read_object(tmp_path / "other" / "inner", within=tmp_path / "other") == {}
    for name in ("outer", "up/secret.json", "../secret.json"):
        with pytest.raises(ForeignError, match="leads out of"):
            read_object(folder / name, within=folder)


def test_hub_cache(tmp_path: Path) -> None:
    """A snapshot's files are links to the repository's blobs, and to nothing above it."""
    repository = tmp_path / "models--org--name"
    snapshot = repository / "snapshots" / "0" / "unet"
    snapshot.mkdir(parents=True)
    (repository / "blobs").mkdir()
    (repository / "blobs" / "a").write_text("{}")
    (tmp_path / "b").write_text("{}")
    (snapshot / "config.json").symlink_to("../../../blobs/a")
    (snapshot / "out.json").symlink_to("../../../../b")
    for folder in (snapshot, snapshot.parent):
        check_inside(snapshot / "config.json", folder)
        with pytest.raises(ForeignError, match="leads out of"):
            check_inside(snapshot / "out.json", folder)


def test_printable() -> None:
    text = "a\x1b[31mb\x9b\x07\u202e\ud800\n\té😀"
    assert printable(text) == "a\\u001b[31mb\\u009b\\u0007\\u202e\\ud800\n\té😀"
    dumped = printable(json.dumps({"k": "\x7f\x9b"}, ensure_ascii=False))
    assert json.loads(dumped) == {"k": "\x7f\x9b"}
    assert TodoError("\x1b]0;x\x07", remedy="\x1b").message == "\\u001b]0;x\\u0007"


def test_every_reader_goes_through_the_gate() -> None:
    """What is not ours is parsed in `foreign` and nowhere else; exceptions are named here."""
    ours = {
        "models/registry.py": "a file of this package",
        "models/loading.py": "what was dumped two lines before",
        "models/ip_adapter.py": "what its only caller dumped, to be a key",
        "build/model_job.py": "what was dumped two lines before",
        "build/many/running.py": "what our own child printed",
        "export/_child.py": "what our own child printed",
        "export/_tensorrt_worker.py": "what our own parent wrote",
        "bundle/manifest.py": "what was dumped in the same line",
        "runtime/triton.py": "what the server hands its own model",
        "foreign.py": "the gate",
    }
    root = Path(todo_compile.__file__).parent
    readers = re.compile(
        r"json\.loads?\(|yaml\.(safe_|full_|unsafe_)?load\(|pickle\.|torch\.load\("
    )
    found = {
        path.relative_to(root).as_posix()
        for path in root.rglob("*.py")
        # A remedy tells how to convert what is refused.
        if readers.search(path.read_text(encoding="utf-8").replace('torch.load("IN"', ""))
    }
    assert found == ours.keys()
