"""Write a graph so that a person can read it: one node a line, numbered files in pass order.

The last file has what was decided for every site.
"""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import torch
from torch.fx import Node

from todo_compile.disk import clear_way
from todo_compile.errors import ConfigError
from todo_compile.passes import ops
from todo_compile.passes.graph import GraphContext
from todo_compile.passes.report import Report


class Dumper:
    """Writes ``00-captured.txt``, ``01-sites.txt``, … into a folder.

    Raises:
        ConfigError: the folder cannot be made or written.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._count = 0
        _make(folder, exist_ok=True)

    def write(self, name: str, context: GraphContext) -> Path:
        """Write the graph as it is now."""
        return self._write(name, format_graph(context))

    def write_report(self, report: Report) -> Path:
        """Write what was decided for every site, as the last file."""
        return self._write("report", format_report(report))

    def _write(self, name: str, lines: list[str]) -> Path:
        path = self._folder / f"{self._count:02d}-{name}.txt"
        self._count += 1
        try:
            clear_way(path)
            path.write_text("\n".join(lines) + "\n", encoding="utf-8")
        except OSError as error:
            raise ConfigError(
                f"{path} cannot be written: {error.strerror}.",
                remedy="Give --dump a folder that you may write.",
            ) from error
        return path


def new_folder(root: Path, stem: str) -> Path:
    """Make the first of ``root/stem000``, ``root/stem001``, … that does not exist.

    Several graphs are compiled in one process, and several processes may dump to one place: nobody
    writes over another's.

    Raises:
        ConfigError: it cannot be made.
    """
    for number in itertools.count():
        folder = root / f"{stem}{number:03d}"
        try:
            _make(folder, exist_ok=False)
        except FileExistsError:
            continue
        return folder
    raise AssertionError("numbers do not end")


def _make(folder: Path, *, exist_ok: bool) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=exist_ok)
    except OSError as error:
        if isinstance(error, FileExistsError) and not exist_ok:
            raise
        raise ConfigError(
            f"The dump folder {folder} cannot be made: {error.strerror}.",
            remedy="Give --dump a folder that you may write.",
        ) from error


def format_graph(context: GraphContext) -> list[str]:
    """One line a node: name, shape and dtype, operation with arguments, module, rule."""
    lines: list[str] = []
    for node in context.graph.nodes:
        shape = context.shape(node)
        dtype = str(context.dtype(node)).removeprefix("torch.")
        kind = "" if shape is None else f": {dtype}[{', '.join(map(str, shape))}]"
        call = ops.raw_name(node) if node.op.startswith("call_") else node.op
        arguments = ", ".join(
            [_plain(a) for a in node.args] + [f"{k}={_plain(v)}" for k, v in node.kwargs.items()]
        )
        notes = [context.module_path(node), str(node.meta.get("todo_rule", ""))]
        remark = "  ".join(n for n in notes if n)
        lines.append(
            f"{node.name}{kind} = {call}({arguments})" + (f"  # {remark}" if remark else "")
        )
    return lines


def format_report(report: Report) -> list[str]:
    """A line a site, and one below it for every place where a pooling stopped on its way up."""
    lines = [report.summary()]
    for site in report.sites:
        row, column = site.factor
        lines.append(
            f"{site.name}  {site.module or '(no module)'}: {site.kind}, {site.action}, factor "
            f"{row}×{column}, {site.key_tokens} → {site.key_tokens_after} keys: {site.reason}"
        )
        lines += [
            f"    {stop.operand} pooled below {stop.node}: {stop.reason}"
            + (f" (costs {stop.extra_flops} FLOPs)" if stop.extra_flops else "")
            for stop in site.stops
        ]
    return lines


def _plain(argument: Any) -> str:
    if isinstance(argument, Node):
        return argument.name
    if isinstance(argument, (list, tuple)):
        return "[" + ", ".join(_plain(a) for a in argument) + "]"
    if isinstance(argument, torch.dtype):
        return str(argument).removeprefix("torch.")
    return "end" if argument == ops.END else repr(argument)
