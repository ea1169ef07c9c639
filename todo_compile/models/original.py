"""Checkpoints in the original layout (one file for a whole pipeline) under diffusers' names.

diffusers' own converters are run on stand-ins for the tensors, which note where in the file the
bytes of each slice lie. So nothing is read here, and what comes out is read like any other
checkpoint: straight into the parameters, one after the other.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

from todo_compile.errors import ModelError
from todo_compile.models.stfile import Entry

UNET_PREFIX = "model.diffusion_model."
VAE_PREFIXES = ("first_stage_model.", "vae.")
CLIP_PREFIXES = ("cond_stage_model.transformer.", "conditioner.embedders.0.transformer.")
OPEN_CLIP_PREFIXES = (
    "cond_stage_model.model.",
    "conditioner.embedders.1.model.",
    "conditioner.embedders.0.model.",
)
_UNET_MARK = "input_blocks.0.0.weight"
_VAE_MARK = "decoder.mid.block_1.conv1.weight"


class Piece:
    """A tensor of a file, or a part of one, with as much of a tensor's face as converters use."""

    def __init__(self, entry: Entry) -> None:
        self.entry = entry

    @property
    def shape(self) -> tuple[int, ...]:
        return self.entry.shape

    @property
    def ndim(self) -> int:
        return len(self.entry.shape)

    @property
    def T(self) -> Piece:
        return Piece(
            replace(self.entry, shape=self.shape[::-1], transposed=not self.entry.transposed)
        )

    def contiguous(self) -> Piece:
        return self

    def clone(self) -> Piece:
        return self

    def detach(self) -> Piece:
        return self

    def __getitem__(self, index: Any) -> Piece:
        """Rows (``[a:b]``, ``[a:b, :]``), or axes of one element taken off the end."""
        first, *rest = cast("tuple[Any, ...]", index) if isinstance(index, tuple) else (index,)
        sides = self.shape
        if self.entry.transposed or not isinstance(first, slice):
            raise NotImplementedError(f"{index} of a stored tensor")
        begin, end, step = cast("slice", first).indices(sides[0])
        kept = [end - begin]
        for side, one in zip(sides[1:], rest, strict=False):
            if one == slice(None):
                kept.append(side)
            elif one != 0 or side != 1:
                raise NotImplementedError(f"{index} of a stored tensor of shape {sides}")
        kept += sides[1 + len(rest) :]
        row = self.entry.nbytes // max(sides[0], 1)
        if step != 1 or math.prod(kept) * max(sides[0], 1) != math.prod(sides) * (end - begin):
            raise NotImplementedError(f"{index} of a stored tensor of shape {sides}")
        return Piece(
            replace(
                self.entry,
                shape=tuple(kept),
                offset=self.entry.offset + begin * row,
                nbytes=(end - begin) * row,
            )
        )


def is_original(entries: Mapping[str, Entry]) -> bool:
    """Whether a file's names are those of the original layout, of any part of a pipeline."""
    return any(
        mark in entries
        for mark in (
            _UNET_MARK,
            UNET_PREFIX + _UNET_MARK,
            _VAE_MARK,
            *(prefix + _VAE_MARK for prefix in VAE_PREFIXES),
        )
    )


def convert(
    entries: Mapping[str, Entry], component: str, config: Mapping[str, Any]
) -> dict[str, Entry]:
    """The tensors of one component under diffusers' (or transformers') names.

    Args:
        entries: of a file in the original layout.
        component: ``unet``, ``vae_decoder``, ``text_encoder`` or ``text_encoder_2``.
        config: of the component.

    Raises:
        ModelError: the file does not have the component, or lacks so much of it that diffusers
            cannot convert it.
    """
    from diffusers.loaders import single_file_utils

    utils: Any = single_file_utils
    pieces = {name: Piece(entry) for name, entry in part_of(entries, component).items()}
    settings = {**config}
    try:
        if component == "vae_decoder":
            made = utils.convert_ldm_vae_checkpoint(pieces, settings)
        elif component == "unet":
            settings.setdefault("layers_per_block", 2)
            made = utils.convert_ldm_unet_checkpoint(pieces, settings)
            # What diffusers passes over without a word would be left out of the model.
            used = {id(piece) for piece in made.values()}
            made |= {name: piece for name, piece in pieces.items() if id(piece) not in used}
        else:
            made = _text(utils, pieces, settings)
    except (KeyError, NotImplementedError, AttributeError, IndexError) as error:
        file = next(iter(entries.values())).file
        raise ModelError(
            f"The {component} in {file} is not complete: diffusers cannot convert it "
            f"({type(error).__name__}: {error}).",
            remedy="Download the file again, or give a model in diffusers' format.",
        ) from error
    return {name: piece.entry for name, piece in made.items()}


def part_of(entries: Mapping[str, Entry], component: str) -> dict[str, Entry]:
    """The tensors of one component, under the names that diffusers' converter looks for.

    Raises:
        ModelError: there are none.
    """
    found = _part_of(entries, component)
    if not found:
        file = next((str(entry.file) for entry in entries.values()), "The file")
        raise ModelError(
            f"{file} has no {component}.",
            remedy="Give a checkpoint of the whole pipeline, or choose another --component.",
        )
    return found


def has_part(entries: Mapping[str, Entry], component: str) -> bool:
    """Whether a file in the original layout has tensors of a component."""
    return bool(_part_of(entries, component))


def _part_of(entries: Mapping[str, Entry], component: str) -> dict[str, Entry]:
    if component == "unet":
        found = _under(entries, UNET_PREFIX)
        if not found and _UNET_MARK in entries:  # the denoising model alone
            found = {UNET_PREFIX + name: entry for name, entry in entries.items()}
        return found
    if component == "vae_decoder":
        for prefix in VAE_PREFIXES:
            if found := _under(entries, prefix):
                return found
        return dict(entries) if _VAE_MARK in entries else {}
    prefixes = (*CLIP_PREFIXES, *OPEN_CLIP_PREFIXES)
    second = OPEN_CLIP_PREFIXES[1:]  # SDXL's and its refiner's
    for prefix in second if component == "text_encoder_2" else prefixes:
        if prefix in second and component == "text_encoder":
            continue
        if found := _under(entries, prefix):
            return found
    return {}


def _under(entries: Mapping[str, Entry], prefix: str) -> dict[str, Entry]:
    return {name: entry for name, entry in entries.items() if name.startswith(prefix)}


def _text(utils: Any, pieces: dict[str, Piece], config: Mapping[str, Any]) -> dict[str, Piece]:
    prefix = next(
        p for p in (*CLIP_PREFIXES, *OPEN_CLIP_PREFIXES) if next(iter(pieces)).startswith(p)
    )
    if prefix in CLIP_PREFIXES:
        return utils.convert_ldm_clip_checkpoint(pieces)
    model = SimpleNamespace(config=SimpleNamespace(hidden_size=config["hidden_size"]))
    made = utils.convert_open_clip_checkpoint(model, pieces, prefix=prefix)
    # What the encoder of this class has no place for: open_clip's projection and temperature.
    return {n: p for n, p in made.items() if n != "logit_scale"}
