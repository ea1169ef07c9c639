"""What one compilation shall do: everything that can be checked before any work."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from todo_compile import packages
from todo_compile.api import check_batch, check_options, dtype_of
from todo_compile.batches import Batch, BatchLike, BatchRange
from todo_compile.build.sources import sources_hash
from todo_compile.errors import ConfigError, ModelError, given_path
from todo_compile.options import PlanOptions
from todo_compile.progress import Progress, SilentProgress

if TYPE_CHECKING:
    from todo_compile.capture.inputs import InputSpec
    from todo_compile.export.library import Library
    from todo_compile.export.targets import Targets
    from todo_compile.models import Lora, Resolution, Source, Weights

ENGINE_SUFFIXES = (".plan", ".engine")
SUFFIXES = (*ENGINE_SUFFIXES, ".onnx")


@dataclass(frozen=True)
class Job:
    """A validated request for one component; nothing heavy has happened yet."""

    source: Source
    resolution: Resolution
    weights: Weights
    weights_hash: str
    out: Path
    batch: Batch
    precision: str
    opset: int
    options: PlanOptions
    library: Library | None
    targets: Targets | None
    timing_cache: Path | None
    weight_streaming: bool
    verify: bool
    dump: Path | None
    loras: tuple[Lora, ...]
    progress: Progress
    request: dict[str, Any]


def prepare(
    model: str,
    *,
    res: str | int,
    out: str | Path,
    component: str = "unet",
    weights: str = "auto",
    batch: BatchLike | None = None,
    precision: str | None = None,
    opset: int | None = None,
    options: PlanOptions | None = None,
    target: str | None = None,
    library: str = "auto",
    timing_cache: str | Path | None = None,
    weight_streaming: bool = False,
    verify: bool = False,
    dump: str | Path | None = None,
    loras: Sequence[Lora] = (),
    controlnet: bool = False,
    hashed: bool = True,
    progress: Progress | None = None,
) -> Job:
    """Check everything that can be checked before any work, cheapest first.

    Args and errors as `compiler.compile`. Of `loras` those are taken that have layers for the
    component. Without `hashed` the weights are not read, and the job is good for looking at only.
    """
    from todo_compile import models
    from todo_compile.bundle.files import check_new_folder
    from todo_compile.capture.inputs import input_specs
    from todo_compile.export.library import choose_library, current_gpu
    from todo_compile.export.targets import parse_targets, resolve_targets

    progress = progress or SilentProgress()
    path = given_path(out, "out")
    given_path(model, "model")
    given_path(weights, "weights")
    if path.suffix not in SUFFIXES:
        raise ConfigError(
            f"The suffix of {path.name!r} says nothing about the format.",
            remedy="End --out in .plan or .engine (TensorRT) or .onnx (ONNX); end it in / for a "
            "folder with all components.",
        )
    if opset is not None and not 18 <= opset <= 23:
        raise ConfigError(f"Opset {opset} is not supported.", remedy="Choose 18 to 23.")
    if precision is not None:
        dtype_of(precision)
    resolution = models.Resolution.parse(res)
    wanted = parse_targets(target)
    if path.suffix not in ENGINE_SUFFIXES:
        _refuse_engine_options(path, target, library, timing_cache, weight_streaming)
    if dump is not None:
        check_new_folder(Path(dump), "--dump")
    packages.need("models", "Reading a model")
    packages.need("onnx", "Writing ONNX")
    source = models.resolve_component(str(model), component)
    if source.component.startswith("text_encoder"):
        packages.need("transformers", "A text encoder")
    if source.file is not None and source.component == "unet":
        progress.info(f"model          {source.file.remark}")
    if controlnet:
        from todo_compile.models.controlnet import with_controlnet

        source = with_controlnet(source)
    options = check_options(source, options)
    precision = _precision(source, precision, progress)
    dtype = dtype_of(precision)
    chosen_batch = check_batch(source, batch)
    specs = input_specs(source, resolution, batch=chosen_batch, dtype=dtype)  # it can take them
    _check_factors(source, options, specs)
    engine = path.suffix in ENGINE_SUFFIXES
    gpu = current_gpu() if engine else None
    chosen = choose_library(library, gpu=gpu) if engine else None
    targets = resolve_targets(wanted, chosen, gpu) if chosen is not None else None
    if targets is not None:
        progress.info(f"target         {', '.join(targets.names)} ({targets.reason})")
    found = models.find_weights(source, models.WeightsChoice.parse(weights), dtype=dtype)
    progress.info(f"weights        {found.description}")
    digest = _weights_hash(found, progress) if hashed else ""
    text = source.component.startswith("text_encoder")
    adapters = tuple(lora for lora in loras if lora.of(source.component))
    models.check_loras(source, adapters)
    request: dict[str, Any] = {
        "model": source.identifier,
        "architecture": found.architecture,
        "component": source.component,
        "inputs": [spec.name for spec in specs],
        "controlnet": controlnet,
        "pipeline": source.pipeline,
        "weights": digest,
        "loras": [lora.describe() for lora in adapters],
        "resolution": str(resolution),
        "batch": _plain(chosen_batch),
        "precision": precision,
        "opset": opset or 23,
        "plan": {**options.describe(), "native_kv_tokens": source.native.kv_tokens},
        "format": "tensorrt" if engine else "onnx",
        "library": f"{chosen.name} {chosen.version}" if chosen is not None else None,
        "targets": list(targets.names) if targets is not None else [],
        "weight_streaming": weight_streaming,
        "versions": versions("transformers") if text else versions(),
        "sources": sources_hash(),
    }
    return Job(
        source, resolution, found, digest, path, chosen_batch, precision, opset or 23, options,
        chosen, targets, Path(timing_cache) if timing_cache else None, weight_streaming, verify,
        Path(dump) if dump else None, adapters, progress, request,
    )  # fmt: skip


def _refuse_engine_options(path: Path, *options: object) -> None:
    """Options of TensorRT would change nothing about an ONNX file.

    Raises:
        ConfigError: one was given.
    """
    names = ("--target", "--library", "--timing-cache", "--weight-streaming")
    for name, value in zip(names, options, strict=True):
        if value not in (None, False, "auto"):
            raise ConfigError(
                f"{name} is for TensorRT engines, and {path.name} is an ONNX file.",
                remedy="Leave it out, or end --out in .plan (of a bundle: --format tensorrt).",
            )


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
