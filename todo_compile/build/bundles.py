"""All components of a pipeline in one folder: `compile_bundle`.

Here a job is made for each, and all that can be refused is refused before any work; `assembly` does
the work.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from todo_compile import packages
from todo_compile.batches import Batch, BatchLike, halved, parse_batch
from todo_compile.build.assembly import DENSE, LOCK, Assembly, BundleResult, only_one
from todo_compile.build.job import SUFFIXES, check_used, prepare
from todo_compile.errors import BundleError, ConfigError, given_path
from todo_compile.options import PlanOptions
from todo_compile.progress import Progress, SilentProgress

if TYPE_CHECKING:
    from todo_compile.build.job import Job
    from todo_compile.models import Resolution

SUFFIX = {"onnx": ".onnx", "tensorrt": ".plan"}


def compile_bundle(
    model: str,
    *,
    res: str | int | Sequence[str | int],
    out: str | Path,
    kind: str = "tensorrt",
    component: str = "all",
    weights: str = "auto",
    batch: BatchLike = 2,
    precision: str | None = None,
    vae_precision: str | None = None,
    options: PlanOptions | None = None,
    vae_options: PlanOptions | None = None,
    dense_after: float | None = None,
    loras: Sequence[str] = (),
    controlnet: bool = False,
    force: bool = False,
    progress: Progress | None = None,
    **settings: Any,
) -> BundleResult:
    """Compile the components of a pipeline into one folder, for one resolution or several.

    Components whose own request is equal are kept. The VAE decoder is built for the images of a
    batch with guidance (half of `batch`), the text encoders for one prompt.

    Args:
        model: registry name, local diffusers folder, or hub id.
        res: side in pixels, or ``"WIDTHxHEIGHT"``; or several of them. For every further one the
            denoising model and the VAE decoder are built anew (in ONNX they share their weights'
            file), the rest serves all. What runs is chosen by the size of the picture.
        out: the folder: absent, empty, or an older bundle.
        kind: ``tensorrt`` or ``onnx``.
        component: ``all``, or the only one to build.
        weights: as for `compiler.compile`; for all components.
        batch: of the denoising model; as for `compiler.compile`, a range too.
        precision: of all components; None takes fp16, and fp32 for SDXL's own autoencoder.
        vae_precision: of the VAE decoder; None takes `precision`.
        options: how factors of the denoising model are chosen.
        vae_options: the same for the VAE decoder; None bounds its tokens by what it saw in
            training, or leaves it dense where `options` leaves all dense.
        dense_after: share of the denoising steps (0 to 1) after which attention is dense; adds a
            dense twin of the denoising model. In ONNX both share their weights' file.
        loras: ``FILE[:SCALE]`` each, fused into the components that they have layers for.
        controlnet: let the denoising model, a UNet, take a ControlNet's residuals.
        force: rebuild even what is equal.
        progress: receives steps and remarks; None is silent.
        settings: the rest of `compiler.compile`'s: opset, target, library, timing_cache,
            weight_streaming, verify, dump.

    Raises:
        TodoError: whatever the user can mend; an older bundle then stands as it was.
    """
    folder = given_path(out, "out")
    given_path(model, "model")
    check_folder(folder)
    assembly = prepare_bundle(
        model, res=res, out=folder, kind=kind, component=component, weights=weights, batch=batch,
        precision=precision, vae_precision=vae_precision, options=options,
        vae_options=vae_options, dense_after=dense_after, loras=loras, controlnet=controlnet,
        force=force, progress=progress, **settings,
    )  # fmt: skip
    with only_one(folder):
        return assembly.run()


def prepare_bundle(
    model: str,
    *,
    res: str | int | Sequence[str | int],
    out: str | Path,
    kind: str = "tensorrt",
    component: str = "all",
    weights: str = "auto",
    batch: BatchLike = 2,
    precision: str | None = None,
    vae_precision: str | None = None,
    options: PlanOptions | None = None,
    vae_options: PlanOptions | None = None,
    dense_after: float | None = None,
    loras: Sequence[str] = (),
    controlnet: bool = False,
    force: bool = False,
    progress: Progress | None = None,
    **settings: Any,
) -> Assembly:
    """What `compile_bundle` will do, checked; `out` is not looked at.

    Args and errors as `compile_bundle`.
    """
    from todo_compile.bundle.bundle import SIZED
    from todo_compile.models import parse_lora

    progress = progress or SilentProgress()
    folder = Path(out)
    sizes = _sizes(res)
    calls = parse_batch(batch)
    if kind not in SUFFIX:
        raise ConfigError(f"Unknown format {kind!r}.", remedy=f"Known: {', '.join(SUFFIX)}.")
    adapters = [parse_lora(text) for text in loras]
    common = {"weights": weights, "progress": progress, "loras": adapters, **settings}
    jobs: dict[str, Job] = {}
    names = _components(model, component, progress)
    if any(name.startswith("text_encoder") for name in names):
        packages.need("transformers", "A text encoder")  # before the weights of others are read
    for number, size in enumerate(sizes):
        for name in names if number == 0 else [n for n in names if n in SIZED]:
            stem = name if number == 0 else f"{name}.{size}"
            jobs[stem] = prepare(
                model,
                res=str(size),
                out=folder / f"{stem}{SUFFIX[kind]}",
                component=name,
                batch=_batch(name, calls),
                precision=(vae_precision or precision) if name == "vae_decoder" else precision,
                options=_options(name, options, vae_options),
                controlnet=controlnet and name == names[0],  # the denoiser, or it is refused
                **_own(common, stem),
            )
        if dense_after is not None:
            stem = names[0] if number == 0 else f"{names[0]}.{size}"
            jobs[f"{stem}{DENSE}"] = _dense_job(jobs[stem], dense_after)
    check_used(adapters, list(jobs.values()))
    extras = _extras(jobs, progress)
    return Assembly(folder, kind, jobs, extras, dense_after, force, progress)


def _sizes(res: str | int | Sequence[str | int]) -> list[Resolution]:
    """The resolutions, each once.

    Raises:
        ConfigError: none, too many, or one twice.
    """
    from todo_compile.bundle.bundle import MAX_SIZES
    from todo_compile.models import Resolution

    sizes = [Resolution.parse(one) for one in ([res] if isinstance(res, (str, int)) else res)]
    twice = [str(size) for size in dict.fromkeys(sizes) if sizes.count(size) > 1]
    if twice:
        raise ConfigError(f"{', '.join(twice)} is given twice.", remedy="Name each size once.")
    if not 1 <= len(sizes) <= MAX_SIZES:
        raise ConfigError(
            f"A bundle for {len(sizes)} resolutions is not possible.",
            remedy=f"Give 1 to {MAX_SIZES}.",
        )
    return sizes


def _dense_job(job: Job, after: float) -> Job:
    """The dense twin of the denoising model's job; what was checked holds for it too."""
    from todo_compile.models.components import OTHERS

    if not 0 < after < 1:
        raise ConfigError(
            f"{after:g} is no share of the steps between 0 and 1.",
            remedy="--dense-after 0.7: dense for the last 30 % of the steps.",
        )
    if job.source.component in OTHERS:
        raise ConfigError(
            "--dense-after is for the denoising model, which this bundle lacks.",
            remedy="Leave it out, or build all components.",
        )
    options = replace(job.options, factors=(), kv_tokens=None, sites=())
    stem = job.out.stem
    plan = {**options.describe(), "native_kv_tokens": job.source.native.kv_tokens}
    return replace(
        job,
        out=job.out.with_name(f"{stem}{DENSE}{job.out.suffix}"),
        options=options,
        dump=None if job.dump is None else job.dump.with_name(f"{stem}{DENSE}"),
        request={**job.request, "plan": plan},
    )


def is_folder_output(out: Path, text: str = "") -> bool:
    """Whether ``--out`` means a bundle: an existing folder, a trailing slash, or no suffix."""
    if text.endswith(("/", os.sep)):
        return True
    return out.suffix not in SUFFIXES and (out.is_dir() or out.suffix == "")


def check_folder(folder: Path) -> None:
    """Refuse a folder that is no bundle of ours: components must not be strewn among files."""
    from todo_compile.bundle.bundle import BUNDLE_JSON
    from todo_compile.bundle.files import check_target

    if folder.is_file():
        raise ConfigError(
            f"{folder} is a file, not a folder.", remedy="Name another folder for the bundle."
        )
    check_target(folder / BUNDLE_JSON if folder.is_dir() else folder)
    if folder.is_dir():
        names = {p.name for p in folder.iterdir()}
        if names and not names & {BUNDLE_JSON, LOCK}:
            raise BundleError(
                f"{folder} holds other files and is no bundle.",
                remedy=f"Name an empty or a new folder: {folder / 'bundle'}/",
            )


def _components(model: str, choice: str, progress: Progress) -> list[str]:
    """Names of the components to build; the denoising model first."""
    from todo_compile.errors import ModelError
    from todo_compile.models.components import OTHERS, part, resolve_component

    if choice != "all":
        return [resolve_component(model, choice).component]
    main = resolve_component(model)
    names = [main.component]
    for name in OTHERS:
        try:
            found = part(main, name)
        except ModelError as error:  # a class that we cannot compile
            progress.warn(f"not in the bundle: {error.message}")
            continue
        if found is not None:
            names.append(name)
        elif name != "text_encoder_2":  # only SDXL has one
            progress.warn(f"not in the bundle: {model} has no {name}")
    return names


def _batch(name: str, batch: Batch) -> Batch:
    if name.startswith("text_encoder"):
        return 1
    return halved(batch) if name == "vae_decoder" else batch


def _options(
    name: str, options: PlanOptions | None, vae_options: PlanOptions | None
) -> PlanOptions | None:
    if name.startswith("text_encoder"):
        return None
    if name != "vae_decoder":
        return options
    if vae_options is None and options is not None:
        # Levels, bounds and sites are the denoising model's; sampling and "off" hold for both.
        dense = options.factors == ()
        return replace(options, factors=() if dense else None, kv_tokens=None, sites=())
    return vae_options


def _own(common: dict[str, Any], name: str) -> dict[str, Any]:
    """Settings for one component: each dumps to a folder of its own."""
    dump = common.get("dump")
    return common if dump is None else {**common, "dump": Path(dump) / name}


def _extras(jobs: Mapping[str, Job], progress: Progress) -> dict[str, bytes]:
    from todo_compile.models.extras import light_files

    fetch = any(job.weights.origin == "hub" for job in jobs.values())
    extras = light_files({name: job.source for name, job in jobs.items()}, fetch=fetch)
    for name in jobs:
        if not name.startswith("text_encoder"):
            continue
        tokenizer = name.replace("text_encoder", "tokenizer")
        if not any(e.startswith(f"{tokenizer}/") for e in extras):
            progress.warn(f"the bundle has no {tokenizer}: prompts must come as token numbers")
    return extras
