"""An option is added in one place: one field, and everybody who shows or reads options knows it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import todo_compile

_FIELD = """\
    watermark: Annotated[str | None, Option("Text in the corner.", _OUTPUT)] = None
"""
_PROGRAM = """
import contextlib, inspect, io, json
from pathlib import Path
import todo_compile
from todo_compile.build.many.checking import check
from todo_compile.bundle.manifest import find_reusable
from todo_compile.cli.app import main

found = {}
text = io.StringIO()
with contextlib.redirect_stdout(text):
    main(["compile", "--help"])
found["help"] = text.getvalue()
Path("builds.yaml").write_text(
    "builds: [{model: demo, res: 128, weights: random, out: x.onnx, watermark: mine}]"
)
found["file"] = check(Path("builds.yaml")).builds[0].request.watermark
found["signature"] = str(inspect.signature(todo_compile.compile))
found["doc"] = todo_compile.compile.__doc__
options = {"res": 128, "weights": "random", "component": "vae-decoder", "out": "x.onnx"}
built = todo_compile.compile("demo", **options, watermark="mine")
found["manifest"] = built.manifest.request["watermark"]
for watermark in ("mine", "yours"):
    request = todo_compile.BuildRequest(model="demo", **options, watermark=watermark)
    found[watermark] = find_reusable(Path("x.onnx"), request.resolve().identity).reasons
print(json.dumps(found))
"""


def test_it_is_known_everywhere(tmp_path: Path) -> None:
    package = tmp_path / "todo_compile"
    shutil.copytree(Path(todo_compile.__file__).parent, package)
    source = package / "build" / "fields.py"
    text = source.read_text(encoding="utf-8")
    source.write_text(f"{text}{_FIELD}", encoding="utf-8")
    environment = {**os.environ, "PYTHONPATH": str(tmp_path), "COLUMNS": "200"}
    done = subprocess.run(
        [sys.executable, "-c", _PROGRAM],
        cwd=tmp_path, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert "--watermark" in found["help"]
    assert "Text in the corner." in found["help"]
    assert found["file"] == "mine"
    assert "watermark" in found["signature"]
    assert "watermark: Text in the corner." in found["doc"]
    assert found["manifest"] == "mine"
    assert found["mine"] == []
    assert found["yours"] == ["watermark: mine → yours"]
