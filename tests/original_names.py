"""Models in diffusers' format written as the original trainers wrote them: one file, other names.

Written from the original models' code, not from the converters that read such files.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch

Tensors = dict[str, torch.Tensor]

_OUTER = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "time_emb_proj": "emb_layers.1",
    "conv_shortcut": "skip_connection",
}
_BLOCK = re.compile(
    r"(down|up)_blocks\.(\d+)\.(resnets|attentions|downsamplers|upsamplers)\.(\d+)\.(.+)"
)


def unet(
    tensors: Mapping[str, torch.Tensor], prefix: str = "model.diffusion_model.", layers: int = 2
) -> Tensors:
    """Of a UNet with so many layers a block."""
    with_attention = {n.split(".attentions.")[0] for n in tensors if ".attentions." in n}
    return {prefix + _unet_name(n, with_attention, layers + 1): t for n, t in tensors.items()}


def _unet_name(name: str, with_attention: set[str], each: int) -> str:
    layer, _, kind = name.rpartition(".")
    if layer in _OUTER:
        return f"{_OUTER[layer]}.{kind}"
    if name.startswith("mid_block."):
        _, part, number, rest = name.split(".", 3)
        place = 1 if part == "attentions" else 2 * int(number)
        return f"middle_block.{place}.{_inner(part, rest)}"
    match = _BLOCK.fullmatch(name)
    assert match is not None, name
    way, block, part, number, rest = match[1], int(match[2]), match[3], int(match[4]), match[5]
    if way == "down":
        if part == "downsamplers":
            return f"input_blocks.{each * (block + 1)}.0.op.{kind}"
        place = f"input_blocks.{each * block + number + 1}"
    else:
        place = f"output_blocks.{each * block + number}"
        if part == "upsamplers":
            behind = 2 if f"up_blocks.{block}" in with_attention else 1
            return f"output_blocks.{each * (block + 1) - 1}.{behind}.conv.{kind}"
    return f"{place}.{1 if part == 'attentions' else 0}.{_inner(part, rest)}"


def _inner(part: str, rest: str) -> str:
    if part == "attentions":
        return rest
    layer, _, kind = rest.rpartition(".")
    return f"{_RESNET[layer]}.{kind}"


def vae(tensors: Mapping[str, torch.Tensor], prefix: str = "first_stage_model.") -> Tensors:
    """Of an AutoencoderKL; its attention was of 1×1 convolutions."""
    levels = 1 + max(int(n.split(".")[2]) for n in tensors if n.startswith("decoder.up_blocks."))
    made: Tensors = {}
    for name, tensor in tensors.items():
        new = name.replace("conv_norm_out", "norm_out").replace("conv_shortcut", "nin_shortcut")
        new = re.sub(r"down_blocks\.(\d+)\.resnets", r"down.\1.block", new)
        new = re.sub(r"down_blocks\.(\d+)\.downsamplers\.0", r"down.\1.downsample", new)
        new = re.sub(
            r"up_blocks\.(\d+)\.(resnets|upsamplers\.0)",
            lambda m: f"up.{levels - 1 - int(m[1])}.{'block' if m[2] == 'resnets' else 'upsample'}",
            new,
        )
        new = re.sub(r"mid_block\.resnets\.(\d)", lambda m: f"mid.block_{int(m[1]) + 1}", new)
        if ".mid_block.attentions.0." in new:
            layer = new.split(".attentions.0.")[1].rpartition(".")[0]
            short = {"group_norm": "norm", "to_out.0": "proj_out"}.get(layer, layer[-1])
            new = new.replace(f"mid_block.attentions.0.{layer}", f"mid.attn_1.{short}")
            if layer != "group_norm" and name.endswith("weight"):
                tensor = tensor[:, :, None, None]  # noqa: PLW2901
        made[prefix + new] = tensor
    return made


def clip(
    tensors: Mapping[str, torch.Tensor], prefix: str = "cond_stage_model.transformer."
) -> Tensors:
    """As transformers of 2022 had it, positions and all."""
    made = {f"{prefix}text_model.{n.removeprefix('text_model.')}": t for n, t in tensors.items()}
    made[f"{prefix}text_model.embeddings.position_ids"] = torch.arange(77)[None]
    return made


_OPEN_CLIP = {
    "embeddings.token_embedding.weight": "token_embedding.weight",
    "embeddings.position_embedding.weight": "positional_embedding",
    "final_layer_norm.weight": "ln_final.weight",
    "final_layer_norm.bias": "ln_final.bias",
}
_OPEN_CLIP_LAYER = {
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
    "self_attn.out_proj": "attn.out_proj",
}


def open_clip(tensors: Mapping[str, torch.Tensor], prefix: str) -> Tensors:
    """As open_clip has it: query, key and value in one, the projection the other way round."""
    plain = {n.removeprefix("text_model."): t for n, t in tensors.items()}
    made: Tensors = {}
    for name, tensor in plain.items():
        if name in _OPEN_CLIP:
            made[prefix + _OPEN_CLIP[name]] = tensor
        elif name == "text_projection.weight":
            made[f"{prefix}text_projection"] = tensor.T.contiguous()
        else:
            _, _, number, rest = name.split(".", 3)
            block = f"{prefix}transformer.resblocks.{number}."
            layer, _, kind = rest.rpartition(".")
            if layer in _OPEN_CLIP_LAYER:
                made[f"{block}{_OPEN_CLIP_LAYER[layer]}.{kind}"] = tensor
            elif layer == "self_attn.q_proj":
                root = name.replace("q_proj", "{}_proj")
                joined = [plain[root.format(x)] for x in "qkv"]
                made[f"{block}attn.in_proj_{kind}"] = torch.cat(joined)
    made[f"{prefix}logit_scale"] = torch.tensor(4.6)
    return made
