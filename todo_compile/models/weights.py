"""Which weights: ``--weights auto|random[:SEED]|PATH``, found as files and identified by a hash.

Nothing is ever unpickled: a checkpoint that is not safetensors is refused.
"""

from __future__ import annotations

import functools
import hashlib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from todo_compile.errors import ConfigError, ModelError
from todo_compile.foreign import ForeignError, open_regular
from todo_compile.models import hub
from todo_compile.models.architecture import TEXT_CLASSES, architecture_hash
from todo_compile.models.files import DIFFUSERS_BASE, TEXT_BASE, pick_files, select_names

if TYPE_CHECKING:
    import torch

    from todo_compile.models.source import Source

RANDOM_SCHEME = "v1"
"""Version of `randomise`'s recipe: part of the hash, raised when the values change."""


@dataclass(frozen=True)
class WeightsChoice:
    """What the user asked for, not yet looked for.

    Attributes:
        kind: ``auto``, ``random`` or ``path``.
        seed: for ``random``.
        path: for ``path``: a safetensors file or a folder.
    """

    kind: Literal["auto", "random", "path"]
    seed: int = 0
    path: Path | None = None

    @classmethod
    def parse(cls, text: str) -> WeightsChoice:
        """Read ``auto``, ``random``, ``random:SEED`` or a path.

        Raises:
            ConfigError: the seed is not a number from 0 to 2⁶³−1.
        """
        if text == "auto":
            return cls("auto")
        if text == "random" or text.startswith("random:"):
            seed = text.partition(":")[2] if ":" in text else "0"
            if not re.fullmatch(r"\d{1,19}", seed, re.ASCII) or int(seed) >= 2**63:
                raise ConfigError(
                    f"{seed!r} is not a seed.",
                    remedy="Write --weights random or --weights random:SEED with a number from 0.",
                )
            return cls("random", seed=int(seed))
        return cls("path", path=Path(text).expanduser())

    def __str__(self) -> str:
        if self.kind == "path":
            return str(self.path)
        return f"random:{self.seed}" if self.kind == "random" else "auto"


@dataclass(frozen=True)
class Weights:
    """Weights that were found.

    Attributes:
        kind: ``random`` or ``files``.
        origin: where they are from, for people: ``folder``, ``file``, ``hub cache``, ``hub``,
            ``path`` or ``random``.
        seed: for ``random``.
        files: safetensors files, absolute, in order of name.
        architecture: hash of the architecture they are meant for.
    """

    kind: Literal["random", "files"]
    origin: str
    seed: int = 0
    files: tuple[Path, ...] = ()
    architecture: str = ""

    @property
    def description(self) -> str:
        """One phrase for reports."""
        if self.kind == "random":
            return f"seeded random weights (seed {self.seed}), NOT a trained model"
        first = self.files[0]
        return f"{self.origin}: {first if self.origin == 'file' else first.parent}"


def find_weights(
    source: Source, choice: WeightsChoice, *, dtype: torch.dtype | None = None
) -> Weights:
    """Find the weights that `choice` means for `source`; reads no tensor.

    ``auto`` looks in the folder, else in the local hub cache, else on the hub. It never falls back
    to random weights. Where a folder has both full and fp16 files, `dtype` fp16 takes the latter.

    Raises:
        ModelError: none found, only pickles found, a damaged shard index, or no network; the
            message names the remedies.
    """
    half = dtype is not None and str(dtype) == "torch.float16"
    base = _base(source)
    architecture = architecture_hash(source.config)
    if choice.kind == "random":
        return Weights("random", "random", seed=choice.seed, architecture=architecture)
    if choice.kind == "path" and choice.path is not None:
        path = choice.path
        # A pipeline's folder is as good as its component's.
        if (path / source.subfolder).is_dir():
            path = path / source.subfolder
        return Weights(
            "files", "path", files=pick_files(path, half, base), architecture=architecture
        )
    if source.file is not None:
        return Weights("files", "file", files=(source.file.path,), architecture=architecture)
    if source.folder is not None:
        files = pick_files(source.folder, half, base)
        return Weights("files", "folder", files=files, architecture=architecture)
    origin, folder = _from_hub(source, half)
    return Weights("files", origin, files=pick_files(folder, half, base), architecture=architecture)


def weights_hash(weights: Weights) -> str:
    """Identity of the weights: ``sha256:…`` of files, ``random:SEED:scheme:architecture`` else.

    Several shards are hashed one by one, and then the list of their hashes, so that the names of
    the files do not matter but their order does. Files that did not change (by size and time) are
    read once per process.

    Raises:
        ModelError: a file cannot be read.
    """
    if weights.kind == "random":
        return f"random:{weights.seed}:{RANDOM_SCHEME}:{weights.architecture}"
    try:
        digests = [_digest(f, f.stat().st_size, f.stat().st_mtime_ns) for f in weights.files]
    except OSError as error:
        raise ModelError(f"{error.filename} cannot be read: {error.strerror}.") from error
    except ForeignError as error:
        raise ModelError(f"{error}.", remedy="Give a .safetensors file.") from error
    if len(digests) == 1:
        return f"sha256:{digests[0]}"
    return f"sha256:{hashlib.sha256(chr(10).join(digests).encode()).hexdigest()}"


@functools.lru_cache(maxsize=256)
def _digest(path: Path, size: int, modified: int) -> str:
    del size, modified  # part of the key only
    with open_regular(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _base(source: Source) -> str:
    return TEXT_BASE if source.class_name in TEXT_CLASSES else DIFFUSERS_BASE


def _from_hub(source: Source, half: bool) -> tuple[str, Path]:
    """(origin, folder) of the component's weights in the hub cache, downloaded if need be."""
    for hub_id in source.hub_ids:
        folder = hub.cached_folder(hub_id, source.subfolder)
        # A snapshot may hold the configuration alone, from an earlier look at the architecture.
        if folder is not None and any(folder.glob("*.safetensors")):
            return "hub cache", folder
    hub_id = source.hub_ids[0]
    prefix = f"{source.subfolder}/"
    names = [n.removeprefix(prefix) for n in hub.list_files(hub_id) if n.startswith(prefix)]
    wanted = select_names(names, half, _base(source))
    if not wanted:
        raise ModelError(
            f"The hub repository {hub_id} has no safetensors in {prefix}",
            remedy="Convert it: DiffusionPipeline.from_pretrained(…).save_pretrained(DIR), then "
            "--model DIR.",
        )
    root = hub.download(hub_id, [prefix + name for name in (*wanted, "config.json")])
    return "hub", root / source.subfolder
