"""Execute a notebook's cells in order, in the current folder, as Jupyter would.

python examples/run_notebook.py examples/first_steps.ipynb

The value of a cell's last expression is printed. An error ends the run with the cell's number; the
notebook itself is not changed.
"""

from __future__ import annotations

import ast
import json
import sys
from pathlib import Path
from typing import Any


def code_cells(path: Path) -> list[str]:
    """The sources of a notebook's code cells."""
    notebook = json.loads(path.read_text(encoding="utf-8"))
    return ["".join(c["source"]) for c in notebook["cells"] if c["cell_type"] == "code"]


def execute(source: str, names: dict[str, Any], label: str) -> None:
    """Run one cell; its last expression is shown."""
    tree = ast.parse(source, label)
    last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
    exec(compile(tree, label, "exec"), names)
    if isinstance(last, ast.Expr):
        value = eval(compile(ast.Expression(last.value), label, "eval"), names)
        if value is not None:
            print(value)


def main() -> None:
    path = Path(sys.argv[1])
    names: dict[str, Any] = {"__name__": "__main__"}
    for number, source in enumerate(code_cells(path), 1):
        print(f"--- cell {number}", flush=True)
        try:
            execute(source, names, f"{path.name}, cell {number}")
        except Exception as error:
            raise SystemExit(f"cell {number}: {type(error).__name__}: {error}") from error


if __name__ == "__main__":
    main()
