"""All components of a pipeline in one folder, for one resolution or several.

A job is made for each component here, and whatever can be refused is refused before any work.
`bundle_job` does the work.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from todo_compile import models, packages
from todo_compile.batches import Batch, halved, parse_batch
from todo_compile.build.bundle_job import BundleJob
from todo_compile.build.gate import check_gate
from todo_compile.build.job import SUFFIXES
from todo_compile.build.model_job import check_used, default_batch, prepare_component
from todo_compile.build.phases import DenoiserPhase, phase_job, phases_of
from todo_compile.bundle.alone import LOCK
from todo_compile.bundle.bundle import BUNDLE_JSON, PARTS
from todo_compile.bundle.description import MAX_SIZES, SIZED
from todo_compile.bundle.files import check_target
from todo_compile.disk import format_bytes
from todo_compile.errors import BundleError, ConfigError, ModelError
from todo_compile.models.architecture import UNET
from todo_compile.models.components import (
    OTHERS,
    parse_component,
    part,
    pipeline_folder,
    resolve_component,
)
from todo_compile.models.light_files import light_files
from todo_compile.models.torch_parts import torch_parts
from todo_compile.models.trust import read_index
from todo_compile.options import PlanOptions
from todo_compile.progress import Progress, SilentProgress
from todo_compile.runtime.torch_pipelines import check_one_stage

if TYPE_CHECKING:
    from todo_compile.build.model_job import ModelJob
    from todo_compile.build.request import BuildRequest
    from todo_compile.bundle.plan import TunedPlan
    from todo_compile.models import Resolution, Source
    from todo_compile.models.torch_parts import TorchPart

SUFFIX = {"tensorrt": ".plan", "onnx": ".onnx", "pt2": ".pt2"}
"""Formats of a bundle's outputs."""


def prepare_bundle(
    request: BuildRequest, progress: Progress | None = None, *, look: bool = False
) -> BundleJob:
    """The jobs of a request for a folder; see `BuildRequest.resolve`.

    The denoising model and the VAE decoder are built for every resolution, the rest serves all.
    The decoder is built for the images of a batch with guidance (half of it), the text encoders for
    one prompt.
    """
    progress = progress or SilentProgress()
    folder = Path(request.out)
    if not look:
        check_folder(folder)
    sizes = _sizes(request.res)
    if request.tuned is not None:
        _one_size(request.tuned, sizes)
    kind = request.format or "tensorrt"
    if kind not in SUFFIX:
        raise ConfigError(f"Unknown format {kind!r}.", remedy=f"Known: {', '.join(SUFFIX)}.")
    loras = [models.parse_lora(text) for text in request.lora]
    rows, names = _components(request, progress)
    phases = phases_of(request, names[0])
    jobs: dict[str, ModelJob] = {}
    denoisers: dict[str, list[tuple[float, str]]] = {}
    if any(name.startswith("text_encoder") for name in names):
        packages.need("transformers", "A text encoder")  # before the weights of others are read
    for number, size in enumerate(sizes):
        for name in names if number == 0 else [n for n in names if n in SIZED]:
            stem = name if number == 0 else f"{name}.{size}"
            out, main = folder / f"{stem}{SUFFIX[kind]}", name == names[0]
            part = _part(request, name, size, out, first=main, rows=rows)
            jobs[stem] = prepare_component(
                part,
                name,
                loras,
                progress,
                look=look,
                planned=phases[0].planned if main else None,
            )
        stem = names[0] if number == 0 else f"{names[0]}.{size}"
        for phase in phases:
            if (name := f"{stem}{phase.ending}") not in jobs:
                jobs[name] = phase_job(jobs[stem], phase)
        denoisers[str(size)] = [(phase.start, f"{stem}{phase.ending}") for phase in phases]
    check_used(loras, list(jobs.values()))
    planned = phases[0].planned
    check_gate(request, None if planned is None else planned.plan, list(jobs.values()))
    _say_phases(phases, kind, jobs[names[0]], len(sizes), progress)
    kept = _torch_parts(jobs, progress)
    return BundleJob(
        request, kind, jobs, denoisers, _light_files(jobs, kept, progress), kept, progress
    )


def _say_phases(
    phases: Sequence[DenoiserPhase], kind: str, job: ModelJob, sizes: int, progress: Progress
) -> None:
    """What several denoisers mean for the disk."""
    outputs = len({phase.ending for phase in phases})
    if outputs == 1:
        return
    each = format_bytes(job.weight_bytes)
    progress.info(
        f"phases         {outputs} denoisers, switched by step: "
        + (
            f"their ONNX files share weights of {each}"
            if kind == "onnx"
            else f"each {'package' if kind == 'pt2' else 'engine'} has weights of {each}, "
            f"{format_bytes(job.weight_bytes * outputs)} "
            "in all" + (" at each resolution" if sizes > 1 else "")
        )
    )


def _part(
    request: BuildRequest, name: str, size: Resolution, out: Path, *, first: bool, rows: int
) -> BuildRequest:
    """What a bundle's request asks of one component: a request for a file.

    Args:
        first: it is the denoising model, or whatever stands in its place.
        rows: of the denoising model for one picture.
    """
    vae = name == "vae_decoder"
    batch = parse_batch(rows if request.batch is None else request.batch)
    return request.part(
        res=(str(size),),
        out=str(out),
        gate=None,  # the whole bundle's
        batch=str(_batch(name, batch, rows)),
        text_tokens=request.text_tokens if first else None,
        frames=request.frames if first else None,
        precision=(request.vae_precision if vae else None) or request.precision,
        options=_options(name, request),
        controlnet=request.controlnet and first,
        t2i_adapter=request.t2i_adapter and first,
        ip_adapter=request.ip_adapter if first else None,
        dump=None if request.dump is None else request.dump / out.stem,
    )


def _sizes(res: Sequence[str]) -> list[Resolution]:
    """The resolutions, each once.

    Raises:
        ConfigError: too many, or one twice.
    """
    sizes = [models.Resolution.parse(one) for one in res]
    twice = [str(size) for size in dict.fromkeys(sizes) if sizes.count(size) > 1]
    if twice:
        raise ConfigError(f"{', '.join(twice)} is given twice.", remedy="Name each size once.")
    if len(sizes) > MAX_SIZES:
        raise ConfigError(
            f"A bundle for {len(sizes)} resolutions is not possible.",
            remedy=f"Give 1 to {MAX_SIZES}.",
        )
    return sizes


def _one_size(plan: TunedPlan, sizes: Sequence[Resolution]) -> None:
    """Refuse a plan for a bundle of several resolutions.

    Raises:
        ConfigError: says how there can be one of each.
    """
    if len(sizes) > 1:
        raise ConfigError(
            f"A plan is for one size, this one for {plan.resolution}, and the bundle is for "
            f"{', '.join(map(str, sizes))}.",
            remedy="Run `todo-compile tune` for each size and build a bundle of each: --res "
            f"{sizes[0]} --plan plan-{sizes[0]}.json --out bundle-{sizes[0]}/.",
        )


def is_folder_output(out: Path, text: str = "") -> bool:
    """Whether ``--out`` means a bundle: an existing folder, a trailing slash, or no suffix."""
    if text.endswith(("/", os.sep)):
        return True
    return out.suffix.lower() not in SUFFIXES and (out.is_dir() or out.suffix == "")


def check_folder(folder: Path) -> None:
    """Refuse a folder that is no bundle of ours: components must not be strewn among files."""
    if folder.is_file():
        raise ConfigError(
            f"{folder} is a file, not a folder.", remedy="Name another folder for the bundle."
        )
    check_target(folder / BUNDLE_JSON if folder.is_dir() else folder)
    if folder.is_dir():
        names = {p.name for p in folder.iterdir()}
        if names - {PARTS} and not names & {BUNDLE_JSON, LOCK}:
            raise BundleError(
                f"{folder} holds other files and is no bundle.",
                remedy=f"Name an empty or a new folder: {folder / 'bundle'}/",
            )


def _components(request: BuildRequest, progress: Progress) -> tuple[int, list[str]]:
    """Rows of the denoising model for a picture, and names of the components to build; that model
    first."""
    from todo_compile.capture.inputs import (
        check_scheduled,
        is_recorded,
        with_pipeline_defaults,
    )

    assert request.model is not None
    model, choice = request.model, parse_component(request.component or "all")
    main = resolve_component(model, "unet" if choice == "all" else choice)
    check_one_stage(main, adapted=request.t2i_adapter)
    if request.dense_after is not None or (request.tuned and len(request.tuned.phases) > 1):
        check_scheduled(main, models.Resolution.parse(request.res[0]), "A bundle of phases")
    rows = default_batch(with_pipeline_defaults(main)) if main.component not in OTHERS else 2
    if choice != "all":
        return rows, [main.component]
    names, absent = [main.component], _absent(main)
    for name in OTHERS:
        try:
            found = part(main, name)
        except ModelError:  # a class that we cannot compile: it stays in torch
            continue
        if found is not None:
            names.append(name)
        elif name not in absent and not is_recorded(main) and name != "text_encoder_2":
            progress.warn(f"not in the bundle: {model} has no {name}")
    return rows, names


def _absent(main: Source) -> frozenset[str]:
    """Parts that the pipeline says it does without."""
    root = pipeline_folder(main)
    index = {} if root is None else read_index(root)
    return frozenset(name for name, value in index.items() if value == [None, None])


def _batch(name: str, batch: Batch, rows: int) -> Batch:
    if name.startswith("text_encoder"):
        return 1
    return halved(batch) if name == "vae_decoder" and rows == 2 else batch


def _options(name: str, request: BuildRequest) -> PlanOptions | None:
    """How a component's factors are chosen; None for its defaults."""
    options = request.downsampling
    if name.startswith("text_encoder"):
        return None
    if name != "vae_decoder":
        return options
    if request.vae_factors is not None:
        if request.vae_options is not None:
            raise ConfigError(
                "vae_options and vae_factors both say how factors are chosen.",
                remedy="Give one of them.",
            )
        return PlanOptions.create(factors=request.vae_factors, sampling=options.sampling)
    if request.vae_options is not None:
        return request.vae_options
    # Levels, bounds and sites are the denoising model's; sampling and "off" hold for both.
    dense = options.factors == ()
    return replace(options, factors=() if dense else None, kv_tokens=None, sites=())


def _torch_parts(jobs: Mapping[str, ModelJob], progress: Progress) -> dict[str, TorchPart]:
    """Parts that stay in torch: in a bundle of the whole pipeline alone."""
    main = next(iter(jobs.values()))
    if main.request.component not in (None, "all") and len(jobs) == 1:
        return {}
    fetch = main.weights.origin == "hub"
    found = torch_parts(main.source, [job.source.component for job in jobs.values()], fetch=fetch)
    for name, left in found.items():
        named = f"{name} ({left.name})"
        if left.files:
            progress.info(f"in torch       {named}, which is not compiled")
        else:
            progress.warn(f"not in the bundle: {named}, which is not compiled and has no weights")
        if name == "controlnet" and not main.source.controlnet and main.source.class_name == UNET:
            progress.warn(
                "the UNet takes no residuals of the pipeline's ControlNet, and so cannot be drawn "
                "with beside it: add --controlnet"
            )
    return {name: part for name, part in found.items() if part.files}


def _light_files(
    jobs: Mapping[str, ModelJob], kept: Mapping[str, TorchPart], progress: Progress
) -> dict[str, bytes]:
    fetch = any(job.weights.origin == "hub" for job in jobs.values())
    sources = {name: job.source for name, job in jobs.items()}
    found = light_files(sources, fetch=fetch, torch=list(kept))
    for name in jobs:
        if not name.startswith("text_encoder"):
            continue
        tokenizer = name.replace("text_encoder", "tokenizer")
        if not any(e.startswith(f"{tokenizer}/") for e in found):
            progress.warn(f"the bundle has no {tokenizer}: prompts must come as token numbers")
    return found
