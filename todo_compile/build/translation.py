"""A finished graph as the file of a job's format, or the one that its engine is built from."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from todo_compile.export import onnx

if TYPE_CHECKING:
    from torch.export import ExportedProgram

    from todo_compile.build.job import Job
    from todo_compile.capture.inputs import ExampleInputs
    from todo_compile.progress import Progress


@dataclass(frozen=True)
class Translated:
    """What `translate` wrote.

    Attributes:
        files: names, what others refer to first.
        manifest_onnx: of an ONNX file, what manifests say of it.
    """

    files: tuple[str, ...]
    manifest_onnx: dict[str, Any] = field(default_factory=dict[str, Any])


def translate(
    job: Job,
    program: ExportedProgram,
    path: Path,
    example: ExampleInputs,
    progress: Progress,
    *,
    shared: bool = False,
) -> Translated:
    """Write `program` to `path`: an AOTInductor package, for all other formats ONNX.

    Args:
        shared: other ONNX files share its weights, or it theirs; they go to a file of their own.

    Raises:
        ExportError: an operator has no translation.
        BundleError: the disk is full or the file cannot be written.
    """
    if job.format == "pt2":
        from todo_compile.export.package import export_package

        export_package(program, path, progress=progress)
        return Translated((path.name,))

    info = onnx.export_onnx(
        program,
        path,
        opset=job.opset,
        input_names=example.input_names,
        output_names=example.output_names,
        progress=progress,
        external_over=onnx.SHARED_OVER if shared else onnx.EXTERNAL_OVER,
    )
    facts = {"opset": info.opset, "ops": info.ops, "weight_bytes_inside": info.inside}
    return Translated(info.files, facts)
