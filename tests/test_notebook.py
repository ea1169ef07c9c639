"""The notebook: kept without outputs, its names exist, and (slow) it runs from top to bottom."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

import todo_compile

EXAMPLES = Path(__file__).parents[1] / "examples"
NOTEBOOKS = sorted(EXAMPLES.glob("*.ipynb"))
sys.path.append(str(EXAMPLES))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.name)
def test_as_it_is_committed(path: Path) -> None:
    from run_notebook import code_cells

    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    assert all(c["outputs"] == [] and c["execution_count"] is None for c in cells if "outputs" in c)
    sources = code_cells(path)
    assert sources
    asked = {
        node.attr
        for source in sources
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Attribute)
        and isinstance(node.value, ast.Name)
        and node.value.id == "todo_compile"
    }
    assert asked
    assert [name for name in asked if not hasattr(todo_compile, name)] == []


def test_an_error_is_told_with_its_cell(tmp_path: Path) -> None:
    path = tmp_path / "x.ipynb"
    cells = [{"cell_type": "code", "source": [s]} for s in ("a = 2\n", "a * 3", "a / 0")]
    path.write_text(json.dumps({"cells": cells}), encoding="utf-8")
    command = [sys.executable, str(EXAMPLES / "run_notebook.py"), str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stdout.split("\n") == ["--- cell 1", "--- cell 2", "6", "--- cell 3", ""]
    assert done.stderr == "cell 3: ZeroDivisionError: division by zero\n"


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.name)
def test_it_runs(path: Path, tmp_path: Path) -> None:
    command = [sys.executable, str(EXAMPLES / "run_notebook.py"), str(path)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "sites rewritten" in done.stdout
    assert (tmp_path / "unet.onnx").is_file()
