"""The other parts of a pipeline: which there are, and a `Source` for each.

A pipeline's folder says what it is made of: ``vae/config.json``, ``text_encoder/config.json``. For
a registered model the configurations are built in (`builtin`), so that neither files nor a network
are needed to plan, or to build with random weights.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from todo_compile.errors import ConfigError, ModelError, given_path
from todo_compile.models import hub
from todo_compile.models.architecture import (
    DIT,
    PIXART,
    TEXT_CLASSES,
    UNET,
    VAE_CLASSES,
    VAE_KL,
    class_name,
    vae_scale,
)
from todo_compile.models.builtin import COMPONENT_CONFIGS
from todo_compile.models.registry import known_parts
from todo_compile.models.source import Source, read_config, resolve
from todo_compile.models.trust import read_index

OTHERS = ("vae_decoder", "text_encoder", "text_encoder_2")
"""Components besides the denoising model."""
CHOICES = ("unet", "vae-decoder", "text-encoder", "text-encoder-2", "all")
"""What ``--component`` takes; ``unet`` is whatever denoises."""

_SUPPORTED = {
    "vae_decoder": VAE_CLASSES,
    "text_encoder": TEXT_CLASSES,
    "text_encoder_2": TEXT_CLASSES,
}
_SDXL_SCALING = 0.13025
_SUBFOLDERS = {"vae_decoder": "vae"}


def parse_component(text: str) -> str:
    """Read ``--component``: the component's name (``vae-decoder`` → ``vae_decoder``), or ``all``.

    Raises:
        ConfigError: unknown.
    """
    name = text.strip().lower().replace("_", "-")
    if name not in CHOICES:
        raise ConfigError(f"Unknown component {text!r}.", remedy=f"Known: {', '.join(CHOICES)}.")
    return name.replace("-", "_")


def one_component(text: str | None) -> str:
    """The component that one output holds: as `parse_component`; None is what denoises.

    Raises:
        ConfigError: unknown, or ``all``.
    """
    choice = "unet" if text is None else parse_component(text)
    if choice == "all":
        raise ConfigError(
            "All components together are several outputs.",
            remedy=f"Choose one of {', '.join(CHOICES[:-1])}; a folder holds them all: "
            "todo-compile compile --out bundle/ (end it in a slash).",
        )
    return choice


def resolve_component(model: str, component: str = "unet") -> Source:
    """The source of one component of `model`.

    Args:
        model: as for `resolve`; for the others than the denoising model also their own folder.
        component: ``unet`` (whatever denoises), ``vae_decoder``, ``text_encoder`` or
            ``text_encoder_2``.

    Raises:
        ModelError: as `resolve`; the model has no such component, or one of an unsupported class.
    """
    if component not in OTHERS:
        source = resolve(model)
        return replace(source, pipeline=pipeline_class(source))
    folder = given_path(model, "model").expanduser()
    if folder.is_dir():
        alone = _alone(folder.resolve(), component)
        if alone is not None:
            return alone
    source = resolve(model)
    found = part(replace(source, pipeline=pipeline_class(source)), component)
    if found is None:
        raise ModelError(
            f"{model} has no {component}."
            if source.file is not None
            else f"{model} has no {_subfolder(component)}/config.json, so it has no {component}.",
            remedy="Give a pipeline's folder as save_pretrained writes it, or leave this component "
            "out: --component unet.",
        )
    return found


def part(source: Source, component: str) -> Source | None:
    """Another component of the pipeline that `source`, its denoising model, belongs to.

    Returns:
        None if the pipeline has no such component.

    Raises:
        ModelError: its class is not supported.
    """
    config = _config(source, component)
    if config is None:
        return None
    _check(config, component)
    root = pipeline_folder(source)
    return replace(
        source,
        component=component,
        config=config,
        folder=root / _subfolder(component) if root is not None else None,
        vae_scale=vae_scale(config) if component == "vae_decoder" else source.vae_scale,
    )


def pipeline_folder(source: Source) -> Path | None:
    """The folder of the pipeline that a local `source` belongs to; None for others."""
    if source.folder is None:
        return None
    inside = source.folder.name == source.subfolder
    return source.folder.parent if inside else source.folder


def pipeline_class(source: Source) -> str:
    """Name of the diffusers pipeline: as ``model_index.json`` says, else by the denoising model.

    Empty where neither tells.

    Raises:
        ModelError: the index names what is no class of diffusers or transformers.
    """
    if source.file is not None:
        return source.file.pipeline
    root = pipeline_folder(source)
    name = read_index(root).get("_class_name") if root is not None else None
    if name is not None:
        return str(name)
    if source.entry is not None and source.entry.pipeline:
        return source.entry.pipeline
    if source.class_name == UNET:
        sized = source.config.get("addition_embed_type") == "text_time"
        return "StableDiffusionXLPipeline" if sized else "StableDiffusionPipeline"
    return {PIXART: "PixArtAlphaPipeline", DIT: "DiTPipeline"}.get(source.class_name, "")


def overflows_in_half(source: Source) -> bool:
    """Whether a VAE's activations leave fp16's range: SDXL's own autoencoder, in any pipeline.

    diffusers runs it in fp32 whatever the pipeline's precision (``force_upcast``). The key alone
    does not tell: SD1.5's saved again has it too, by default, and works in fp16. So it is known by
    the scale of its latents as well, which is of its training; PixArt-Σ and others use the same.
    """
    return (
        source.component == "vae_decoder"
        and source.class_name == VAE_KL
        and bool(source.config.get("force_upcast", True))
        and source.config.get("scaling_factor") == _SDXL_SCALING
    )


def _config(source: Source, component: str) -> dict[str, Any] | None:
    name = f"{_subfolder(component)}/config.json"
    root = pipeline_folder(source)
    if root is not None:
        return read_config(root / name, root) if (root / name).is_file() else None
    if source.file is not None:
        inside = source.file.configs.get(component)
        return dict(inside) if inside is not None else None
    if source.entry is not None:
        if source.entry.pipeline:
            found = known_parts(source.entry.name)["parts"].get(_subfolder(component))
        else:
            found = COMPONENT_CONFIGS.get(source.entry.name, {}).get(component)
        return dict(found) if found is not None else None
    folder = hub.cached_folder(source.hub_ids[0], _subfolder(component))
    if folder is None:
        if f"{_subfolder(component)}/config.json" not in hub.list_files(source.hub_ids[0]):
            return None
        folder = hub.download(source.hub_ids[0], [name]) / _subfolder(component)
    return read_config(folder / "config.json", folder)


def _alone(folder: Path, component: str) -> Source | None:
    """A component given by its own folder; None if `folder` is not that."""
    if not (folder / "config.json").is_file():
        return None
    config = read_config(folder / "config.json", folder)
    try:
        if class_name(config) not in _SUPPORTED[component]:
            return None
    except ModelError:
        return None
    return Source(
        kind="folder",
        identifier=str(folder),
        component=component,
        config=config,
        folder=folder,
        vae_scale=vae_scale(config) if component == "vae_decoder" else 8,
    )


def _check(config: dict[str, Any], component: str) -> None:
    supported = _SUPPORTED[component]
    name = config.get("_class_name") or (config.get("architectures") or ["of an unknown class"])[0]
    if name not in supported:
        raise ModelError(
            f"The {component} is {name}, which is not supported; supported: "
            f"{', '.join(supported)}.",
            remedy="Leave this component out: --component unet; diffusers' own can be used.",
        )


def _subfolder(component: str) -> str:
    return _SUBFOLDERS.get(component, component)
