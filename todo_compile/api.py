"""The Python API: `plan` and `rewrite`; `compile` lives in `todo_compile.build.compiler`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from todo_compile import packages
from todo_compile.batches import Batch, BatchLike, BatchRange, largest, parse_batch
from todo_compile.errors import ConfigError, given_path
from todo_compile.options import PlanOptions, check_token_grids

if TYPE_CHECKING:
    import torch
    from torch import nn

    from todo_compile.models import Source
    from todo_compile.passes.report import Report

PRECISIONS = ("fp16", "bf16", "fp32")


def dtype_of(precision: str) -> torch.dtype:
    """The torch dtype of ``fp16``, ``bf16`` or ``fp32``.

    Raises:
        ConfigError: anything else.
    """
    import torch

    names = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}
    if precision not in names:
        raise ConfigError(
            f"Unknown precision {precision!r}.", remedy=f"Known: {', '.join(PRECISIONS)}."
        )
    return names[precision]


def default_batch(source: Source) -> int:
    """2 for a denoising model: one image with classifier-free guidance; 1 for the rest."""
    from todo_compile.models.components import OTHERS

    return 1 if source.component in OTHERS else 2


def check_batch(source: Source, batch: BatchLike | None) -> Batch:
    """The batch of a component: what was asked for, or its default.

    Raises:
        ConfigError: it is no batch, or a range for a text encoder.
    """
    if batch is None:
        return default_batch(source)
    found = parse_batch(batch)
    if isinstance(found, BatchRange) and source.component.startswith("text_encoder"):
        raise ConfigError(
            f"A text encoder has no range of batches such as {found}.",
            remedy="Give one number: 1 serves any number of prompts, one after the other.",
        )
    return found


def check_options(source: Source, options: PlanOptions | None) -> PlanOptions:
    """The options for a component: a text encoder has nothing to downsample.

    Raises:
        ConfigError: downsampling was asked of a text encoder.
    """
    if not source.component.startswith("text_encoder"):
        return options or PlanOptions()
    dense = PlanOptions(factors=())
    if options not in (None, PlanOptions(), dense):
        raise ConfigError(
            "A text encoder has no image tokens to downsample.",
            remedy="Leave out --kv-tokens, --factors, --sampling and --preset.",
        )
    return dense


def plan(
    model: str,
    *,
    res: str | int,
    component: str = "unet",
    batch: BatchLike | None = None,
    precision: str = "fp16",
    options: PlanOptions | None = None,
    dump: str | Path | None = None,
) -> Report:
    """What compiling would do to every attention site; needs no weights and writes nothing.

    Args:
        model: registry name, local diffusers folder, or hub id.
        res: side in pixels, or ``"WIDTHxHEIGHT"``.
        component: ``unet`` (whatever denoises), ``vae_decoder``, ``text_encoder`` or
            ``text_encoder_2``.
        batch: None takes 2 for the denoising model (one image with classifier-free guidance) and
            1 for the others. Of a range (``"1..4"``) the figures are those of the largest.
        precision: ``fp16``, ``bf16`` or ``fp32``; decides bytes.
        options: how factors are chosen; see `PlanOptions.create`.
        dump: folder for the graph before and after every pass.

    Raises:
        ConfigError: options that the model cannot follow.
        ModelError: the model is unknown.
        MissingPackageError: diffusers or what it needs is not installed.
    """
    packages.need("models", "Reading a model")
    from todo_compile import models
    from todo_compile.bundle.files import check_new_folder
    from todo_compile.capture.inputs import example_inputs, input_specs
    from todo_compile.capture.trace import capture
    from todo_compile.passes.pipeline import rewrite_graph

    if dump is not None:
        check_new_folder(Path(dump), "--dump")
    given_path(model, "model")
    source = models.resolve_component(str(model), component)
    resolution = models.Resolution.parse(res)
    options = check_options(source, options)
    chosen = check_batch(source, batch)
    input_specs(source, resolution, batch=chosen, dtype=dtype_of(precision))  # possible
    loaded = models.load(source, dtype=dtype_of(precision), fake=True)
    # A range is planned by its largest: the plan is the same for every batch (the tests say so).
    example = example_inputs(loaded, resolution, batch=largest(chosen))
    assert loaded.fake is not None
    with loaded.fake:
        program = capture(example.wrapper, example.args)
    return rewrite_graph(
        program.graph_module,
        options,
        native_kv_tokens=source.native.kv_tokens,
        dump=Path(dump) if dump is not None else None,
    )


def rewrite(
    module: nn.Module,
    args: Sequence[Any],
    kwargs: Mapping[str, Any] | None = None,
    *,
    options: PlanOptions | None = None,
    native_kv_tokens: int | None = None,
    token_grids: dict[int, tuple[int, int]] | None = None,
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
        native_kv_tokens: the default bound on key/value tokens; 4096 if None.
        token_grids: number of tokens → (rows, columns), for models whose image tokens arrive
            packed as (B, N, C), so that the graph cannot prove their grid. Your word counts: text
            of such a length, with no larger image beside it, would be taken for an image.
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

    program = capture(module, args, kwargs)
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
