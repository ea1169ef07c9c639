"""``todo-compile inspect`` and ``models``: what is there."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from todo_compile.cli.options import Json
from todo_compile.cli.screen import stdout
from todo_compile.errors import BundleError


def inspect_command(
    file: Annotated[Path, typer.Argument(help="An engine, an ONNX file, a manifest, or a bundle.")],
    layers: Annotated[
        bool, typer.Option("--layers", help="The engine's layers, where a GPU is at hand.")
    ] = False,
    json: Json = False,
) -> None:
    """Print an output's manifest, check its files, and list operators or layers.

    What is damaged is printed too; then the exit status is 7.
    """
    from todo_compile.bundle.bundle import BUNDLE_JSON, is_bundle
    from todo_compile.bundle.inspect import inspect
    from todo_compile.cli.answers import InspectAnswer
    from todo_compile.export.layers import engine_layers

    if is_bundle(file) or file.name == BUNDLE_JSON:
        _inspect_bundle(file, json=json)
        return
    found = inspect(file, layers=engine_layers if layers else None)
    if json:
        InspectAnswer(**found.to_dict()).print()
    else:
        stdout().facts(found.lines())
    _refuse_damage(file, found.damage)


def _refuse_damage(path: Path, damage: Sequence[str]) -> None:
    """Let scripts see by the exit status that an output must not be used.

    Raises:
        BundleError: there is damage.
    """
    if damage:
        raise BundleError(
            f"{path} is damaged: {'; '.join(damage)}.",
            remedy="Build it again, or copy it once more from where it is whole.",
        )


def _inspect_bundle(path: Path, *, json: bool) -> None:
    from todo_compile.bundle.bundle import BUNDLE_JSON, check_bundle, details, read_bundle
    from todo_compile.cli.answers import InspectBundleAnswer

    folder = path.parent if path.name == BUNDLE_JSON else path
    bundle = read_bundle(folder)
    damage = check_bundle(bundle, folder)
    if json:
        InspectBundleAnswer(bundle=bundle, damage=tuple(damage)).print()
    else:
        more = () if damage else details(bundle, folder)
        intact = f"intact         {'; '.join(damage) or 'yes'}"
        stdout().facts((*bundle.summary(), *more, intact))
    _refuse_damage(folder, damage)


def models_command(json: Json = False) -> None:
    """List the built-in models."""
    from todo_compile.cli.answers import KnownModel, ModelsAnswer
    from todo_compile.cli.tables import models_table
    from todo_compile.models import REGISTRY

    rows = [
        KnownModel(
            name=entry.name,
            hub_id=entry.hub_id,
            native_pixels="x".join(map(str, entry.native_pixels)),
            native_kv_tokens=entry.native_kv_tokens,
            parameters=entry.parameters,
            licence=entry.licence,
            description=entry.description,
        )
        for entry in REGISTRY.values()
    ]
    if json:
        ModelsAnswer(models=tuple(rows)).print()
        return
    out = stdout()
    out.print(models_table(rows, out.width))
