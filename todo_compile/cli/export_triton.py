"""``todo-compile export-triton``: a model repository of what is built."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from todo_compile.cli.screen import stdout


def export_triton_command(
    path: Annotated[
        Path, typer.Argument(help="A bundle, an ONNX file or an engine.", show_default=False)
    ],
    out: Annotated[
        Path,
        typer.Option("--out", "-o", help="The model repository: a folder, which may hold others."),
    ],
    name: Annotated[
        str | None,
        typer.Option(help="What the models' names begin with. \\[default: that of PATH]"),
    ] = None,
) -> None:
    """Write a model repository for Triton Inference Server.

    One model for each output, ONNX or classic TensorRT; of a bundle the whole pipeline too, as a
    model of the Python backend that calls the others and takes a prompt (its environment needs
    todo-compile\\[generate]).
    """
    from todo_compile.bundle.triton import models_of, write_repository

    for folder in write_repository(models_of(path, name), out):
        stdout().print(str(folder), soft_wrap=True, markup=False)
