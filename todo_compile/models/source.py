"""From a ``--model`` string to an architecture: registry name, folder, file, or hub id."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from todo_compile.batches import Text, TextLike, largest, parse_text
from todo_compile.errors import ConfigError, ModelError, given_path
from todo_compile.foreign import ForeignError, read_object
from todo_compile.models import hub
from todo_compile.models.architecture import (
    TEXT_CLASSES,
    VAE_CLASSES,
    Native,
    PipelineDefaults,
    class_name,
    native,
    vae_scale,
)
from todo_compile.models.bounds import check_config
from todo_compile.models.registry import REGISTRY, RegistryEntry
from todo_compile.models.single_file import SingleFile, recognise
from todo_compile.models.trust import read_index

if TYPE_CHECKING:
    from todo_compile.models.ip_adapter import IpAdapter

COMPONENTS = ("unet", "transformer")
"""Subfolders of a pipeline that hold the denoising model, in the order they are looked for."""
DENOISERS = (*COMPONENTS, "decoder", "prior")
"""The same of all pipelines: unCLIP's and Stable Cascade's have other names."""

MAX_TEXT = 4096
"""Longest text, in tokens."""
MAX_FRAMES = 4096
"""Of a video."""

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]*\w")


@dataclass(frozen=True)
class Source:
    """Where a model comes from, its architecture known, its weights not yet touched.

    Attributes:
        kind: how `identifier` was understood.
        identifier: registry name, absolute folder or file, or hub id.
        component: what part of the pipeline it is: ``unet`` or ``transformer``, and from
            `components`: ``vae_decoder``, ``text_encoder``, ``text_encoder_2``.
        config: the component's configuration (``config.json``).
        folder: folder with the component's files, for a local or packaged model; else None.
        hub_ids: repositories that have the weights, today's first; empty where `folder` is set.
        vae_scale: pixels per latent cell on each axis.
        entry: the registry's entry, if it is a registered model.
        pipeline: diffusers class of the pipeline that it belongs to; empty if unknown.
        controlnet: it takes a ControlNet's residuals as further inputs; see `controlnet`.
        t2i_adapter: it takes a T2I-Adapter's residuals as further inputs; see `t2i_adapter`.
        ip_adapter: whose layers it has, and whose pictures it takes; see `ip_adapter`.
        file: for a checkpoint that is one file: what it was recognised as.
        text_tokens: tokens of its text, or a range; None for what its pipeline passes, see `texts`.
        frames: of the video that its pipeline draws; None for the pipeline's own number.
        pipeline_defaults: what its pipeline showed, where it was asked (`capture.recording`).

    Raises:
        ModelError: no module can be made of `config`; see `bounds.check_config`.
    """

    kind: Literal["registry", "folder", "hub", "file"]
    identifier: str
    component: str
    config: Mapping[str, Any] = field(hash=False, repr=False)
    folder: Path | None = None
    hub_ids: tuple[str, ...] = ()
    vae_scale: int = 8
    entry: RegistryEntry | None = field(default=None, repr=False)
    pipeline: str = ""
    controlnet: bool = False
    t2i_adapter: bool = False
    ip_adapter: IpAdapter | None = None
    file: SingleFile | None = field(default=None, repr=False)
    text_tokens: Text | None = None
    frames: int | None = None
    pipeline_defaults: PipelineDefaults | None = None

    def __post_init__(self) -> None:
        check_config(self.config)

    @property
    def subfolder(self) -> str:
        """Where a pipeline's folder has the component."""
        return "vae" if self.component == "vae_decoder" else self.component

    @property
    def class_name(self) -> str:
        """The diffusers class of the component."""
        return class_name(self.config)

    @property
    def texts(self) -> Text | None:
        """Tokens of its text: what was asked for, or the range that its pipeline passes."""
        if self.text_tokens is None and self.pipeline_defaults is not None:
            return self.pipeline_defaults.texts
        return self.text_tokens

    @property
    def native(self) -> Native:
        """The training grid, derived from the configuration.

        Raises:
            ModelError: the configuration does not say.
        """
        return (
            native(self.config) if self.pipeline_defaults is None else self.pipeline_defaults.native
        )


def resolve(model: str) -> Source:
    """Understand `model`; a registry name wins over a folder of that name (write ``./name``).

    Raises:
        ModelError: unknown name, missing path, a folder that is no diffusers model, a file that is
            no known checkpoint, an unsupported class, or a hub repository that can be neither found
            locally nor reached.
    """
    given_path(model, "model")
    if model in REGISTRY:
        return _registered(REGISTRY[model])
    path = Path(model).expanduser()
    if path.is_dir():
        return _folder(path.resolve())
    if path.is_file():
        return _single_file(path.absolute())
    if _HUB_ID.fullmatch(model) and ".." not in model:
        return _hub(model)
    if _looks_like_path(model):
        raise ModelError(
            f"There is no folder {path}.",
            remedy=f"Check the path, or use a registry name: {', '.join(REGISTRY)}.",
        )
    near = difflib.get_close_matches(model.lower().replace("-", ""), REGISTRY, n=1, cutoff=0.5)
    guess = f" Did you mean {near[0]}?" if near else ""
    raise ModelError(
        f"Unknown model {model!r}.{guess}",
        remedy=f"Known: {', '.join(REGISTRY)}; or give a diffusers folder or a hub id (org/name).",
    )


def with_text_tokens(source: Source, tokens: TextLike | None) -> Source:
    """A denoising model with a text of so many tokens; None for what its pipeline passes.

    Raises:
        ConfigError: a number or range that is not possible, or another component.
    """
    if tokens is None:
        return source
    _check_denoiser(source, "--text-tokens")
    found = parse_text(tokens)
    if not 1 <= largest(found) <= MAX_TEXT:
        raise ConfigError(
            f"A text of {largest(found)} tokens is not possible.", remedy=f"Give 1 to {MAX_TEXT}."
        )
    return replace(source, text_tokens=found)


def with_frames(source: Source, frames: int | None) -> Source:
    """A denoising model for a video of so many frames; None for what its pipeline draws.

    Raises:
        ConfigError: a number that is not possible, or another component.
    """
    if frames is None:
        return source
    _check_denoiser(source, "--frames")
    if not 1 <= frames <= MAX_FRAMES:
        raise ConfigError(
            f"A video of {frames} frames is not possible.", remedy=f"Give 1 to {MAX_FRAMES}."
        )
    return replace(source, frames=frames)


def _check_denoiser(source: Source, option: str) -> None:
    if source.component not in DENOISERS:
        raise ConfigError(
            f"{option} is for denoising models; this is a {source.component}.",
            remedy="Leave it out.",
        )


def read_config(path: Path, within: Path) -> dict[str, Any]:
    """Read a JSON object of a model's folder.

    Args:
        path: the file.
        within: the folder, which no link may lead out of.

    Raises:
        ModelError: unreadable, not JSON within the bounds of `foreign`, not an object, or outside.
    """
    try:
        return read_object(path, within=within)
    except (OSError, ForeignError) as error:
        raise ModelError(
            f"{path} cannot be read as JSON: {error}.",
            remedy="Download or save the model again.",
        ) from error


def _registered(entry: RegistryEntry) -> Source:
    return Source(
        kind="registry",
        identifier=entry.name,
        component=entry.component,
        config=entry.config,
        folder=None if entry.folder is None else entry.folder / entry.component,
        hub_ids=() if entry.hub_id is None else (entry.hub_id, *entry.former_hub_ids),
        vae_scale=entry.vae_scale,
        entry=entry,
    )


def _single_file(path: Path) -> Source:
    found = recognise(path)
    return Source(
        kind="file",
        identifier=str(path),
        component="unet",
        config=found.configs["unet"],
        hub_ids=found.family.hub_ids,
        pipeline=found.pipeline,
        file=found,
    )


def _folder(folder: Path) -> Source:
    index = read_index(folder)  # refused by every command, not only by those that draw
    for component in DENOISERS if index else COMPONENTS:
        config = folder / component / "config.json"
        if config.is_file():
            return Source(
                kind="folder",
                identifier=str(folder),
                component=component,
                config=_checked(read_config(config, folder)),
                folder=folder / component,
                vae_scale=_vae_scale(folder),
            )
    config = folder / "config.json"
    if config.is_file():
        values = _checked(read_config(config, folder))
        return Source(
            kind="folder",
            identifier=str(folder),
            component="unet" if values["_class_name"].startswith("UNet") else "transformer",
            config=values,
            folder=folder,
            # The UNet of a pipeline may be given by its own folder: its neighbour knows the scale.
            vae_scale=_vae_scale(folder.parent),
        )
    raise ModelError(
        f"{folder} is not a diffusers model: it has neither unet/config.json, "
        "transformer/config.json nor config.json.",
        remedy="Give the folder of a pipeline or of a UNet, as save_pretrained writes it.",
    )


def _hub(hub_id: str) -> Source:
    for entry in REGISTRY.values():
        if hub_id in (entry.hub_id, *entry.former_hub_ids):
            return _registered(entry)
    root = hub.fetch_configs(hub_id, DENOISERS)
    read_index(root)
    for component in DENOISERS:
        config = root / component / "config.json"
        if config.is_file():
            return Source(
                kind="hub",
                identifier=hub_id,
                component=component,
                config=_checked(read_config(config, root)),
                hub_ids=(hub_id,),
                vae_scale=_vae_scale(root),
            )
    raise ModelError(
        f"The hub repository {hub_id} has no unet/config.json or transformer/config.json.",
        remedy="Give a repository in diffusers' format.",
    )


def _checked(config: dict[str, Any]) -> dict[str, Any]:
    name = class_name(config)
    if name in (*VAE_CLASSES, *TEXT_CLASSES):
        option = "vae-decoder" if name in VAE_CLASSES else "text-encoder"
        raise ModelError(
            f"This is a {name}, not a denoising model.",
            remedy=f"To compile it alone, add --component {option}.",
        )
    return config


def _vae_scale(pipeline: Path) -> int:
    """Pixels per latent cell: 2 for every downsampling of the VAE; 8 where there is no VAE."""
    path = pipeline / "vae" / "config.json"
    if not path.is_file():
        return 8
    return vae_scale(read_config(path, pipeline))


def _looks_like_path(model: str) -> bool:
    return model.startswith((".", "~", "/")) or "/" in model or "\\" in model
