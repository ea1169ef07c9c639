"""diffusers pipelines as they are, from whatever ``--model`` may be, with weights from safetensors.

A folder is read by diffusers; a hub id or registered model is one too once it is in the hub's
cache. Of a single file the parts are made here, by the same road as for compiling.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from todo_compile import models, packages
from todo_compile.bundle.description import COMPONENTS
from todo_compile.errors import ModelError, first_line
from todo_compile.libraries import quiet_libraries
from todo_compile.models import hub
from todo_compile.models.architecture import TEXT_TOKENS
from todo_compile.models.builtin import SCHEDULERS
from todo_compile.models.components import OTHERS, part, pipeline_class, pipeline_folder
from todo_compile.models.files import DIFFUSERS_BASE, TEXT_BASE, select_names
from todo_compile.models.light_files import LIGHT
from todo_compile.models.trust import INDEX, check_folder, check_part
from todo_compile.precision import dtype_of
from todo_compile.runtime.schedulers import make_scheduler

if TYPE_CHECKING:
    import torch

    from todo_compile.models import Source


def torch_pipeline(
    source: Source, *, precision: str, scheduler: Any = None, device: str | None = None
) -> Any:
    """The pipeline of a model, as it is.

    Args:
        source: of the denoising model, from `models.resolve_component`.
        precision: ``fp16``, ``bf16`` or ``fp32``.
        scheduler: as for `make_scheduler`.
        device: ``cpu``, ``cuda``, ``cuda:N``; None for a GPU where torch has one.

    Raises:
        ModelError: it is no whole pipeline, says what `models.trust` refuses, or cannot be had.
        EngineError: torch has no such device.
    """
    from todo_compile.runtime.in_process import torch_device

    place = torch_device(device)
    dtype = dtype_of(precision)
    if source.file is not None:
        pipeline = _from_file(source, dtype)
        if scheduler is not None:
            pipeline.scheduler = make_scheduler(scheduler, source.file.scheduler)
        return pipeline.to(place)
    folder = pipeline_root(source)
    pipeline = from_folder(folder, dtype)
    if scheduler is not None:
        pipeline.scheduler = make_scheduler(scheduler, folder / "scheduler")
    return pipeline.to(place)


def check_one_stage(main: Source, *, adapted: bool = False) -> None:
    """Refuse a pipeline whose drawing is more than one loop around one denoiser and a decoder.

    Args:
        main: of its denoising model.
        adapted: its UNet is to take a T2I-Adapter's residuals.

    Raises:
        ModelError: it draws in several stages, or hands its UNet what a T2I-Adapter makes.
    """
    if (main.pipeline or "").endswith("AdapterPipeline") and not adapted:
        raise ModelError(
            f"A {main.pipeline} hands its UNet what a T2I-Adapter makes, which is no input of a "
            "compiled UNet by itself.",
            remedy="Build it with --t2i-adapter, or let todo_compile.accelerate(pipeline) compile "
            "diffusers' own.",
        )
    if main.component in (*COMPONENTS, *OTHERS):
        return
    raise ModelError(
        f"A {main.pipeline or main.class_name} draws in several stages, and a compiled pipeline "
        "has one.",
        remedy="Compile the model that denoises alone (--out FILE.onnx or FILE.plan), or let "
        "todo_compile.accelerate(pipeline) compile diffusers' own.",
    )


def pipeline_root(source: Source) -> Path:
    """The folder of the pipeline that `source` belongs to, fetched from the hub if need be.

    Raises:
        ModelError: it is no whole pipeline, or cannot be had.
    """
    folder = pipeline_folder(source)
    if folder is None:
        folder = _from_hub(source)
    if not (folder / INDEX).is_file():
        raise ModelError(
            f"{folder} has no {INDEX}, so it is not a pipeline.",
            remedy="Give the folder of a whole pipeline, or use --bundle.",
        )
    return folder


def _from_hub(source: Source) -> Path:
    for hub_id in source.hub_ids:
        folder = hub.cached_snapshot(hub_id, INDEX)
        # A snapshot may hold configurations alone.
        if folder is not None and any(folder.glob(f"{source.subfolder}/*.safetensors")):
            return folder
    hub_id = source.hub_ids[0]
    names = hub.list_files(hub_id)
    wanted = [n for n in names if n == INDEX or (n.count("/") == 1 and n.endswith(LIGHT))]
    for folder in {n.split("/")[0] for n in names if n.count("/") == 1}:
        inside = [n.removeprefix(f"{folder}/") for n in names if n.startswith(f"{folder}/")]
        chosen = select_names(inside, False, DIFFUSERS_BASE) or select_names(
            inside, False, TEXT_BASE
        )
        wanted += [f"{folder}/{name}" for name in chosen]
    return hub.download(hub_id, wanted)


def from_folder(folder: Path, dtype: torch.dtype) -> Any:
    """The pipeline of a folder, read by diffusers after `models.trust` has looked at it.

    Raises:
        ModelError: it says what is refused, or cannot be loaded.
    """
    diffusers = packages.load("diffusers", "A pipeline")
    check_folder(folder)
    try:
        with quiet_libraries():
            return diffusers.DiffusionPipeline.from_pretrained(
                str(folder),
                torch_dtype=dtype,
                local_files_only=True,
                use_safetensors=True,
                variant=_variant(folder),
            )
    except Exception as error:  # whatever a folder from elsewhere sets off in the libraries
        raise ModelError(
            f"{folder} cannot be loaded as a pipeline: {first_line(error)}",
            remedy="Save the model again.",
        ) from error


def _variant(folder: Path) -> str | None:
    """``fp16`` where that is all the denoising model's folder has."""
    for name in ("unet", "transformer"):
        files = [path.name for path in (folder / name).glob("*.safetensors")]
        if files:
            return "fp16" if all(".fp16" in file for file in files) else None
    return None


def _from_file(source: Source, dtype: torch.dtype) -> Any:
    assert source.file is not None
    file = source.file

    def load(component: str, found: Source | None) -> Any:
        if found is None and component in file.family.others:
            raise ModelError(
                f"{source.identifier} has no {component}, so it is not a whole pipeline.",
                remedy="Give a checkpoint of the whole pipeline, or a folder.",
            )
        return None if found is None else _loaded(found, "auto", dtype)

    scheduler = make_scheduler(None, file.scheduler)
    return _assembled(
        source, file.pipeline, load, lambda name: _tokenizer(source, name), scheduler,
        file.family.settings,
    )  # fmt: skip


def random_pipeline(
    source: Source, seed: int, *, precision: str, scheduler: Any = None, device: str | None = None
) -> Any:
    """The pipeline of a registered model with seeded random weights, and a tokenizer of one word:
    for measuring time and memory, since its pictures are noise. Nothing is read or fetched.

    Args:
        source: of the denoising model.
        seed: of the weights, as for ``--weights random:SEED``.
        precision, scheduler, device: as for `torch_pipeline`.

    Raises:
        ModelError: the pipeline is not one of those that are written here.
        EngineError: torch has no such device.
    """
    from todo_compile.capture.recording.words import tokenizer
    from todo_compile.runtime.in_process import torch_device

    config = random_scheduler(source)
    place, dtype = torch_device(device), dtype_of(precision)

    def load(component: str, found: Source | None) -> Any:
        del component
        return None if found is None else _loaded(found, f"random:{seed}", dtype)

    made = _assembled(
        source,
        pipeline_class(source),
        load,
        lambda _: tokenizer(TEXT_TOKENS),
        make_scheduler(scheduler, config),
        {},
    )
    return made.to(place)


def random_scheduler(source: Source) -> Mapping[str, Any]:
    """Configuration of the scheduler that a `random_pipeline` has.

    Raises:
        ModelError: of this model there is none.
    """
    config = SCHEDULERS.get(source.entry.name) if source.entry is not None else None
    if config is None:
        raise ModelError(
            f"A pipeline with random weights can be made of {', '.join(sorted(SCHEDULERS))}, "
            f"not of {source.identifier}.",
            remedy="Give one of those by name, or leave --weights out.",
        )
    return config


def _loaded(source: Source, weights: str, dtype: torch.dtype) -> Any:
    found = models.find_weights(source, models.WeightsChoice.parse(weights))
    return models.load(source, found, dtype=dtype, hashed=False).module


def _assembled(
    source: Source,
    name: str,
    load: Callable[[str, Source | None], Any],
    tokenizer: Callable[[str], Any],
    scheduler: Any,
    settings: Mapping[str, Any],
) -> Any:
    """A pipeline of parts that are made here.

    Args:
        source: of the UNet.
        name: of the pipeline's class.
        load: component and where it is from, None if it is absent → module or None.
        tokenizer: by its name in the pipeline.
        scheduler: of the pipeline.
        settings: what else its constructor takes.
    """
    made_of = getattr(packages.load("diffusers", "A pipeline"), name)
    parameters = inspect.signature(made_of.__init__).parameters
    tokenizers = [known for known in ("tokenizer", "tokenizer_2") if known in parameters]
    parts: dict[str, Any] = {known: tokenizer(known) for known in tokenizers}
    for known in ("unet", "vae", "text_encoder", "text_encoder_2"):
        if known in parameters:
            component = "vae_decoder" if known == "vae" else known
            parts[known] = load(component, source if known == "unet" else part(source, component))
    for known, parameter in parameters.items():  # safety checker, image encoder, …
        if known != "self" and parameter.default is inspect.Parameter.empty:
            parts.setdefault(known, None)
    settings = {"requires_safety_checker": False, **settings}
    parts |= {name: value for name, value in settings.items() if name in parameters}
    return made_of(**{**parts, "scheduler": scheduler})


def _tokenizer(source: Source, name: str) -> Any:
    """A tokenizer, which a checkpoint does not hold: from the hub's cache, else from the hub."""
    vocabulary = f"{name}/vocab.json"
    snapshots = (hub.cached_snapshot(hub_id, vocabulary) for hub_id in source.hub_ids)
    root = next((found for found in snapshots if found is not None), None)
    if root is None:
        files = ("vocab.json", "merges.txt", "tokenizer_config.json", "special_tokens_map.json")
        root = hub.download(source.hub_ids[0], [f"{name}/{file}" for file in files])
    check_part(root / name, root)
    transformers = packages.load("transformers", "A tokenizer")
    try:
        with quiet_libraries():
            found: Any = transformers.CLIPTokenizer
            return found.from_pretrained(str(root / name), local_files_only=True)
    except Exception as error:  # tokenizers raises bare ones, for a file of another shape
        raise ModelError(
            f"The tokenizer in {root / name} cannot be read: {first_line(error)}",
            remedy="Fill the hub's cache again.",
        ) from error
