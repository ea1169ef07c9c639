"""From a finished graph to an AOTInductor package: one ``.pt2`` file that torch alone can run.

It holds machine code with the weights, for the CPU. What it asks of a processor is known and kept
by its manifest: torch itself would run it anywhere, and die of an unknown instruction.
"""

from __future__ import annotations

import platform
import re
import sys
import tempfile
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from todo_compile import _torch
from todo_compile.disk import disk_errors, format_bytes
from todo_compile.errors import ExportError, first_line

if TYPE_CHECKING:
    from torch.export import ExportedProgram

    from todo_compile.progress import Progress

NAME = "aotinductor"
"""What manifests call the library; its version is torch's."""

# Threads are asked for when it runs, and no instruction is used but those of `vector_flags`
# (the default is -march=native). Line tables would hold this machine's paths.
_SETTINGS: dict[str, Any] = {
    "cpp.dynamic_threads": True,
    "cpp.march": "",
    "aot_inductor.enable_line_tables": False,
}


@dataclass(frozen=True)
class PackageInfo:
    """What `export_package` wrote.

    Attributes:
        path: the package, one file.
        bytes: its size.
    """

    path: Path
    bytes: int


def version() -> str:
    """Of torch, without the kind of its build: a package for the CPU runs in all of them."""
    return torch.__version__.partition("+")[0]


def needed_features() -> tuple[str, ...]:
    """What a package that is made here needs: system and processor, and its vector instructions.

    Raises:
        ExportError: there is no C++ compiler, or packages of this system have not been tried.
    """
    machine = _machine()
    if machine != "linux-x86_64":
        raise ExportError(
            f"AOTInductor packages are built on Linux for x86-64, and this is {machine}.",
            remedy="Build there, or write ONNX: --out FILE.onnx",
        )
    try:
        flags = _torch.vector_flags()
    except RuntimeError as error:
        raise ExportError(
            f"AOTInductor needs a C++ compiler: {first_line(error)}.",
            remedy="Install g++ (Debian, Ubuntu: apt-get install g++), or name one in CXX.",
        ) from error
    return (machine, *dict.fromkeys(_feature(flag.removeprefix("-m")) for flag in flags))


def features_here() -> frozenset[str]:
    """What this system and processor have, by the names of `needed_features`."""
    found: Mapping[str, Any] = torch.cpu.get_capabilities()
    return frozenset({_machine()} | {_feature(name) for name, has in found.items() if has is True})


def _machine() -> str:
    return f"{sys.platform}-{platform.machine()}"


def _feature(name: str) -> str:
    """``avx512_f`` of torch and ``avx512f`` of the compiler are one."""
    plain = re.sub(r"[^a-z0-9]", "", name.lower())
    return "fma" if plain == "fma3" else plain


def export_package(program: ExportedProgram, path: Path, *, progress: Progress) -> PackageInfo:
    """Compile `program` for this machine's CPU and write it to `path`, weights and all.

    It is called with the program's inputs in order, contiguous and of exactly their shapes, and
    returns what the program does. Not atomic by itself: give it a path in a `files.Stage`.
    `program` is left as it was.

    Args:
        program: with real weights on the CPU.
        path: ends in ``.pt2``; its folder exists.
        progress: gets the step "compile".

    Raises:
        ExportError: Inductor or the C++ compiler refuses the graph, or torch is too old.
        BundleError: the disk is full or the file cannot be written.
    """
    _check_layouts(program)
    with progress.step("compile") as step, disk_errors(path):
        # Beside the package, so that nothing as large as a model stays in torch's cache.
        with tempfile.TemporaryDirectory(prefix="aot-", dir=path.parent) as folder:
            _compile(program, folder, path)
        size = path.stat().st_size
        step.note(format_bytes(size))
    return PackageInfo(path, size)


def _compile(program: ExportedProgram, folder: str, path: Path) -> None:
    if unknown := _SETTINGS.keys() - _torch.inductor_options():
        raise ExportError(
            f"torch {torch.__version__} has no {', '.join(sorted(unknown))}, which packages need.",
            remedy="Install torch 2.13 or newer, or write ONNX: --out FILE.onnx",
        )
    try:
        with warnings.catch_warnings():
            # torch's own internals calling each other's deprecated names.
            warnings.simplefilter("ignore", FutureWarning)
            warnings.simplefilter("ignore", DeprecationWarning)
            files = _torch.compiled_ahead(program, folder, _SETTINGS)
    except OSError:
        raise
    except Exception as error:  # Inductor's errors have no common base
        raise ExportError(
            f"AOTInductor cannot compile this: {first_line(error)}",
            remedy="Report it with the output of --dump, or write ONNX: --out FILE.onnx",
        ) from error
    # The sources are not needed to run it, and hold this machine's paths.
    _torch.package_ahead([name for name in files if not name.endswith(".cpp")], str(path))


def _check_layouts(program: ExportedProgram) -> None:
    """Refuse inputs that are not contiguous: the code would read others as if they were so."""
    names = set(program.graph_signature.user_inputs)
    for node in program.graph.nodes:
        value = node.meta.get("val")
        if node.op != "placeholder" or node.name not in names or value is None:
            continue
        if not value.is_contiguous():
            raise ExportError(
                f"The example input {node.name} is not contiguous, as a package's must be.",
                remedy="Give its .contiguous().",
            )
