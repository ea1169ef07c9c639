"""What one compilation shall do: everything that can be checked before any work."""

from __future__ import annotations

import platform
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from todo_compile import packages
from todo_compile.batches import Batch, BatchRange
from todo_compile.build.sources import sources_hash
from todo_compile.bundle.files import check_new_folder
from todo_compile.errors import ConfigError
from todo_compile.export import library as libraries
from todo_compile.export.library import Library
from todo_compile.export.targets import Targets, parse_targets, resolve_targets
from todo_compile.options import PlanOptions, TokenGrid
from todo_compile.progress import Progress

if TYPE_CHECKING:
    from torch.export import ExportedProgram

    from todo_compile.build.compiler import CompileResult
    from todo_compile.build.planned import Planned
    from todo_compile.build.request import BuildRequest
    from todo_compile.capture.inputs import ExampleInputs

FORMATS: Mapping[str, str] = {
    ".plan": "tensorrt",
    ".engine": "tensorrt",
    ".onnx": "onnx",
    ".pt2": "pt2",
}
SUFFIXES = tuple(FORMATS)
# Format → the kinds of options (`Option.only`) that say nothing about it.
_FOREIGN: Mapping[str, Sequence[str]] = {
    "tensorrt": (),
    "onnx": ("engine",),
    "pt2": ("engine", "onnx"),
}
_CALLED = {"engine": "TensorRT engines", "onnx": "ONNX files and engines"}
_IS = {"onnx": "an ONNX file", "pt2": "an AOTInductor package"}


@dataclass(frozen=True)
class Job(ABC):
    """A checked request for one output; nothing heavy has happened yet.

    Attributes:
        request: what was asked for.
        out: where the output goes; in a bundle that is being built, not yet where `request` says.
        batch: that the output is called with.
        precision: of the weights.
        options: how factors are chosen.
        library, targets: of an engine or a package; None for ONNX.
        identity: what the manifest keeps as ``request``; equal ones make equal outputs.
        planned: what a tuned plan asks of it; None without one.
    """

    request: BuildRequest
    out: Path
    batch: Batch
    precision: str
    opset: int
    options: PlanOptions
    library: Library | None
    targets: Targets | None
    progress: Progress
    identity: dict[str, Any]
    planned: Planned | None = field(default=None, kw_only=True)

    @property
    def format(self) -> str:
        """Of the output, see `FORMATS`."""
        return FORMATS[self.out.suffix.lower()]

    @property
    def parts(self) -> Sequence[Job]:
        """The outputs that will be built: this one."""
        return (self,)

    def build(self) -> CompileResult:
        """Build the output, or keep an equal one.

        Raises:
            TodoError: whatever the user can mend; nothing is written then.
        """
        from todo_compile.build.compiler import run

        return run(self)

    @abstractmethod
    def capture(self) -> tuple[ExportedProgram, ExampleInputs]:
        """The dense graph with its weights, and what it is called with."""

    @abstractmethod
    def manifest_model(self) -> dict[str, Any]:
        """What the manifest says of the model."""

    @property
    @abstractmethod
    def weight_bytes(self) -> float:
        """Size of the weights; infinite if it is not known."""

    @property
    @abstractmethod
    def native_kv_tokens(self) -> int | None:
        """The default bound on key/value tokens."""

    @property
    @abstractmethod
    def token_grids(self) -> dict[int, TokenGrid]:
        """Grids that the user named, by the number of their tokens."""


def opset_of(request: BuildRequest) -> int:
    """Of the ONNX file."""
    return 23 if request.opset is None else request.opset


def format_of(out: str) -> str | None:
    """The format of a file, by its suffix; None if that says nothing."""
    return FORMATS.get(Path(out).suffix.lower())


def foreign_kinds(format: str | None) -> Sequence[str]:
    """Kinds of options (`Option.only`) that are for other formats."""
    return _FOREIGN.get(format or "", ())


def need_packages(request: BuildRequest) -> None:
    """Check that what writes the output is installed.

    Raises:
        MissingPackageError: it is not.
    """
    if (request.format if request.bundle else format_of(request.out)) != "pt2":
        packages.need("onnx", "Writing ONNX")


def check_output(request: BuildRequest) -> Path:
    """Check what a request says about its output, whatever goes into it; the cheap part.

    Raises:
        ConfigError: an option is not possible, or not for such an output.
    """
    path = Path(request.out)
    kind = format_of(request.out)
    if kind is None:
        raise ConfigError(
            f"The suffix of {path.name!r} says nothing about the format.",
            remedy="End --out in .plan or .engine (TensorRT), .onnx (ONNX) or .pt2 (AOTInductor); "
            "end it in / for a folder with all components.",
        )
    for option in request.given("bundle") + (["A second --res"] if len(request.res) > 1 else []):
        raise ConfigError(
            f"{option} is for bundles, and {request.out} is a file.",
            remedy="End --out in a slash for a bundle, or leave the option out.",
        )
    if not 18 <= opset_of(request) <= 23:
        raise ConfigError(f"Opset {request.opset} is not supported.", remedy="Choose 18 to 23.")
    parse_targets(request.target)
    for only in foreign_kinds(kind):
        for option in request.given(only):
            raise ConfigError(
                f"{option} is for {_CALLED[only]}, and {path.name} is {_IS[kind]}.",
                remedy="Leave it out, or end --out in .plan (of a bundle: --format tensorrt).",
            )
    if request.dump is not None:
        check_new_folder(request.dump, "--dump")
    return path


def builder(request: BuildRequest, progress: Progress) -> tuple[Library | None, Targets | None]:
    """What builds an engine, and for which GPUs, or a package, and for which processors; (None,
    None) for ONNX.

    Raises:
        EngineError: it is absent, or cannot build for them.
        ExportError: packages cannot be built here.
    """
    kind = format_of(request.out)
    if kind == "pt2":
        from todo_compile.export import package

        here = Targets(package.needed_features(), current=True, reason="this machine's CPU")
        return Library(package.NAME, package.version(), ()), here
    if kind != "tensorrt":
        return None, None
    gpu = libraries.current_gpu()
    library = libraries.choose_library(request.library, gpu=gpu)
    targets = resolve_targets(parse_targets(request.target), library, gpu)
    progress.info(f"target         {', '.join(targets.names)} ({targets.reason})")
    return library, targets


def format_identity(
    request: BuildRequest, library: Library | None, targets: Targets | None
) -> dict[str, Any]:
    """What an output's format adds to its identity."""
    return {
        "opset": None if format_of(request.out) == "pt2" else opset_of(request),
        "format": format_of(request.out),
        "library": None if library is None else f"{library.name} {library.version}",
        "target": [] if targets is None else list(targets.names),
        "sources": sources_hash(),
    }


def plain_batch(batch: Batch) -> int | str:
    """As manifests have it: a range in the spelling that it is asked for in."""
    return str(batch) if isinstance(batch, BatchRange) else batch


def versions(*more: str) -> dict[str, str]:
    """Versions of everything whose change can change an output, and of `more`."""
    found = {"python": platform.python_version()}
    for name in ("todo-compile", "torch", "diffusers", "onnx", "onnxscript", "onnx_ir", *more):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
