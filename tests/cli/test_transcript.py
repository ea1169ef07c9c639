"""A newcomer's first commands, as he sees them: compared with what a person has looked at.

    UPDATE_TRANSCRIPTS=1 python -m pytest tests/cli/test_transcript.py

writes the transcripts anew; read the difference before it is committed.
"""

from __future__ import annotations

import os
import re
import shutil
import sys
from collections.abc import Generator
from pathlib import Path

import pytest
from terminal import run, screen

HERE = Path(__file__).parent
LISTS = ("--help", "models", "plan --help", "compile --help", "generate --help", "build --help")
"""They grow with the project: looked at, but not written down."""
COMMANDS = (
    *((one, 0) for one in LISTS),
    ("--version", 0),
    ("plan -m my-model -r 64", 0),
    ("plan -m my-model -r 16", 0),
    ("plan -m my-modle -r 64", 2),
    ("plan -m my-model -r 65", 2),
    ("-m my-model -r 64 -o unet.pln", 2),
    ("-m my-model -r 64 -o unet.onnx --precision fp32 --factors 3,3,3", 2),
    ("-m my-model -r 64 -o unet.onnx --precision fp32", 0),
    ("-m my-model -r 64 -o unet.onnx --precision fp32", 0),
    ("-m my-model -r 64 -o unet.onnx --precision fp32 --factors 2", 0),
    ("inspect unet.onnx", 0),
    ("inspect other.onnx", 7),
    ("build builds.yaml --dry-run", 0),
    ("build wrong.yaml", 2),
    ("generate --bundle my-bundle a cat -o cat.png", 2),
    ("tune -m my-model -r 64 --budget fast -o plan.json", 2),
)
BUILDS = """\
defaults: {model: my-model, precision: fp32}
builds:
  - {res: [64, 128], out: "unet-{res}.onnx"}
"""
WRONG = """\
builds:
  - {model: my-model, res: 64, out: a.onnx, precison: fp32}
  - {model: my-model, res: 65, out: b.onnx}
"""
_CHANGING = (
    (r"\d+\.\d+ ?s\b", "0.0 s"),
    (r"(?<=\w )\d+\.\d(?=,|$)", "0.0"),
    (r"Known: [\s\S]*?(?=\n\[)", "Known: …"),
    (r"\d{4}-\d\d-\d\dT[\d:+]+", "TIME"),
    (r"\b[0-9a-f]{12,64}\b", "HASH"),
    (r"\d+(\.\d+)? (MB|GB|kB)", "SIZE"),
    (
        r"(python|todo-compile|torch|onnx\w*|diffusers|transformers)(\s+)\d+\.\d+\.[\w.+]*",
        r"\1\2VERSION",
    ),
    (r"^\d+\.\d+\.\d+\S*$", "VERSION"),
)


def _steady(text: str) -> str:
    """A text without what differs from run to run."""
    for pattern, instead in _CHANGING:
        text = re.sub(pattern, instead, text, flags=re.MULTILINE)
    return text


@pytest.fixture(scope="module")
def home(model: Path) -> Generator[Path]:
    """A folder whose name always has the same length: lines break by it."""
    folder = Path(f"/tmp/newcomer{os.getpid():08}")
    shutil.copytree(model, folder / "my-model")
    (folder / "builds.yaml").write_text(BUILDS, encoding="utf-8")
    (folder / "wrong.yaml").write_text(WRONG, encoding="utf-8")
    yield folder
    shutil.rmtree(folder)


@pytest.mark.skipif(sys.platform == "win32", reason="paths and terminals look otherwise")
@pytest.mark.parametrize(("width", "terminal"), [(80, True), (140, False)])
def test_first_commands(
    home: Path, width: int, terminal: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(home)
    for old in home.glob("unet.onnx*"):
        old.unlink()
    shown: list[str] = []
    for line, status in COMMANDS:
        code, out, error = run(line.split(), width, terminal=terminal, patch=monkeypatch)
        lines = [*out, *error]
        assert code == status, (line, lines)
        assert not any("Traceback" in one for one in lines), line
        if terminal:
            assert max(map(len, lines), default=0) <= width, (line, lines)
        assert not any(re.search(r"[\w-]…", one) for one in lines), (line, lines)  # a cut word
        if line not in LISTS:
            shown += [f"$ todo-compile {line}", *lines, f"[{code}]" if code else "", ""]
    text = _steady("\n".join(shown)).replace(home.name, "newcomer")
    place = HERE / "transcripts" / f"{width}-{'terminal' if terminal else 'pipe'}.txt"
    if os.environ.get("UPDATE_TRANSCRIPTS"):
        place.parent.mkdir(exist_ok=True)
        place.write_text(text, encoding="utf-8")
    assert text == place.read_text(encoding="utf-8")


def test_what_is_erased_is_not_seen() -> None:
    assert screen("one\ntwo\x1b[1A\r\x1b[2Kthree\x1b[31m!\x1b[0m\n\rfour\n") == ["three!", "four"]
