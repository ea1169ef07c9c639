"""Names that others chose are shown as they are: no markup, nothing that a terminal obeys."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from rich.table import Table

from todo_compile.cli.app import main
from todo_compile.cli.console import ConsoleProgress
from todo_compile.cli.screen import Screen
from todo_compile.export import _child

_NASTY = "a[/red]\x1b]0;owned\x07\x9b31m\u202e[bold]:smile:"
_SHOWN = "a[/red]\\u001b]0;owned\\u0007\\u009b31m\\u202e[bold]:smile:"


def shown(console: Screen) -> str:
    return console.export_text(styles=True)


def test_everything_printed() -> None:
    with open(os.devnull, "w", encoding="utf-8") as sink:
        console = Screen(record=True, width=200, file=sink)
        console.print(_NASTY)
        console.print(_NASTY, style="red")
        table = Table("x")
        table.add_row(_NASTY)
        console.print(table)
        progress = ConsoleProgress(console)
        with progress.step(_NASTY) as step:
            step.update(1, 2, _NASTY)
            step.note(_NASTY)
        progress.info(_NASTY)
        progress.warn(_NASTY)
    text = shown(console)
    assert text.count(_SHOWN) == 7
    assert "owned\x07" not in text
    assert "\u202e" not in text


def test_bars_of_a_terminal() -> None:
    with open(os.devnull, "w", encoding="utf-8") as sink:
        console = Screen(record=True, width=200, file=sink, force_terminal=True)
        with ConsoleProgress(console).step(_NASTY) as step:
            step.update(1, 2, _NASTY)


def test_output_with_markup_in_its_name(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "a[" / "red].onnx"
    out.parent.mkdir()
    out = out.with_name("b[bold].onnx")
    assert main(["-m", str(model), "-r", "64", "-o", str(out), "--precision", "fp32"]) == 0
    assert "b[bold].onnx" in capsys.readouterr().err
    assert main(["-m", str(model), "-r", "64", "-o", str(out), "--precision", "fp32"]) == 0
    assert "kept" in capsys.readouterr().err


def test_manifest_of_others(output: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = output.with_name(f"{output.name}.json")
    values = json.loads(path.read_text())
    values["model"]["name"] = _NASTY
    values["versions"][_NASTY] = _NASTY
    path.write_text(json.dumps(values))
    assert main(["inspect", str(output)]) == 0
    text = capsys.readouterr().out
    assert "\x1b" not in text
    assert "a[/red]\\u001b" in text
    assert main(["inspect", str(output), "--json"]) == 0
    text = capsys.readouterr().out
    assert "\x1b" not in text
    assert "\x9b" not in text
    assert json.loads(text)["manifest"]["model"]["name"] == _NASTY


@pytest.mark.parametrize("name", ["todo_compile.py", "json.py", "tensorrt_rtx.py", "queue.py"])
def test_children_import_nothing_of_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    (tmp_path / name).write_text("open('ran', 'w')\n")
    monkeypatch.chdir(tmp_path)
    outcome = _child.run_worker({"do": "probe", "library": "tensorrt_rtx"})
    assert "version" in outcome.result
    assert not (tmp_path / "ran").exists()
