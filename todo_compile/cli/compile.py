"""``todo-compile compile``, also meant where no command is named: build an output or a bundle."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any, get_args, get_origin

import typer

from todo_compile.build.request import BuildRequest
from todo_compile.cli.options import Json, Quiet, Verbose, make_progress, option, print_passes

if TYPE_CHECKING:
    from todo_compile.build.bundle_job import BundleResult
    from todo_compile.build.compiler import CompileResult
    from todo_compile.cli.console import ConsoleProgress


def compile_command(**given: Any) -> None:
    """Compile a model for a resolution to a TensorRT engine, an ONNX file, or a bundle of them.

    An existing output is kept if everything that matters is equal, else it is rebuilt and the
    differences are named. A failure leaves the old output or none.
    """
    from todo_compile.build.compiler import CompileResult
    from todo_compile.build.model_job import ModelJob

    alone = bool(given.pop("context").obj)
    json, quiet, verbose = (given.pop(name) for name in _SHOWN)
    progress = make_progress(quiet, verbose)
    request = BuildRequest(**{name: value for name, value in given.items() if value is not None})
    job = request.resolve(progress)
    if alone and isinstance(job, ModelJob) and request.gate is None:
        job = replace(job, alone=True)
    result = job.build()
    if isinstance(result, CompileResult):
        _print_output(result, progress, json=json, quiet=quiet, verbose=verbose)
    else:
        _print_bundle(result, progress, json=json, quiet=quiet, verbose=verbose)


_SHOWN = {"json": (Json, False), "quiet": (Quiet, False), "verbose": (Verbose, 0)}
"""Options about what is printed, with their defaults; all others are fields of the request."""


def _declare(command: Callable[..., None]) -> None:
    """Give a command of ``**options`` the signature that typer reads: all of `BuildRequest`."""
    parameters = [_parameter("context", typer.Context, inspect.Parameter.empty)]
    for name, field in BuildRequest.model_fields.items():
        if not BuildRequest.described()[name].panel:
            continue  # for Python alone
        plain = _plain(field.annotation)
        default = inspect.Parameter.empty if field.is_required() else field.default or None
        if plain is bool:
            default = False
        parameters.append(_parameter(name, Annotated[plain, option(name)], default))
    parameters += [_parameter(name, kind, value) for name, (kind, value) in _SHOWN.items()]
    command.__annotations__ = {one.name: one.annotation for one in parameters}
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]


def _parameter(name: str, annotation: Any, default: Any) -> inspect.Parameter:
    return inspect.Parameter(
        name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation
    )


def _plain(annotation: Any) -> Any:
    """A field's type as typer knows types: without checks, tuples as lists."""
    if get_origin(annotation) is Annotated:
        return _plain(get_args(annotation)[0])
    if get_origin(annotation) is tuple:
        return list[_plain(get_args(annotation)[0])]
    parts = [one for one in get_args(annotation) if one is not type(None)]
    return _plain(parts[0]) | None if parts else annotation


_declare(compile_command)


def _print_output(
    result: CompileResult, progress: ConsoleProgress, *, json: bool, quiet: bool, verbose: int
) -> None:
    from todo_compile.cli.answers import CompileAnswer
    from todo_compile.cli.tables import totals_table

    if json:
        CompileAnswer(
            path=str(result.path),
            reused=result.reused,
            rebuilt_because=result.reasons,
            manifest=result.manifest,
        ).print()
        return
    if quiet:
        return
    if result.report is not None:
        if verbose:
            print_passes(result.report)
        progress.console.print(totals_table(result.report))
    progress.console.facts((*result.manifest.summary(), *_proofs(result, verbose)))
    progress.console.print(f"{'kept' if result.reused else 'wrote'} {result.path}")


def _proofs(result: CompileResult, verbose: int) -> list[str]:
    """What ``--verify`` found of every site, at ``-v``."""
    sites = (result.manifest.verification or {}).get("sites", []) if verbose else []
    return [
        f"  proved       {s['module'] or s['name']}: "
        + ("not" if s["error"] is None else f"{s['error']:.1e}")
        + f" ({s['compared']})"
        for s in sites
    ]


def _print_bundle(
    found: BundleResult, progress: ConsoleProgress, *, json: bool, quiet: bool, verbose: int
) -> None:
    from todo_compile.bundle.bundle import details
    from todo_compile.cli.answers import BundleAnswer, Part

    if json:
        BundleAnswer(
            path=str(found.folder),
            reused=found.reused,
            bundle=found.bundle,
            components={
                name: Part(reused=r.reused, rebuilt_because=r.reasons)
                for name, r in found.results.items()
            },
        ).print()
        return
    if quiet:
        return
    for name, result in found.results.items():
        if result.report is not None and verbose:
            print_passes(result.report)
        outcome = "kept" if result.reused else "built"
        progress.console.print(f"\n{name} ({outcome})", style="bold")
        progress.console.facts((*result.manifest.summary(), *_proofs(result, verbose)), indent=2)
    progress.console.print()
    progress.console.facts((*found.bundle.summary(), *details(found.bundle, found.folder)))
    progress.console.print(f"{'kept' if found.reused else 'wrote'} {found.folder}")
