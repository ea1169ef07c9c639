"""What one compilation shall do: everything that can be checked before any work."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from todo_compile import packages
from todo_compile.batches import Batch, BatchLike, BatchRange, parse_batch
from todo_compile.build.sources import sources_hash
from todo_compile.errors import ConfigError, ModelError
from todo_compile.options import PlanOptions
from todo_compile.precision import dtype_of
from todo_compile.progress import Progress, SilentProgress

if TYPE_CHECKING:
    from todo_compile.build.compiler import CompileResult
    from todo_compile.build.request import BuildRequest
    from todo_compile.capture.inputs import InputSpec
    from todo_compile.export.library import Library
    from todo_compile.export.targets import Targets
    from todo_compile.models import Lora, Resolution, Source, Weights

ENGINE_SUFFIXES = (".plan", ".engine")
SUFFIXES = (*ENGINE_SUFFIXES, ".onnx")


@dataclass(frozen=True)
class Job:
    """A checked request for one output; nothing heavy has happened yet.

    Attributes:
        request: what was asked for.
        out: where the output goes; in a bundle that is being built, not yet where `request` says.
        weights_hash: "" if the job is for looking at only.
        options: how factors are chosen.
        library, targets: of the engine; None for ONNX.
        loras: those of the request that have layers for this component.
        identity: what the manifest keeps as ``request``; equal ones make equal outputs.
    """

    request: BuildRequest
    out: Path
    source: Source
    resolution: Resolution
    weights: Weights
    weights_hash: str
    batch: Batch
    precision: str
    opset: int
    options: PlanOptions
    library: Library | None
    targets: Targets | None
    loras: tuple[Lora, ...]
    progress: Progress
    identity: dict[str, Any]

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


def prepare(request: BuildRequest, progress: Progress | None = None, *, look: bool = False) -> Job:
    """The job of a request for a file; see `BuildRequest.resolve`."""
    from todo_compile.models import parse_lora
    from todo_compile.models.components import one_component

    for option in request.given("bundle"):
        raise ConfigError(
            f"{option} is for bundles, and {request.out} is a file.",
            remedy="End --out in a slash for a bundle, or leave the option out.",
        )
    if len(request.res) > 1:
        raise ConfigError(
            f"A second --res is for bundles, and {request.out} is a file.",
            remedy="End --out in a slash for a bundle, or leave the option out.",
        )
    loras = [parse_lora(text) for text in request.lora]
    job = prepare_component(
        request, one_component(request.component), loras, progress or SilentProgress(), look=look
    )
    check_used(loras, [job])
    return job


def prepare_component(
    request: BuildRequest,
    component: str,
    loras: Sequence[Lora],
    progress: Progress,
    *,
    look: bool,
) -> Job:
    """The job for one component of a model, of a request for a file.

    Args:
        component: ``unet`` (whatever denoises), ``vae_decoder``, ``text_encoder`` or
            ``text_encoder_2``.
        loras: of them those are taken that have layers for the component.
        request, progress, look: see `BuildRequest.resolve`.
    """
    from todo_compile import models
    from todo_compile.bundle.files import check_new_folder
    from todo_compile.capture.inputs import input_specs
    from todo_compile.export.library import choose_library, current_gpu
    from todo_compile.export.targets import parse_targets, resolve_targets

    path = Path(request.out)
    if path.suffix.lower() not in SUFFIXES:
        raise ConfigError(
            f"The suffix of {path.name!r} says nothing about the format.",
            remedy="End --out in .plan or .engine (TensorRT) or .onnx (ONNX); end it in / for a "
            "folder with all components.",
        )
    opset = 23 if request.opset is None else request.opset
    if not 18 <= opset <= 23:
        raise ConfigError(f"Opset {opset} is not supported.", remedy="Choose 18 to 23.")
    if request.precision is not None:
        dtype_of(request.precision)
    resolution = models.Resolution.parse(request.res[0])
    wanted = parse_targets(request.target)
    engine = path.suffix.lower() in ENGINE_SUFFIXES
    for option in request.given("engine") if not engine else ():
        raise ConfigError(
            f"{option} is for TensorRT engines, and {path.name} is an ONNX file.",
            remedy="Leave it out, or end --out in .plan (of a bundle: --format tensorrt).",
        )
    if request.dump is not None:
        check_new_folder(request.dump, "--dump")
    packages.need("models", "Reading a model")
    packages.need("onnx", "Writing ONNX")
    source = models.resolve_component(request.model, component)
    if source.component.startswith("text_encoder"):
        packages.need("transformers", "A text encoder")
    if source.file is not None and source.component == "unet":
        progress.info(f"model          {source.file.remark}")
    if request.controlnet:
        from todo_compile.models.controlnet import with_controlnet

        source = with_controlnet(source)
    options = check_options(source, request.plan)
    precision = _precision(source, request.precision, progress)
    dtype = dtype_of(precision)
    batch = check_batch(source, request.batch)
    specs = input_specs(source, resolution, batch=batch, dtype=dtype)  # it can take them
    _check_factors(source, options, specs)
    gpu = current_gpu() if engine else None
    library = choose_library(request.library, gpu=gpu) if engine else None
    targets = resolve_targets(wanted, library, gpu) if library is not None else None
    if targets is not None:
        progress.info(f"target         {', '.join(targets.names)} ({targets.reason})")
    weights = models.find_weights(source, models.WeightsChoice.parse(request.weights), dtype=dtype)
    progress.info(f"weights        {weights.description}")
    digest = "" if look else _weights_hash(weights, progress)
    adapters = tuple(lora for lora in loras if lora.of(source.component))
    models.check_loras(source, adapters)
    text = source.component.startswith("text_encoder")
    resolved: dict[str, Any] = {
        "model": source.identifier,
        "architecture": weights.architecture,
        "component": source.component,
        "inputs": [spec.name for spec in specs],
        "pipeline": source.pipeline,
        "weights": digest,
        "lora": [lora.describe() for lora in adapters],
        "res": str(resolution),
        "batch": _plain(batch),
        "precision": precision,
        "opset": opset,
        "plan": {**options.describe(), "native_kv_tokens": source.native.kv_tokens},
        "format": "tensorrt" if engine else "onnx",
        "library": f"{library.name} {library.version}" if library is not None else None,
        "target": list(targets.names) if targets is not None else [],
        "versions": versions("transformers") if text else versions(),
        "sources": sources_hash(),
    }
    return Job(
        request, path, source, resolution, weights, digest, batch, precision, opset, options,
        library, targets, adapters, progress, request.identity(resolved),
    )  # fmt: skip


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


def _check_factors(source: Source, options: PlanOptions, specs: Sequence[InputSpec]) -> None:
    """Refuse factors that the passes would refuse later, as far as it can be told by now.

    Raises:
        ConfigError: one is larger than the largest grid that its level can have: that of the
            highest attention in the latents, halved at least from one level to the next.
    """
    latent = next((s.shape[-2:] for s in specs if len(s.shape) == 4), (1, 1))
    for level, factor in enumerate(options.factors or (), 1):
        stride = source.native.attention_stride * 2 ** (level - 1)
        rows, columns = (-(-side // stride) for side in latent)
        if factor[0] > rows or factor[1] > columns:
            raise ConfigError(
                f"factor {factor[1]}x{factor[0]} (width×height) for level {level} exceeds its grid "
                f"of at most {columns}×{rows} tokens.",
                remedy="Take factors of at most the grid's sides; `todo-compile plan` shows them.",
            )


def _plain(batch: Batch) -> int | str:
    """As manifests have it: a range in the spelling that it is asked for in."""
    return str(batch) if isinstance(batch, BatchRange) else batch


def check_used(loras: Sequence[Lora], jobs: Sequence[Job]) -> None:
    """Refuse a LoRA that would change nothing, and tell what part of one is left out.

    Raises:
        ModelError: it has no layers for any of the jobs' components.
    """
    names = list(dict.fromkeys(job.source.component for job in jobs))
    for lora in loras:
        left = lora.left_out(names)
        if len(left) == len(lora.layers):
            raise ModelError(
                f"{lora.path} has layers for {', '.join(lora.layers)}, none for "
                f"{', '.join(names)}.",
                remedy="Leave it out, or compile the component that it is for.",
            )
        if left and jobs:
            counted = ", ".join(f"{count} layers for the {name}" for name, count in left.items())
            jobs[0].progress.warn(
                f"{lora.path.name} also has {counted}, which is not compiled here: only what is "
                f"for {', '.join(names)} is fused"
            )


def _precision(source: Source, precision: str | None, progress: Progress) -> str:
    """The precision of a component, and a warning where the one that was chosen cannot work."""
    from todo_compile.models.components import overflows_in_half

    if not overflows_in_half(source):
        return precision or "fp16"
    if precision is None:
        progress.info("vae precision  fp32: SDXL's own autoencoder leaves the range of fp16")
        return "fp32"
    if precision == "fp16":
        progress.warn(
            "SDXL's own autoencoder leaves the range of fp16 and makes black images; choose fp32 "
            "or bf16 for it, or a model with a repaired autoencoder (force_upcast: false)"
        )
    return precision


def _weights_hash(weights: Weights, progress: Progress) -> str:
    """Identity of the weights; only files take time to read."""
    from todo_compile import models

    if weights.kind == "random":
        return models.weights_hash(weights)
    with progress.step("weights hash"):
        return models.weights_hash(weights)


def versions(*more: str) -> dict[str, str]:
    """Versions of everything whose change can change an output, and of `more`."""
    found = {"python": platform.python_version()}
    for name in ("todo-compile", "torch", "diffusers", "onnx", "onnxscript", "onnx_ir", *more):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
