"""LoRA files in the namings that are about: each fused as diffusers' own loader fuses it."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.loaders.lora_pipeline import (
    StableDiffusionLoraLoaderMixin,
    StableDiffusionXLLoraLoaderMixin,
)
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from safetensors.torch import save_file
from tiny_models import make_unet
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel

from todo_compile.errors import ModelError
from todo_compile.models.lora import fuser, parse_lora

Tensors = dict[str, torch.Tensor]
BLOCK = "down_blocks.1.attentions.0.transformer_blocks.0"
# kohya's names for SDXL, and the layer of diffusers that each means.
ORIGINAL = {
    "input_blocks_1_0_in_layers_2": "down_blocks.0.resnets.0.conv1",
    "input_blocks_2_0_emb_layers_1": "down_blocks.0.resnets.1.time_emb_proj",
    "input_blocks_3_0_op": "down_blocks.0.downsamplers.0.conv",
    "input_blocks_4_0_skip_connection": "down_blocks.1.resnets.0.conv_shortcut",
    "input_blocks_4_1_proj_in": "down_blocks.1.attentions.0.proj_in",
    "input_blocks_4_1_transformer_blocks_0_attn1_to_q": f"{BLOCK}.attn1.to_q",
    "input_blocks_4_1_transformer_blocks_0_attn2_to_k": f"{BLOCK}.attn2.to_k",
    "input_blocks_4_1_transformer_blocks_0_attn2_to_out_0": f"{BLOCK}.attn2.to_out.0",
    "input_blocks_4_1_transformer_blocks_0_ff_net_0_proj": f"{BLOCK}.ff.net.0.proj",
    "input_blocks_8_1_transformer_blocks_0_ff_net_2": (
        "down_blocks.2.attentions.1.transformer_blocks.0.ff.net.2"
    ),
    "middle_block_0_out_layers_3": "mid_block.resnets.0.conv2",
    "middle_block_1_transformer_blocks_0_attn1_to_v": (
        "mid_block.attentions.0.transformer_blocks.0.attn1.to_v"
    ),
    "middle_block_2_in_layers_2": "mid_block.resnets.1.conv1",
    "output_blocks_0_1_proj_out": "up_blocks.0.attentions.0.proj_out",
    "output_blocks_2_2_conv": "up_blocks.0.upsamplers.0.conv",
    "output_blocks_5_1_transformer_blocks_0_attn1_to_k": (
        "up_blocks.1.attentions.2.transformer_blocks.0.attn1.to_k"
    ),
    "time_embed_0": "time_embedding.linear_1",
    "label_emb_0_2": "add_embedding.linear_2",
    "input_blocks_0_0": "conv_in",
    "out_2": "conv_out",
}


@pytest.fixture(scope="module")
def sdxl() -> UNet2DConditionModel:
    """Three levels of two layers with SDXL's blocks, a few channels wide."""
    return make_unet(
        block_out_channels=(8, 16, 24),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        layers_per_block=2,
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=6 * 8 + 20,
    )


def pair(layer: nn.Module, rank: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
    """(down, up) of random numbers for a layer."""
    weight: Any = layer.weight
    down = torch.randn(rank, *weight.shape[1:])
    return down, torch.randn(weight.shape[0], rank, *[1] * (weight.ndim - 2))


def kohya(module: nn.Module, names: dict[str, str], prefix: str, dtype: torch.dtype) -> Tensors:
    torch.manual_seed(3)
    tensors: Tensors = {}
    for name, layer in names.items():
        down, up = pair(module.get_submodule(layer))
        tensors[f"{prefix}{name}.lora_down.weight"] = down
        tensors[f"{prefix}{name}.lora_up.weight"] = up
        tensors[f"{prefix}{name}.alpha"] = torch.tensor(3).to(dtype)
    return tensors


def fused_by_diffusers(unet: UNet2DConditionModel, tensors: Tensors, mixin: Any) -> Tensors:
    module = copy.deepcopy(unet)
    state, alphas = mixin.lora_state_dict(dict(tensors), unet_config=module.config)
    mixin.load_lora_into_unet(state, network_alphas=alphas, unet=module)
    module.fuse_lora()
    return {
        name.replace(".base_layer", ""): tensor
        for name, tensor in module.state_dict().items()
        if ".lora_" not in name
    }


def fused_by_us(module: nn.Module, tensors: Tensors, component: str, folder: Path) -> Tensors:
    module = copy.deepcopy(module)
    save_file(tensors, folder / "x.safetensors")
    fuser(module, [parse_lora(str(folder / "x.safetensors"))], component)()
    return dict(module.state_dict())


def assert_changed_alike(module: nn.Module, ours: Tensors, theirs: Tensors, layers: set[str]):
    before = module.state_dict()
    changed = {n.removesuffix(".weight") for n in ours if not ours[n].equal(before[n])}
    assert changed == layers
    for name, tensor in theirs.items():
        torch.testing.assert_close(ours[name], tensor, rtol=1e-4, atol=1e-5, msg=name)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int64])
def test_kohya_in_the_original_layout(
    sdxl: UNet2DConditionModel, tmp_path: Path, dtype: torch.dtype
) -> None:
    tensors = kohya(sdxl, ORIGINAL, "lora_unet_", dtype)
    ours = fused_by_us(sdxl, tensors, "unet", tmp_path)
    theirs = fused_by_diffusers(sdxl, tensors, StableDiffusionXLLoraLoaderMixin)
    assert_changed_alike(sdxl, ours, theirs, set(ORIGINAL.values()))


def test_the_original_layout_in_dots(sdxl: UNet2DConditionModel, tmp_path: Path) -> None:
    names = {"input_blocks_4_1_transformer_blocks_0_attn1_to_q": f"{BLOCK}.attn1.to_q"}
    tensors = kohya(sdxl, names, "lora_unet_", torch.float32)
    dotted = {
        f"diffusion_model.input_blocks.4.1.transformer_blocks.0.attn1.to_q.{n.split('.', 1)[1]}": t
        for n, t in tensors.items()
    }
    expected = fused_by_us(sdxl, tensors, "unet", tmp_path)
    assert_changed_alike(
        sdxl, fused_by_us(sdxl, dotted, "unet", tmp_path), expected, set(names.values())
    )


ATTENTION = "down_blocks.0.attentions.0.transformer_blocks.0"


@pytest.mark.parametrize("prefix", ["unet.", ""])
@pytest.mark.parametrize(
    "spelling",
    [
        "{block}.attn1.processor.to_{x}_lora.{side}.weight",  # diffusers, early 2023
        "{block}.attn1.to_{x}.lora.{side}.weight",  # late 2023
        "{block}.attn1.to_{x0}.lora_{AB}.weight",  # peft's, since 2024
    ],
)
def test_diffusers_through_the_years(
    unet: UNet2DConditionModel, tmp_path: Path, prefix: str, spelling: str
) -> None:
    torch.manual_seed(4)
    tensors: Tensors = {}
    layers: set[str] = set()
    for x in ("q", "k", "v", "out"):
        x0 = "out.0" if x == "out" else x
        layer = f"{ATTENTION}.attn1.to_{x0}"
        layers.add(layer)
        for side, tensor in zip(("down", "up"), pair(unet.get_submodule(layer)), strict=True):
            new = "processor" not in spelling
            name = spelling.format(
                block=ATTENTION, x=x0 if new else x, x0=x0, side=side, AB="AB"[side == "up"]
            )
            tensors[prefix + name] = tensor
    ours = fused_by_us(unet, tensors, "unet", tmp_path)
    prefixed = {f"unet.{n.removeprefix('unet.')}": t for n, t in tensors.items()}
    theirs = fused_by_diffusers(unet, prefixed, StableDiffusionLoraLoaderMixin)
    assert_changed_alike(unet, ours, theirs, layers)


@pytest.fixture(scope="module")
def clip() -> CLIPTextModel:
    torch.manual_seed(5)
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2}
    return CLIPTextModel(CLIPTextConfig(vocab_size=50, num_attention_heads=2, **sizes)).eval()


TEXT = [
    "lora_te1_text_model_encoder_layers_0_self_attn_{q}.lora_{side}.weight",
    "text_encoder.text_model.encoder.layers.0.self_attn.{to}_lora.{side}.weight",
    "text_encoder.text_model.encoder.layers.0.self_attn.{q}.lora_linear_layer.{side}.weight",
    "text_encoder.text_model.encoder.layers.0.self_attn.{q}.lora_{AB}.weight",
    "text_model.encoder.layers.0.self_attn.{q}.lora_{AB}.weight",
]


@pytest.mark.parametrize("spelling", TEXT)
def test_text_encoders(clip: CLIPTextModel, tmp_path: Path, spelling: str) -> None:
    """The four projections of a layer and, where the naming has it, its MLP: by the formula."""
    torch.manual_seed(6)
    root = next(n for n, _ in clip.named_modules() if n.endswith("encoder.layers.0"))
    tensors: Tensors = {}
    expected: Tensors = {}
    for q, to in (("q", "to_q"), ("k", "to_k"), ("v", "to_v"), ("out", "to_out")):
        layer = f"{root}.self_attn.{q}_proj"
        down, up = pair(clip.get_submodule(layer))
        expected[f"{layer}.weight"] = clip.state_dict()[f"{layer}.weight"] + up @ down
        for side, tensor in (("down", down), ("up", up)):
            name = spelling.format(q=f"{q}_proj", to=to, side=side, AB="AB"[side == "up"])
            tensors[name] = tensor
    ours = fused_by_us(clip, tensors, "text_encoder", tmp_path)
    layers = {name.removesuffix(".weight") for name in expected}
    assert_changed_alike(clip, ours, expected, layers)


def test_old_names_of_the_mlp(clip: CLIPTextModel, tmp_path: Path) -> None:
    layer = next(n for n, _ in clip.named_modules() if n.endswith("encoder.layers.1.mlp.fc1"))
    down, up = pair(clip.get_submodule(layer))
    name = "text_encoder.text_model.encoder.layers.1.mlp.fc1.lora_linear_layer"
    tensors = {f"{name}.down.weight": down, f"{name}.up.weight": up}
    expected = {f"{layer}.weight": clip.state_dict()[f"{layer}.weight"] + up @ down}
    ours = fused_by_us(clip, tensors, "text_encoder", tmp_path)
    assert_changed_alike(clip, ours, expected, {layer})


def test_one_layer_under_two_names(sdxl: UNet2DConditionModel, tmp_path: Path) -> None:
    """diffusers drops one of them without a word."""
    original = "input_blocks_4_1_transformer_blocks_0_attn1_to_q"
    names = {original: f"{BLOCK}.attn1.to_q", f"{BLOCK}.attn1.to_q": f"{BLOCK}.attn1.to_q"}
    tensors = kohya(sdxl, names, "lora_unet_", torch.float32)
    with pytest.raises(ModelError, match=r"to_q twice, as down_blocks.* and as input_blocks_4_1_"):
        fused_by_us(sdxl, tensors, "unet", tmp_path)


@pytest.mark.parametrize(
    "name",
    ["input_blocks_4_7_proj_in", "input_blocks_x_1_proj_in", "middle_block_5_proj_in", "nonsense"],
)
def test_what_only_looks_like_the_original(
    sdxl: UNet2DConditionModel, tmp_path: Path, name: str
) -> None:
    tensors = {f"lora_unet_{name}.lora_{s}.weight": torch.ones(2, 2) for s in ("up", "down")}
    with pytest.raises(ModelError, match=f"1 of 1 layers that this unet lacks \\({name}\\)"):
        fused_by_us(sdxl, tensors, "unet", tmp_path)
