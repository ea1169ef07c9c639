"""From a finished graph to an ONNX file."""

from __future__ import annotations

import logging
import warnings
from collections import Counter
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from todo_compile import packages
from todo_compile.collection import paused_collection
from todo_compile.disk import disk_errors, format_bytes
from todo_compile.errors import ExportError, first_line
from todo_compile.export._external import weight_bytes, write_external

if TYPE_CHECKING:
    import onnx_ir as ir
    from torch.export import ExportedProgram

    from todo_compile.progress import Progress

# Protobuf ends at 2 GB and holds the file several times in memory on the way: beyond this the
# weights go to a file of their own.
EXTERNAL_OVER = 256 * 2**20
# Weights that several models of a bundle have in common go there too: inside, each would have its
# own. Less than this is not worth a file.
SHARED_OVER = 2**20
OPSETS = range(18, 24)


@dataclass(frozen=True)
class OnnxInfo:
    """What `export_onnx` wrote.

    Attributes:
        path: the model file.
        files: names of all files, the model last; all in ``path.parent``.
        opset: version of the operator set, as found in the file.
        bytes: size of all files together.
        ops: how many nodes of each operator.
        inside: bytes of the weights that the model file holds itself.
    """

    path: Path
    files: tuple[str, ...]
    opset: int
    bytes: int
    ops: dict[str, int]
    inside: int


def data_name(path: Path) -> str:
    """Name of the weights' file that belongs to the model file `path`."""
    return f"{path.name}.data"


def export_onnx(
    program: ExportedProgram,
    path: Path,
    *,
    opset: int,
    input_names: Sequence[str],
    output_names: Sequence[str],
    progress: Progress,
    external_over: int = EXTERNAL_OVER,
) -> OnnxInfo:
    """Translate `program` to ONNX and write it to `path`, big weights to ``NAME.onnx.data``.

    A dynamic batch becomes a symbolic first size called "batch" of inputs and outputs, the tokens
    of a text a second one called "text". Opset 23 keeps fused attention as ``Attention``; lower
    ones spell it out. Not atomic by
    itself: give it a path in a `files.Stage`. `program` is left as it was.

    Args:
        program: with real weights; fake tensors have nothing to write.
        path: the model file; its folder exists.
        opset: 18 to 23.
        input_names: names of the model's inputs, in order.
        output_names: names of its outputs, in order.
        progress: gets the steps "onnx" and "onnx weights".
        external_over: weights of more bytes than this go to their own file.

    Raises:
        ExportError: the ONNX packages are absent or an operator has no translation.
        BundleError: the disk is full or the file cannot be written.
    """
    if opset not in OPSETS:
        raise ExportError(
            f"Opset {opset} is not supported.",
            remedy=f"Choose {OPSETS.start} to {OPSETS.stop - 1}; 23 takes least GPU memory.",
        )
    packages.need("onnx", "Writing ONNX")
    _check_inputs(program, input_names)
    from todo_compile.export._dynamic import name_sizes

    with progress.step("onnx"), _quiet(progress), paused_collection():
        model = _translate(program, opset, input_names, output_names, progress)
        _simplify(model)
        name_sizes(model)
        _forget_machine(model)
    size = weight_bytes(model)
    with progress.step("onnx weights") as step, disk_errors(path, needs=size):
        names = [path.name]
        apart = size > external_over
        if apart:
            names.insert(0, data_name(path))
            write_external(
                model, path.parent / names[0], lambda done: step.update(done, size, names[0])
            )
        _write_model(model, path)
        total = sum((path.parent / name).stat().st_size for name in names)
        step.note(format_bytes(total))
    return OnnxInfo(
        path=path,
        files=tuple(names),
        opset=model.opset_imports[""],
        bytes=total,
        ops=dict(Counter(node.op_type for node in model.graph).most_common()),
        inside=0 if apart else size,
    )


def _check_inputs(program: ExportedProgram, names: Sequence[str]) -> None:
    """Refuse complex numbers, which ONNX has no inputs of (Lumina's rotary table)."""
    own = program.graph_signature.user_inputs
    values = {n.name: n.meta.get("val") for n in program.graph.nodes if n.op == "placeholder"}
    for node, name in zip(own, names, strict=True):
        dtype = getattr(values.get(str(node)), "dtype", None)
        if dtype is not None and dtype.is_complex:
            raise ExportError(
                f"{name} holds complex numbers, which ONNX has no inputs of.",
                remedy="Make a package (--out NAME.pt2), or compile the module with "
                'torch.compile(module, backend="todo_inductor").',
            )


def _translate(
    program: ExportedProgram,
    opset: int,
    input_names: Sequence[str],
    output_names: Sequence[str],
    progress: Progress,
) -> ir.Model:
    """The ONNX form of `program`, unoptimised, weights still torch's own memory."""
    from todo_compile._torch import onnx_decomposed
    from todo_compile.export._lower import lowered

    fast = lowered(program)
    if fast is not None:
        try:
            return _torch_export(fast, opset, input_names, output_names)
        except ExportError as error:
            progress.info(f"ONNX: decomposing the graph first ({error.message})")
    try:
        decomposed = onnx_decomposed(program, opset)
    except Exception as error:  # whatever torch's tracing raises, as of sizes that data decide
        raise _no_form(error) from error
    slow = lowered(decomposed) or program
    return _torch_export(slow, opset, input_names, output_names)


def _torch_export(
    program: ExportedProgram, opset: int, input_names: Sequence[str], output_names: Sequence[str]
) -> ir.Model:
    import torch

    try:
        # `optimize` would try fifty patterns on every node (8 s for SD1.5); see `_simplify`.
        result = torch.onnx.export(
            program,
            dynamo=True,
            opset_version=opset,
            input_names=list(input_names),
            output_names=list(output_names),
            verbose=False,
            optimize=False,
        )
    except torch.onnx.errors.OnnxExporterError as error:
        raise _no_form(error) from error
    if result is None:
        raise ExportError("torch.onnx.export returned nothing.")
    return result.model


def _no_form(error: BaseException) -> ExportError:
    return ExportError(
        f"The graph has no ONNX form: {_root_cause(error)}",
        remedy="Report it with the output of --dump; another --opset may work.",
    )


def _root_cause(error: BaseException) -> str:
    """The innermost message: the outer ones are general advice over many lines."""
    while error.__cause__ is not None:
        error = error.__cause__
    line = first_line(error, limit=240)
    if "unbacked symbols" in line:  # and then every tensor that there is
        return "sizes in it depend on the values of its inputs"
    return line


def _simplify(model: ir.Model) -> None:
    """Fold constants and drop what does nothing; TensorRT and onnxruntime do the rest anyway."""
    from onnx_ir.passes import common
    from onnxscript import optimizer, rewriter

    optimizer.fold_constants(model)
    # Rules remember the last node that they looked at, and by it the whole model with weights of
    # half a gigabyte (SD1.5): these are forgotten with this call, onnxscript's own ones never.
    rules = [
        rewriter.RewriteRule(spelling, lambda op, x, **_: op.Identity(x))
        for spelling in (lambda _, x: x / 1, lambda _, x: x * 1)
    ]
    rewriter.rewrite(model, pattern_rewrite_rules=rules)
    for tidy in (
        common.IdentityEliminationPass(),
        common.RemoveUnusedNodesPass(),
        common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
        common.DeduplicateInitializersPass(),
        common.CommonSubexpressionEliminationPass(),
        common.NameFixPass(),
    ):
        tidy(model)


def _forget_machine(model: ir.Model) -> None:
    """Drop stack traces: they hold the building machine's paths, and differ from one to the next.

    What says where a node comes from in the model (its name scopes and classes) stays.
    """
    for node in model.graph.all_nodes():
        node.metadata_props.pop("pkg.torch.onnx.stack_trace", None)


def _write_model(model: ir.Model, path: Path) -> None:
    import onnx_ir as ir

    # Serialised in one piece: at most `external_over` bytes.
    data = ir.serde.serialize_model(model).SerializeToString()
    path.write_bytes(data)


class _ToProgress(logging.Handler):
    def __init__(self, progress: Progress) -> None:
        super().__init__(logging.WARNING)
        self._progress = progress

    def emit(self, record: logging.LogRecord) -> None:
        text = record.getMessage()
        # Said on every export, and no diffusion model uses these operators.
        if "torchvision is not installed" not in text:
            self._progress.info(f"ONNX: {text}")


@contextmanager
def _quiet(progress: Progress) -> Generator[None]:
    """Send what the exporter logs or warns to `progress`, without the parts that say nothing."""
    # torch gives "torch.onnx" a handler of its own, so it must be kept from that one.
    logger = logging.getLogger("torch.onnx")
    handlers, propagate = logger.handlers[:], logger.propagate
    logger.handlers, logger.propagate = [_ToProgress(progress)], False
    try:
        with warnings.catch_warnings():
            # torch's own internals calling each other's deprecated names.
            warnings.simplefilter("ignore", FutureWarning)
            warnings.simplefilter("ignore", DeprecationWarning)
            yield
    finally:
        logger.handlers, logger.propagate = handlers, propagate
