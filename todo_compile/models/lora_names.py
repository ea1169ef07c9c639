"""Names in LoRA files: which component, which layer, and which part of its change a tensor is.

diffusers and peft write ``unet.….to_q.lora_A.weight``, diffusers of 2023
``….to_q_lora.down.weight`` and ``….lora_linear_layer.up.weight``, with a component before it or
not. kohya's trainer writes ``lora_unet_….lora_down.weight`` with ``_`` for ``.``, after the layers
of diffusers or, for SDXL, those of the original layout (``input_blocks_4_1_…``); LyCORIS the same
with parts of its own. diffusers' converters know the old and the original names; here one is asked
for each layer alone, since they leave a layer out without a word where a file has both layouts.
FLUX's original names are in `lora_flux`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from torch import nn

from todo_compile.models.lora_flux import from_flux

DENOISER = "denoiser"
"""Stands for whatever denoises: files call it ``unet``, ``transformer``, or nothing at all."""
PEFT = "base_model.model."
"""Prefix of files by peft's own ``save_pretrained``, whose scale is in a file beside them."""

_PARTS = (
    (r"lora_A(?:\.default)?\.weight|lora_down\.weight|lora\.down\.weight", "down"),
    (r"lora_B(?:\.default)?\.weight|lora_up\.weight|lora\.up\.weight", "up"),
    (r"lora_mid\.weight", "mid"),
    (r"lora_magnitude_vector(?:\.default)?(?:\.weight)?", "magnitude"),
    (r"dora_scale", "dora"),
    (r"alpha", "alpha"),
)
_LYCORIS = r"hada_w[12]_[ab]|hada_t[12]|lokr_w[12](?:_[ab])?|lokr_t2|diff|diff_b"
_SPLIT = re.compile(
    rf"(?P<layer>.+)\.(?:{'|'.join(f'(?P<{name}>{p})' for p, name in _PARTS)}|(?P<own>{_LYCORIS}))"
)
_UNDERSCORED = {
    "lora_unet_": DENOISER,
    "lora_transformer_": DENOISER,
    "lycoris_": DENOISER,
    "lora_te_": "text_encoder",
    "lora_te1_": "text_encoder",
    "lora_te2_": "text_encoder_2",
    "lora_te3_": "text_encoder_3",
}
_DOTTED = {
    "unet.": DENOISER,
    "transformer.": DENOISER,
    "model.diffusion_model.": DENOISER,
    "diffusion_model.": DENOISER,
    "transformer_2.": "transformer_2",
    "text_encoder_3.": "text_encoder_3",
    "text_encoder_2.": "text_encoder_2",
    "text_encoder.": "text_encoder",
    "text_encoders.clip_l.transformer.": "text_encoder",
    "text_encoders.clip_g.transformer.": "text_encoder_2",
    PEFT: DENOISER,
}


def component_of(name: str) -> str:
    """`DENOISER` for what denoises, `name` for the others."""
    return DENOISER if name in ("unet", "transformer") else name


def split(name: str) -> tuple[str, str, str] | None:
    """(component, layer, part) of a tensor's name; None if it is no part of an adapter.

    The layer is spelled as in the file, but for names of 2023, which are diffusers' of today.
    """
    component, rest = _component(name)
    if "_lora." in rest or "lora_linear_layer" in rest or ".processor." in rest:
        rest = _modern(rest, text=component != DENOISER)
    match = _SPLIT.fullmatch(rest)
    if match is None:
        return None
    part = match["own"] or next(key for _, key in _PARTS if match[key] is not None)
    return component, match["layer"], part


def _component(name: str) -> tuple[str, str]:
    for prefix, component in {**_UNDERSCORED, **_DOTTED}.items():
        if name.startswith(prefix):
            rest = name.removeprefix(prefix)
            # peft's file of a text encoder alone starts so.
            text = prefix == PEFT and rest.startswith("text_model.")
            return "text_encoder" if text else component, rest
    return ("text_encoder" if name.startswith("text_model.") else DENOISER), name


def _modern(name: str, *, text: bool) -> str:
    """A name of 2023 as today's diffusers has it."""
    from diffusers.utils import state_dict_utils

    utils: Any = state_dict_utils
    names: dict[str, None] = {name: None}
    if not text:
        names = utils.convert_unet_state_dict_to_peft(names)
    if text or "lora_linear_layer" in name:
        kinds = utils.StateDictType
        kind = kinds.DIFFUSERS if "lora_linear_layer" in name else kinds.DIFFUSERS_OLD
        names = utils.convert_state_dict_to_peft(names, original_type=kind)
    return next(iter(names))


class Layers:
    """The layers of a module that have a weight, findable by any of the names above."""

    def __init__(self, module: nn.Module) -> None:
        self._names = {n for n, m in module.named_modules() if _weighted(m)}
        self._flat = {n.replace(".", "_"): n for n in self._names}
        self._config: Any = getattr(module, "config", None)

    def find(self, name: str) -> tuple[str, ...]:
        """The path of a layer of the module; empty if it has none of that name.

        Several paths if the file has in one layer what the module has in several: the change's rows
        are theirs, one after the other.
        """
        for candidate in self._candidates(name):
            flat = candidate.replace(".", "_")
            if (found := self._flat.get(flat)) is not None:
                return (found,)
        paths = from_flux(name)
        return paths if self._names.issuperset(paths) else ()

    def _candidates(self, name: str) -> Iterable[str]:
        yield name
        # CLIP's layers lie under `text_model` or not, by version of transformers.
        plain = name.removeprefix("text_model.").removeprefix("text_model_")
        yield plain
        yield f"text_model.{plain}"
        if (original := self._from_original(name.replace(".", "_"))) is not None:
            yield original

    def _from_original(self, name: str) -> str | None:
        """A layer of the original layout under diffusers' name, as diffusers' converters say."""
        if getattr(self._config, "layers_per_block", None) is None:
            return None
        from diffusers.loaders import lora_conversion_utils

        convert: Any = lora_conversion_utils
        key = f"lora_unet_{name}.lora_down.weight"
        try:
            mapped = convert._maybe_map_sgm_blocks_to_diffusers({key: None}, self._config)
            found: str = convert._convert_unet_lora_key(next(iter(mapped)))
        except (ValueError, IndexError, KeyError):
            return None  # looks like the original layout, and is not
        modern = _modern(found, text=False)
        match = _SPLIT.fullmatch(modern)
        return match["layer"] if match is not None else None


def _weighted(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear | nn.Conv2d)


def literal_pattern(patterns: Mapping[str, Any], layer: str) -> Any:
    """The value that peft's patterns give a layer; None where none fits.

    peft takes regular expressions; those of a file from elsewhere could run for years. Names, with
    ``^`` before them or not, are what is found in files.

    Raises:
        ValueError: a pattern is more than a name.
    """
    for pattern, value in patterns.items():
        name = pattern.removeprefix("^").replace("\\.", ".")
        if not re.fullmatch(r"[\w.]+", name):
            raise ValueError(f"the pattern {pattern!r:.60} is not a layer's name")
        if layer == name or (not pattern.startswith("^") and layer.endswith(f".{name}")):
            return value
    return None
