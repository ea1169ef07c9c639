"""``todo-compile inspect`` and ``models``: what is there."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from todo_compile.cli.options import Json
from todo_compile.cli.screen import stdout


def inspect_command(
    file: Annotated[Path, typer.Argument(help="An engine, an ONNX file, a manifest, or a bundle.")],
    layers: Annotated[
        bool, typer.Option("--layers", help="The engine's layers, where a GPU is at hand.")
    ] = False,
    json: Json = False,
) -> None:
    """Print an output's manifest, check its files, and list operators or layers."""
    from todo_compile.bundle.bundle import BUNDLE_JSON, is_bundle
    from todo_compile.bundle.inspect import inspect
    from todo_compile.cli.console import print_json

    if is_bundle(file) or file.name == BUNDLE_JSON:
        _inspect_bundle(file, json=json)
        return
    found = inspect(file, layers=layers)
    if json:
        print_json(found.to_dict())
        return
    out = stdout()
    for line in found.lines():
        out.print(line)


def _inspect_bundle(path: Path, *, json: bool) -> None:
    from todo_compile.bundle.bundle import BUNDLE_JSON, check_bundle, read_bundle
    from todo_compile.cli.console import print_json

    folder = path.parent if path.name == BUNDLE_JSON else path
    bundle = read_bundle(folder)
    damage = check_bundle(bundle, folder)
    if json:
        print_json({"bundle": bundle.model_dump(mode="json"), "damage": damage})
        return
    out = stdout()
    for line in (*bundle.summary(), f"intact         {'; '.join(damage) or 'yes'}"):
        out.print(line)


def models_command(json: Json = False) -> None:
    """List the built-in models."""
    from rich.table import Table

    from todo_compile.cli.console import print_json
    from todo_compile.models import REGISTRY

    rows = [
        {
            "name": entry.name,
            "hub_id": entry.hub_id,
            "native_pixels": "x".join(map(str, entry.native_pixels)),
            "native_kv_tokens": entry.native_kv_tokens,
            "parameters": entry.parameters,
            "licence": entry.licence,
            "description": entry.description,
        }
        for entry in REGISTRY.values()
    ]
    if json:
        print_json(rows)
        return
    table = Table(box=None, header_style="bold", pad_edge=False)
    for header in ("name", "trained at", "key tokens", "parameters", "hub id", "licence"):
        table.add_column(header, no_wrap=True)
    for row, entry in zip(rows, REGISTRY.values(), strict=True):
        table.add_row(
            str(row["name"]),
            str(row["native_pixels"]),
            f"{row['native_kv_tokens']:,}",
            f"{entry.parameters / 1e6:,.0f} M",
            str(row["hub_id"] or "in this package"),
            str(row["licence"]),
        )
    stdout().print(table)
