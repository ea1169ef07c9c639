"""Parts of a pipeline that are not compiled and stay in torch: which, and their files.

T5 and other text encoders, image decoders of other kinds, and the autoencoder of a pipeline that
also encodes pictures. A bundle takes their safetensors along, so that it stays whole.
"""

from __future__ import annotations

import inspect
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from todo_compile import packages
from todo_compile.models import hub
from todo_compile.models.components import pipeline_folder
from todo_compile.models.files import DIFFUSERS_BASE, TEXT_BASE, pick_files, select_names
from todo_compile.models.parts import Part, parts_of
from todo_compile.models.source import Source
from todo_compile.models.trust import pipeline_module

# What most pipelines draw without; `runtime` leaves it out then.
_LEFT_OUT = ("safety_checker", "feature_extractor", "watermarker", "image_encoder")
_COMPILED = {"vae_decoder": "vae"}
# Arguments of pipelines that encode the picture; a ControlNet's is none of theirs.
_EDITS = ("strength", "mask_image", "image_guidance_scale", "max_area")


@dataclass(frozen=True)
class TorchPart:
    """A part that stays in torch.

    Attributes:
        library: ``diffusers`` or ``transformers``, or a folder of diffusers' pipelines.
        name: its class.
        files: of its weights, and of their index; empty where only the configuration is there.
    """

    library: str
    name: str
    files: tuple[Path, ...]


def torch_parts(
    source: Source, compiled: Collection[str], *, fetch: bool = False
) -> dict[str, TorchPart]:
    """The networks of a pipeline besides those in `compiled`, by the pipeline's names.

    Args:
        source: of the denoising model.
        compiled: components that a bundle has.
        fetch: download from the hub what is not in its cache.

    Raises:
        ModelError: a file is absent or cannot be read.
    """
    if source.file is not None:
        return {}  # a checkpoint in one file has no others than those that are known
    parts = parts_of(source)
    if parts is None:
        return {}
    done = {_COMPILED.get(name, name) for name in compiled}
    if takes_pictures(parts.pipeline):
        done.discard("vae")  # the compiled decoder does not encode
    found: dict[str, TorchPart] = {}
    for name, part in parts.parts.items():
        if part is None or name in done or not _is_network(part):
            continue
        if name in _LEFT_OUT and not is_needed(parts.pipeline, name):
            continue
        found[name] = TorchPart(part.library, part.name, _files(source, name, part, fetch))
    return found


def is_needed(pipeline: object, name: str) -> bool:
    """Whether a pipeline cannot do without a part that others may lack: an image encoder that makes
    all there is to draw from, and what prepares pictures for it.

    Args:
        pipeline: of diffusers, by its class or its name.
        name: of the part.
    """
    made: Any = pipeline
    if isinstance(pipeline, str):
        made = getattr(packages.load("diffusers", "A pipeline"), pipeline, None)
    if made is None or name in getattr(made, "_optional_components", ()):
        return False
    parameter = inspect.signature(made.__init__).parameters.get(name)
    return parameter is not None and parameter.default is inspect.Parameter.empty


def takes_pictures(pipeline: str) -> bool:
    """Whether a pipeline of diffusers encodes a picture that goes in."""
    made = getattr(packages.load("diffusers", "A pipeline"), pipeline, None)
    if made is None:
        return False
    known = inspect.signature(made.__call__).parameters
    if "control_image" in known and "controlnet" not in inspect.signature(made.__init__).parameters:
        return True  # the denoiser itself looks at it, as a latent
    return "image" in known and any(name in known for name in _EDITS)


def _is_network(part: Part) -> bool:
    """Whether it has weights: no tokenizer, scheduler or processor."""
    from torch import nn

    if part.library in ("diffusers", "transformers"):
        library: Any = packages.load(part.library, "A pipeline")
    else:
        library = pipeline_module(part.library)
    found = getattr(library, part.name, None)
    return isinstance(found, type) and issubclass(found, nn.Module)


def _files(source: Source, name: str, part: Part, fetch: bool) -> tuple[Path, ...]:
    base = TEXT_BASE if part.library == "transformers" else DIFFUSERS_BASE
    root = pipeline_folder(source)
    if root is None:
        folder = next(
            (f for h in source.hub_ids if (f := hub.cached_folder(h, name)) is not None), None
        )
        if fetch and (folder is None or not any(folder.glob("*.safetensors"))):
            hub_id = source.hub_ids[0]
            inside = [
                n.removeprefix(f"{name}/")
                for n in hub.list_files(hub_id)
                if n.startswith(f"{name}/")
            ]
            wanted = [f"{name}/{n}" for n in ("config.json", *select_names(inside, False, base))]
            folder = hub.download(hub_id, wanted) / name
        if folder is None:
            return ()
    else:
        folder = root / name
    if not any(folder.glob("*.safetensors")):
        return ()
    files = pick_files(folder, False, base)
    index = [p for p in folder.glob("*.safetensors.index*.json") if len(files) > 1]
    return (*files, *index)
