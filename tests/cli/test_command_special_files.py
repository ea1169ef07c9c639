"""FIFOs and devices where files are read or written: refused at once, and still there."""

from __future__ import annotations

import os
import stat
import sys
from pathlib import Path

import pytest

from todo_compile.cli.app import main

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="no FIFOs")

COMPILE = "compile -m MODEL -r 64 --precision fp32"
LINES = {
    "model": "compile -m PLACE -r 64 -o x.onnx",
    "out": f"{COMPILE} -o PLACE",
    "engine": "compile -m MODEL -r 64 -o PLACE.plan --target sm89",
    "folder": f"{COMPILE} --format onnx -o PLACE/",
    "lora": f"{COMPILE} -o x.onnx --lora PLACE",
    "weights": f"{COMPILE} -o x.onnx --weights PLACE",
    "plan": f"{COMPILE} -o x.onnx --plan PLACE",
    "dump": f"{COMPILE} -o x.onnx --dump PLACE",
    "module": "compile --module PLACE:f -o x.onnx",
    "timing cache": "compile -m MODEL -r 64 -o x.plan --target sm89 --timing-cache PLACE",
    "plot": "plan -m MODEL -r 64 --plot PLACE.png",
    "drift's plot": "drift -m MODEL -r 64 --plot PLACE.png",
    "prompts": "tune -m demo -r 64 --budget drift=1e-3 -o p.json --prompts PLACE",
    "scores": "tune -m demo -r 64 --budget drift=1e-3 -o p.json --scores PLACE",
    "tuned": "tune -m demo -r 64 --budget drift=1e-3 -o PLACE",
    "picture": "generate -m demo -r 64 -p a -o PLACE.png",
    "image": "generate -m demo -r 64 -p a -o x.png --image PLACE",
    "tensors": "generate -m demo -r 64 -p a -o x.png --tensors PLACE",
    "drawn plan": "generate -m demo -r 64 -p a -o x.png --plan PLACE",
    "bundle": "generate -b PLACE -p a -o x.png",
    "builds": "build PLACE",
    "logs": "build builds.yaml --logs PLACE",
    "inspected": "inspect PLACE",
    "exported": "export-triton PLACE -o out",
}


@pytest.mark.parametrize("kind", ["fifo", "device"])
@pytest.mark.parametrize("line", LINES)
def test_special_files(
    model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    line: str,
    kind: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("builds.yaml").write_text(f"builds: [{{model: '{model}', res: 64, out: a.onnx}}]")
    (word,) = (w for w in LINES[line].split() if "PLACE" in w)
    suffix = word.removeprefix("PLACE").partition(":")[0].rstrip("/") or ".onnx"
    place = Path(f"special{suffix}")
    place.symlink_to("/dev/zero") if kind == "device" else os.mkfifo(place)
    before = sorted(os.listdir())
    words = LINES[line].replace("PLACE", "special" if word.endswith(suffix) else str(place))
    assert main([w.replace("MODEL", str(model)) for w in words.split()]) in (2, 7, 8)
    assert "Traceback" not in capsys.readouterr().err
    assert sorted(os.listdir()) == before
    mode = place.stat().st_mode
    assert stat.S_ISCHR(mode) if kind == "device" else stat.S_ISFIFO(mode)
