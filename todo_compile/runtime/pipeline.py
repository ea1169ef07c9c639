"""`load_pipeline`: from a bundle to a ready diffusers pipeline, without the network."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from todo_compile import packages
from todo_compile.bundle.bundle import inside
from todo_compile.errors import BundleError, ConfigError, ModelError, first_line, given_path
from todo_compile.libraries import quiet_libraries
from todo_compile.models.torch_parts import is_needed
from todo_compile.models.trust import INDEX, check_part, read_index
from todo_compile.runtime.compiled import Compiled
from todo_compile.runtime.files import OpenBundle, Verify, open_bundle
from todo_compile.runtime.how import How, Wrapping
from todo_compile.runtime.loading import wrap, wrap_phases
from todo_compile.runtime.schedulers import make_scheduler
from todo_compile.runtime.torch_parts import torch_part

if TYPE_CHECKING:
    from torch import nn

    from todo_compile.runtime.component import Batching

# A component of a bundle → the pipeline's name for it.
_PLACES = {"vae_decoder": "vae"}


def place_of(component: str) -> str:
    """A pipeline's name for a component of a bundle."""
    return _PLACES.get(component, component)


_DENOISERS = ("unet", "transformer")
# What most pipelines work without.
_OPTIONAL = ("safety_checker", "feature_extractor", "image_encoder", "watermarker")


def load_pipeline(
    path: str | Path,
    *,
    scheduler: Any = None,
    pipeline_class: Any = None,
    device: str | None = None,
    provider: str | None = None,
    verify: Verify = "full",
    batching: Batching = "split",
    cast: bool = False,
    encoder: nn.Module | None = None,
    threads: int | None = None,
    cuda_graph: bool = False,
    specialise: str | None = None,
    runtime_cache: str | Path | None = None,
    dense: bool = False,
    res: str | int | None = None,
    **components: Any,
) -> Any:
    """A bundle as a diffusers pipeline.

    Args:
        path: the bundle's folder.
        scheduler: an instance, a name of `schedulers.SCHEDULERS` (``ddim``, ``euler``, ``dpm++``,
            …) or a class name of diffusers; None takes the bundle's own.
        pipeline_class: another one for the same components: a class or its name in diffusers, such
            as ``StableDiffusionImg2ImgPipeline``.
        device, provider, verify, batching, cast, threads, cuda_graph, specialise, res: as for
            `load`.
        encoder: torch VAE whose encoder image-to-image uses.
        runtime_cache: folder for one cache file a component; see `load`.
        dense: run the denoiser of a dense phase alone, from the first step on. The VAE decoder
            stays the bundle's, rewritten or not.
        components: stand in for the bundle's, or for what it lacks: ``text_encoder=…``,
            ``controlnet=…`` (of a bundle built with ``controlnet``).

    Raises:
        BundleError: it is no bundle, it is damaged, or lacks a part.
        EngineError: it cannot run here.
        ConfigError: an option or a component is not known.
        MissingPackageError: diffusers or transformers is absent.
    """
    opened = open_bundle(given_path(path, "path"), verify, res=res)
    return assemble(
        opened,
        components,
        scheduler=scheduler,
        pipeline_class=pipeline_class,
        runtime_cache=runtime_cache,
        dense=dense,
        options=Wrapping(
            How(device, provider, threads, cuda_graph, specialise), verify, batching, cast, encoder
        ),
    )


def assemble(
    opened: OpenBundle,
    components: Mapping[str, Any],
    *,
    options: Wrapping,
    scheduler: Any = None,
    pipeline_class: Any = None,
    runtime_cache: str | Path | None = None,
    dense: bool = False,
) -> Any:
    """The pipeline of an open bundle.

    Args:
        opened, components, scheduler, pipeline_class, runtime_cache, dense: see `load_pipeline`.
        options: of `wrap`, for all components.
    """
    path = opened.folder
    if dense and opened.dense is None:
        raise ConfigError(
            f"{path} has no dense denoiser.",
            remedy="Build the bundle with --dense-after, or with a plan that has a dense phase.",
        )
    made_of = _pipeline_class(pipeline_class or opened.bundle.pipeline_class)
    wanted = _signature(made_of)
    unknown = [name for name in components if name not in wanted]
    if unknown:
        raise ConfigError(
            f"{made_of.__name__} has no component {', '.join(unknown)}.",
            remedy=f"It has {', '.join(wanted)}.",
        )
    parts: dict[str, Any] = dict(components)
    for name in wanted:
        if name == "scheduler":
            parts[name] = make_scheduler(scheduler, _folder(opened, "scheduler"))
        elif name in parts or not _folder(opened, name):
            continue
        elif name.startswith("tokenizer"):
            parts[name] = _light_part(opened, name, "PreTrainedTokenizerBase", "CLIPTokenizer")
        elif name == "feature_extractor" and is_needed(made_of, name):
            parts[name] = _light_part(opened, name, "ImageProcessingMixin", "CLIPImageProcessor")
        elif name.endswith("_scheduler"):
            parts[name] = make_scheduler(None, _folder(opened, name))
    encoder = options.encoder
    for name in opened.bundle.torch:
        if name == "vae" and "vae_decoder" in opened.components:
            encoder = encoder or torch_part(opened, name)
        elif name in wanted and name not in parts:
            parts[name] = torch_part(opened, name)
    for name, outputs in opened.components.items():
        place = place_of(name)
        if place in parts or place not in wanted:
            continue
        cache = Path(runtime_cache) / f"{outputs[0].path.name}.cache" if runtime_cache else None
        own = replace(options, encoder=encoder, how=replace(options.how, runtime_cache=cache))
        if name != opened.bundle.denoiser:
            parts[place] = wrap(outputs, own)
        elif dense and opened.dense is not None:
            parts[place] = wrap(opened.dense.outputs, own)
        else:
            parts[place] = wrap_phases(opened.phases, own)
    compiled = next((part for part in parts.values() if isinstance(part, Compiled)), None)
    if compiled is not None:  # torch's parts go where the compiled ones are
        device: Any = compiled.device  # which every kind of them has
        if options.encoder is None and encoder is not None:
            encoder.to(device)
        for name in opened.bundle.torch:
            part = parts.get(name)
            if part is not None and name not in components and part is not compiled:
                part.to(device)
    pipeline = _construct(made_of, wanted, parts, opened)
    for name in _DENOISERS:
        follow = getattr(getattr(pipeline, name, None), "follow", None)
        if follow is not None:
            follow(pipeline)
    return pipeline


def _pipeline_class(wanted: Any) -> Any:
    """A pipeline class of diffusers, never one of a bundle's own making."""
    diffusers = packages.load("diffusers", "A pipeline")
    DiffusionPipeline = diffusers.DiffusionPipeline
    found = getattr(diffusers, wanted, None) if isinstance(wanted, str) else wanted
    if not (inspect.isclass(found) and issubclass(found, DiffusionPipeline)):
        raise ConfigError(
            f"diffusers has no pipeline {wanted!r}.",
            remedy="Name one, such as StableDiffusionPipeline, or update diffusers.",
        )
    return found


def _signature(made_of: Any) -> dict[str, inspect.Parameter]:
    """The parameters that take components and settings."""
    parameters = dict(inspect.signature(made_of.__init__).parameters)
    parameters.pop("self")
    return parameters


def _folder(opened: OpenBundle, name: str) -> Path | None:
    """The folder of a light part, if its files were copied along (and so were checked)."""
    if not any(one.name.startswith(f"{name}/") for one in opened.bundle.light_files):
        return None
    return inside(opened.folder, name)


def _light_part(opened: OpenBundle, name: str, base: str, default: str) -> Any:
    """A tokenizer, or what prepares pictures: read by transformers from the files of the bundle.

    Args:
        opened, name: the bundle, and its folder there.
        base: class of transformers that it must be a kind of.
        default: its class, where the bundle does not say.
    """
    transformers = packages.load("transformers", "A pipeline's text and pictures")
    folder = _folder(opened, name)
    assert folder is not None
    try:
        check_part(folder, opened.folder)
    except ModelError as error:
        raise BundleError(
            error.message, remedy=f"Hand it over: load_pipeline(…, {name}=…)"
        ) from error
    kind = _index(opened).get(name)
    class_name = str(kind[1]) if isinstance(kind, list) and len(kind) == 2 else default
    found: Any = getattr(transformers, class_name, None)
    if not _is_class(found, getattr(transformers, base)):
        raise BundleError(
            f"The bundle's {name} is a {class_name}, which transformers does not know.",
            remedy=f"Hand it over: load_pipeline(…, {name}=…)",
        )
    try:
        with quiet_libraries():
            return found.from_pretrained(str(folder), local_files_only=True)
    except Exception as error:  # tokenizers raises bare ones, for a file of another shape
        raise BundleError(
            f"The bundle's {name} cannot be read: {first_line(error)}",
            remedy=f"Hand it over: load_pipeline(…, {name}=…)",
        ) from error


def _is_class(value: object, base: Any) -> bool:
    return inspect.isclass(value) and issubclass(value, base)


def _index(opened: OpenBundle) -> dict[str, Any]:
    """``model_index.json``: library and class of each part; empty if there is none."""
    if not any(one.name == INDEX for one in opened.bundle.light_files):
        return {}
    inside(opened.folder, INDEX)
    try:
        return read_index(opened.folder)
    except ModelError as error:
        raise BundleError(
            error.message, remedy="Build the bundle again with todo-compile."
        ) from error


def _construct(
    made_of: Any, wanted: dict[str, inspect.Parameter], parts: dict[str, Any], opened: OpenBundle
) -> Any:
    """The pipeline; settings come from ``model_index.json``, what it can do without is left out."""
    index = _index(opened)
    for name, parameter in wanted.items():
        if name in parts:
            continue
        may_lack = name in _OPTIONAL and not is_needed(made_of, name)
        if may_lack or index.get(name) == [None, None]:
            parts[name] = None
        elif parameter.default is inspect.Parameter.empty:
            raise BundleError(
                f"{opened.folder} has no {name}, which {made_of.__name__} needs.",
                remedy=f"Hand it over: load_pipeline(…, {name}=…), or build the bundle from a "
                "folder that has it.",
            )
        elif isinstance(index.get(name), (bool, int, float, str)):
            parts[name] = index[name]
    if "requires_safety_checker" in wanted and parts.get("safety_checker") is None:
        parts["requires_safety_checker"] = False
    return made_of(**parts)
