"""Files of hub repositories: from the local cache, else from the hub, without long waits."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from todo_compile.errors import ModelError, first_line

_TIMEOUT_S = 10.0


def cached_folder(hub_id: str, component: str) -> Path | None:
    """The cached snapshot's folder of `component`, if any; touches no network."""
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(hub_id, f"{component}/config.json")
    return Path(found).parent if isinstance(found, str) else None


def cached_snapshot(hub_id: str, name: str) -> Path | None:
    """The cached snapshot that has the file `name`, if any; touches no network."""
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(hub_id, name)
    return Path(found).parents[name.count("/")] if isinstance(found, str) else None


def fetch_configs(hub_id: str, components: Sequence[str]) -> Path:
    """The snapshot of `hub_id` with at least the configurations of `components` and the VAE.

    Raises:
        ModelError: not cached, and the hub cannot be reached or has no such repository.
    """
    for component in components:
        folder = cached_folder(hub_id, component)
        if folder is not None:
            return folder.parent
    return download(hub_id, [f"{name}/config.json" for name in (*components, "vae")])


def list_files(hub_id: str) -> list[str]:
    """Paths of all files in the repository, asked of the hub.

    Raises:
        ModelError: as `fetch_configs`.
    """
    from huggingface_hub import HfApi

    _refuse_offline(hub_id)
    try:
        siblings = HfApi().model_info(hub_id, timeout=_TIMEOUT_S).siblings or []
    except Exception as error:  # httpx and requests by release: the hub's own types are not enough
        raise unreachable(hub_id, error) from error
    return [sibling.rfilename for sibling in siblings]


def download(hub_id: str, paths: Sequence[str]) -> Path:
    """Download exactly `paths` into the hub cache; the snapshot's folder.

    Raises:
        ModelError: as `fetch_configs`.
    """
    import huggingface_hub

    _refuse_offline(hub_id)
    # One cheap question before `snapshot_download`, whose retries without a network take minutes.
    list_files(hub_id)
    try:
        hub: Any = huggingface_hub  # its overloads carry tqdm's unparametrised class
        return Path(hub.snapshot_download(hub_id, allow_patterns=list(paths)))
    except Exception as error:
        raise unreachable(hub_id, error) from error


def unreachable(hub_id: str, cause: object) -> ModelError:
    """The error for a repository that is not cached and cannot be had from the hub."""
    return ModelError(
        f"{hub_id} is not in the local hub cache and cannot be fetched from the hub "
        f"({first_line(cause, limit=160)}).",
        remedy="Do one of these: give a local diffusers folder (--model DIR or --weights DIR); "
        f"fill the cache on a machine with a network (huggingface-cli download {hub_id}, then "
        "copy it here and set HF_HOME); or build with --weights random.",
    )


def _refuse_offline(hub_id: str) -> None:
    from huggingface_hub import constants

    offline: Any = constants.HF_HUB_OFFLINE
    if offline:
        raise unreachable(hub_id, "HF_HUB_OFFLINE is set")
