"""diffusers pipelines as they are, from whatever ``--model`` may be, with weights from safetensors.

A folder is read by diffusers; a hub id or registered model is one too once it is in the hub's
cache. Of a single file the parts are made here, by the same road as for compiling.
"""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import TYPE_CHECKING, Any

from todo_compile import models, packages
from todo_compile.errors import ModelError, first_line
from todo_compile.libraries import quiet_libraries
from todo_compile.models import hub
from todo_compile.models.components import part, pipeline_folder
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
    diffusers = packages.load("diffusers", "A pipeline")
    made_of = getattr(diffusers, source.file.pipeline)
    parameters = inspect.signature(made_of.__init__).parameters
    tokenizers = [name for name in ("tokenizer", "tokenizer_2") if name in parameters]
    parts: dict[str, Any] = {name: _tokenizer(source, name) for name in tokenizers}
    for name in ("unet", "vae", "text_encoder", "text_encoder_2"):
        if name not in parameters:
            continue
        component = "vae_decoder" if name == "vae" else name
        found = source if name == "unet" else part(source, component)
        if found is None and component in source.file.family.others:
            raise ModelError(
                f"{source.identifier} has no {component}, so it is not a whole pipeline.",
                remedy="Give a checkpoint of the whole pipeline, or a folder.",
            )
        parts[name] = None
        if found is not None:
            weights = models.find_weights(found, models.WeightsChoice.parse("auto"))
            parts[name] = models.load(found, weights, dtype=dtype, hashed=False).module
    for name, parameter in parameters.items():  # safety checker, image encoder, …
        if name != "self" and parameter.default is inspect.Parameter.empty:
            parts.setdefault(name, None)
    settings = {"requires_safety_checker": False, **source.file.family.settings}
    parts |= {name: value for name, value in settings.items() if name in parameters}
    parts["scheduler"] = make_scheduler(None, source.file.scheduler)
    return made_of(**parts)


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
