"""Which files of a folder are the weights: diffusers' names, variants and shard indices."""

from __future__ import annotations

import re
from collections.abc import Collection
from pathlib import Path, PurePosixPath
from typing import cast

from todo_compile.errors import ModelError
from todo_compile.foreign import ForeignError, open_regular, read_object

DIFFUSERS_BASE = "diffusion_pytorch_model"
TEXT_BASE = "model"
"""transformers' name for weights; everything else in a pipeline has diffusers'."""
_MAX_INDEX = 16 * 2**20
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")


def pick_files(path: Path, half: bool, base: str = DIFFUSERS_BASE) -> tuple[Path, ...]:
    """The safetensors files that make up one model.

    Args:
        path: a safetensors file, or a folder of diffusers' layout.
        half: prefer the fp16 variant where both are there.
        base: name of the weights' files without suffix and variant.

    Returns:
        Absolute paths in order of name.

    Raises:
        ModelError: absent, a pickle, no safetensors, shards missing, or an index that is damaged
            or leads out of the folder.
    """
    if path.is_file():
        refuse_pickle(path)
        refuse_gguf(path)
        if path.suffix != ".safetensors":
            raise ModelError(
                f"{path} is not a safetensors file.",
                remedy="Give a .safetensors file or a folder with them.",
            )
        return (path.absolute(),)
    if not path.is_dir():
        raise ModelError(
            f"There are no weights at {path}.",
            remedy="Give a .safetensors file, a folder with them, or --weights random[:SEED].",
        )
    names = {p.name for p in path.iterdir()}
    for index, single in _candidates(half, base):
        if index in names:
            return _shards(path / index)
        if single in names:
            return (path.absolute() / single,)
    others = sorted(n for n in names if n.endswith(".safetensors"))
    if len(others) == 1:  # a lone file under another name can only be meant
        return (path.absolute() / others[0],)
    for name in sorted(names):
        refuse_pickle(path / name)
    found = f" ({', '.join(others)} have other names)" if others else ""
    raise ModelError(
        f"{path} has no {base}.safetensors{found}.",
        remedy="Give the file itself with --weights FILE, or build with --weights random[:SEED].",
    )


def select_names(names: Collection[str], half: bool, base: str = DIFFUSERS_BASE) -> list[str]:
    """Of a repository's file names, those to download: one variant, with its index and shards."""
    for index, single in _candidates(half, base):
        if index in names:
            variant = ".fp16" if ".fp16" in index else ""
            # Both orders are in use: model.fp16-00001-of-00002 and model-00001-of-00002.fp16.
            shard = re.compile(
                rf"{base}(?:{re.escape(variant)}-\d+-of-\d+|-\d+-of-\d+{re.escape(variant)})"
                r"\.safetensors"
            )
            return [index, *sorted(n for n in names if shard.fullmatch(n))]
        if single in names:
            return [single]
    return []


def _candidates(half: bool, base: str) -> list[tuple[str, str]]:
    """(index, single file) by preference; diffusers puts the variant before ``.json``."""
    plain = (f"{base}.safetensors.index.json", f"{base}.safetensors")
    fp16 = (f"{base}.safetensors.index.fp16.json", f"{base}.fp16.safetensors")
    return [fp16, plain] if half else [plain, fp16]


def _shards(index: Path) -> tuple[Path, ...]:
    folder = index.parent.absolute()
    try:
        table = read_object(index, _MAX_INDEX, within=folder).get("weight_map")
    except (OSError, ForeignError) as error:
        raise ModelError(
            f"{index} is not a shard index: {error}.", remedy="Download or save the model again."
        ) from error
    if not isinstance(table, dict):
        raise ModelError(
            f"{index} is not a shard index: it has no weight_map.",
            remedy="Download or save the model again.",
        )
    shards = sorted({str(name) for name in cast("dict[str, object]", table).values()})
    for name in shards:
        # Plain names only: an index must not make us read files elsewhere.
        if PurePosixPath(name).name != name or "\\" in name or not name.endswith(".safetensors"):
            raise ModelError(
                f"{index} points to {name!r}, which is not a safetensors file beside it.",
                remedy="The index may have been tampered with; get the model from its origin.",
            )
    missing = [name for name in shards if not (folder / name).is_file()]
    if missing or not shards:
        raise ModelError(
            f"{index} names {len(shards)} shards, of which {len(missing)} are missing: "
            f"{', '.join(missing[:3])}.",
            remedy="Download or copy the folder again, whole.",
        )
    return tuple(folder / name for name in shards)


def refuse_pickle(path: Path) -> None:
    """Refuse a file by its suffix; nothing is ever unpickled.

    Raises:
        ModelError: it is a pickle's.
    """
    if path.suffix.lower() in _PICKLES:
        raise ModelError(
            f"{path} is a pickle, which can run code when it is read; it is refused.",
            remedy="Convert it once, in a place where you trust it: safetensors.torch.save_file("
            'torch.load("IN", weights_only=True), "OUT.safetensors").',
        )


def refuse_gguf(path: Path) -> None:
    """Refuse a file of weights that are quantised in blocks.

    Raises:
        ModelError: it is one, by its name or its first bytes.
    """
    with open_regular(path) as file:
        magic = file.read(4)
    if magic == b"GGUF" or path.suffix.lower() == ".gguf":
        raise ModelError(
            f"{path} is a GGUF file, whose weights are quantised in blocks; it cannot be compiled.",
            remedy="Give the checkpoint that it was made from: a .safetensors file in fp16, bf16, "
            "fp32 or fp8.",
        )
