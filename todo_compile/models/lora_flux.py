"""FLUX's original layout in LoRA files (kohya's and others): names, and layers that are one there.

Query, key and value are one layer in it, in single blocks with the first layer of the MLP besides:
the rows of such a change belong to several layers of diffusers, one after the other.
"""

from __future__ import annotations

import re

_EMBEDDERS = {
    "img_in": "x_embedder",
    "txt_in": "context_embedder",
    "time_in": "time_text_embed.timestep_embedder",
    "vector_in": "time_text_embed.text_embedder",
    "guidance_in": "time_text_embed.guidance_embedder",
}
_DOUBLE = {
    "img_attn_qkv": ("attn.to_q", "attn.to_k", "attn.to_v"),
    "img_attn_proj": ("attn.to_out.0",),
    "img_mlp_0": ("ff.net.0.proj",),
    "img_mlp_2": ("ff.net.2",),
    "img_mod_lin": ("norm1.linear",),
    "txt_attn_qkv": ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
    "txt_attn_proj": ("attn.to_add_out",),
    "txt_mlp_0": ("ff_context.net.0.proj",),
    "txt_mlp_2": ("ff_context.net.2",),
    "txt_mod_lin": ("norm1_context.linear",),
}
_SINGLE = {
    "linear1": ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp"),
    "linear2": ("proj_out",),
    "modulation_lin": ("norm.linear",),
}
_BLOCKS = {
    "double": ("transformer_blocks", _DOUBLE),
    "single": ("single_transformer_blocks", _SINGLE),
}
_BLOCK = re.compile(r"(double|single)_blocks_(\d{1,4})_(\w+)")


def from_flux(name: str) -> tuple[str, ...]:
    """Paths in diffusers' FLUX for a layer of the original layout, by rows; empty if it is none.

    Args:
        name: with ``_`` for ``.``, as kohya writes it, or with dots. The last layer is not among
            them: diffusers has its halves the other way round.
    """
    flat = name.replace(".", "_")
    if found := _BLOCK.fullmatch(flat):
        blocks, layers = _BLOCKS[found[1]]
        return tuple(f"{blocks}.{found[2]}.{layer}" for layer in layers.get(found[3], ()))
    for ending, layer in (("_in_layer", ".linear_1"), ("_out_layer", ".linear_2"), ("", "")):
        root = flat.removesuffix(ending)
        if root in _EMBEDDERS and (root in ("img_in", "txt_in")) == (ending == ""):
            return (_EMBEDDERS[root] + layer,)
    return ()
