"""The Python API: `plan`, `rewrite`, `compile` and `compile_bundle`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from todo_compile.errors import ConfigError, given_path
from todo_compile.options import PlanOptions, TokenGrid, check_token_grids

if TYPE_CHECKING:
    from torch import nn

    from todo_compile.build.bundle_job import BundleResult
    from todo_compile.build.compiler import CompileResult
    from todo_compile.passes.report import Report
    from todo_compile.progress import Progress


def compile(
    model: str | Path | nn.Module | None = None,
    args: Sequence[Any] | None = None,
    kwargs: Mapping[str, Any] | None = None,
    *,
    progress: Progress | None = None,
    **options: Any,
) -> CompileResult | BundleResult:
    """Compile a model for one resolution: rewrite its attention and write an engine or ONNX file.

    ``compile(**options)`` is ``BuildRequest(**options).resolve().build()``: the options are those
    of ``todo-compile compile``, with ``_`` for ``-``, and a few that only Python has. A folder as
    `out` makes a bundle, see `compile_bundle`. Any module is compiled as it is called::

        compile(module, (x, {"text": text}), {"mask": mask}, out="module.onnx")
        load("module.onnx")(x, {"text": text}, mask=mask)

    Its inputs and outputs are named after its signature; what is nested is flattened and comes back
    nested (dataclasses as `Fields`). Constants among the inputs, and all sizes but the batch of
    ``dynamic_batch``, are those of the example.

    Args:
        model: registry name (``sd15``), local diffusers folder, or hub id; or a module.
        args, kwargs: example inputs of a module.
        progress: receives steps and remarks; None is silent.
        options: ``out`` at least, and ``res`` for a name; what each means stands below.

    Returns:
        What was made or found: a `CompileResult`, for a folder a `BundleResult`.

    Raises:
        TodoError: whatever the user can mend; nothing is written then.
    """
    from todo_compile.build.request import BuildRequest

    subject = {} if model is None and "module" in options else _subject(model, args, kwargs)
    return BuildRequest(**subject, **options).resolve(progress).build()


def _subject(model: object, args: object, kwargs: object) -> dict[str, Any]:
    """The options that say what is meant."""
    if args is not None or kwargs is not None or _is_module(model):
        return {"module": model, "args": args, "kwargs": kwargs}
    return {"model": str(given_path(model, "model"))}


def _is_module(value: object) -> bool:
    if value is None or isinstance(value, (str, Path)):
        return False
    import torch

    return isinstance(value, torch.nn.Module)


def _options_of_a_build() -> None:
    """Let `help` and editors see the options that `compile` takes."""
    import inspect

    from todo_compile.build.request import BuildRequest

    fields = [
        inspect.Parameter(
            name,
            inspect.Parameter.KEYWORD_ONLY,
            default=inspect.Parameter.empty if field.is_required() else field.default,
        )
        for name, field in BuildRequest.model_fields.items()
        if name not in ("model", "args", "kwargs")
    ]
    own = inspect.signature(compile)
    kept = [one for one in own.parameters.values() if one.kind != inspect.Parameter.VAR_KEYWORD]
    compile.__signature__ = own.replace(parameters=[*kept, *fields])  # type: ignore[attr-defined]
    lines = [f"    {name}: {one.help}" for name, one in BuildRequest.described().items()]
    compile.__doc__ = "\n".join([inspect.getdoc(compile) or "", "", "Options:", *lines])


_options_of_a_build()


def compile_bundle(
    model: str | Path, *, out: str | Path, progress: Progress | None = None, **options: Any
) -> BundleResult:
    """`compile` the components of a pipeline into one folder, for one resolution or several.

    Components whose own request is equal are kept. The VAE decoder is built for the images of a
    batch with guidance (half of ``batch``), the text encoders for one prompt.

    Args:
        model, progress, options: as for `compile`. For every further resolution in ``res`` the
            denoising model and the VAE decoder are built anew (in ONNX they share their weights'
            file), the rest serves all. What runs is chosen by the size of the picture.
        out: the folder: absent, empty, or an older bundle.

    Raises:
        TodoError: whatever the user can mend; an older bundle then stands as it was.
    """
    given_path(model, "model")
    folder = f"{given_path(out, 'out')}/"
    return cast("BundleResult", compile(model, out=folder, progress=progress, **options))


_PLANNED = (
    "res", "component", "batch", "text_tokens", "frames", "precision", "native_kv_tokens",
    "token_grids", "ip_adapter",
)  # fmt: skip


def plan(
    model: str | Path | nn.Module,
    args: Sequence[Any] | None = None,
    kwargs: Mapping[str, Any] | None = None,
    *,
    options: PlanOptions | None = None,
    dump: str | Path | None = None,
    **given: Any,
) -> Report:
    """What compiling would do to every attention site; needs no weights and writes nothing.

    Args:
        model: registry name, local diffusers folder, or hub id; or a module, see `compile`.
        args, kwargs: example inputs of a module.
        options: how factors are chosen; see `PlanOptions.create`.
        dump: folder for the graph before and after every pass.
        given: of a model by name ``res``, a side in pixels or ``"WIDTHxHEIGHT"``, ``component``,
            ``batch``, ``text_tokens``, ``frames``, ``ip_adapter`` and ``precision``; of a module
            ``native_kv_tokens`` and ``token_grids``. They mean what they do for `compile`. Of a
            range of batches the figures are those of the largest.

    Raises:
        ConfigError: options that the model cannot follow.
        ModelError: the model is unknown.
        CaptureError: the module cannot be traced.
        MissingPackageError: diffusers or what it needs is not installed.
    """
    from todo_compile.build.planning import plan_request
    from todo_compile.build.request import BuildRequest

    if unknown := [name for name in given if name not in _PLANNED]:
        raise ConfigError(
            f"plan has no option {unknown[0]}.", remedy=f"Known: {', '.join(_PLANNED)}."
        )
    request = BuildRequest(
        **_subject(model, args, kwargs),
        out="plan.onnx",
        dump=None if dump is None else Path(dump),
        options=options,
        **given,
    )
    return plan_request(request)


def rewrite(
    module: nn.Module,
    args: Sequence[Any],
    kwargs: Mapping[str, Any] | None = None,
    *,
    options: PlanOptions | None = None,
    native_kv_tokens: int | None = None,
    token_grids: Mapping[int, TokenGrid] | None = None,
    image_axes: Mapping[str, tuple[int, int]] | None = None,
    dump: str | Path | None = None,
) -> tuple[nn.Module, Report]:
    """A copy of `module` with downsampled keys and values, for the shapes of the example inputs.

    The result is an ordinary module: it shares the weights, runs without compilation, and can be
    trained, compiled or exported further. The original is untouched. Attention that it enters
    ``torch.autocast`` or a grad mode for is a graph of its own and stays dense, as the report says.

    Args:
        module: any module with attention. Where it has dropout or batch normalisation, the result
            stays in its mode: the other raises a CaptureError.
        args, kwargs: example inputs.
        options: how factors are chosen.
        native_kv_tokens: the default bound on key/value tokens; 4096 if None. Of a video: on those
            of each frame.
        token_grids: number of tokens → (rows, columns), or (frames, rows, columns) of a video, for
            models whose image tokens arrive packed as (B, N, C), so that the graph cannot prove
            their grid. Your word counts: text of such a length, with no larger image beside it,
            would be taken for an image.
        image_axes: argument by name → its (row, column) axes, ``{"sample": (2, 3)}``, for models
            that mind no neighbours (patches of one cell), so that nothing in the graph proves them.
        dump: folder for the graph before and after every pass.

    Returns:
        The rewritten module, and what was done to every attention site.

    Raises:
        CaptureError: `torch.export` cannot trace the module.
        ConfigError: options that this module cannot follow.
    """
    from todo_compile.capture.modes import allow_modes, depends_on_mode
    from todo_compile.capture.trace import capture, constants_of
    from todo_compile.passes.pipeline import rewrite_graph

    program = capture(module, args, kwargs, regions=True)
    dependent = depends_on_mode(program.graph)
    report = rewrite_graph(
        program.graph_module,
        options,
        native_kv_tokens=native_kv_tokens,
        token_grids=check_token_grids(token_grids),
        constants=constants_of(program),
        image_axes=image_axes,
        dump=Path(dump) if dump is not None else None,
    )
    program.validate()
    rewritten = allow_modes(program.module(), training=module.training, dependent=dependent)
    return rewritten, report
