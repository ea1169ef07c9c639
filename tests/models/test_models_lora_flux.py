"""LoRA files in FLUX's original layout: names as diffusers' converter has them, rows where due."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.loaders import lora_conversion_utils
from diffusers.models.transformers.transformer_flux import FluxTransformer2DModel
from safetensors.torch import save_file

from todo_compile._torch import fake_mode
from todo_compile.errors import ModelError
from todo_compile.models.lora import fuser, parse_lora
from todo_compile.models.lora_names import Layers

D, MLP = 3072, 12288
ROWS = {
    **{f"double_blocks_0_{s}_{name}": rows for s in ("img", "txt") for name, rows in {
        "attn_qkv": 3 * D, "attn_proj": D, "mlp_0": MLP, "mlp_2": D, "mod_lin": 6 * D}.items()},
    "single_blocks_0_linear1": 3 * D + MLP, "single_blocks_0_linear2": D,
    "single_blocks_0_modulation_lin": 3 * D, "img_in": D, "txt_in": D,
    **{f"{name}_{way}_layer": D for name in ("time_in", "vector_in", "guidance_in")
       for way in ("in", "out")},
}  # fmt: skip


def flux(**more: Any) -> Any:
    torch.manual_seed(0)
    return FluxTransformer2DModel(
        num_layers=1, num_single_layers=1, guidance_embeds=True, **more
    )  # fmt: skip


def test_names_and_rows_are_those_of_diffusers() -> None:
    """At FLUX's real sizes, by marks: each row of a change has its own number."""
    with fake_mode():
        module = flux()
        sizes = {n: m.weight.shape[0] for n, m in module.named_modules() if hasattr(m, "weight")
                 and m.weight is not None}  # fmt: skip
    tensors = {}
    for name, rows in ROWS.items():
        tensors[f"lora_unet_{name}.lora_down.weight"] = torch.ones(1, 1)
        tensors[f"lora_unet_{name}.lora_up.weight"] = torch.arange(rows)[:, None].float()
    convert: Any = lora_conversion_utils
    theirs = convert._convert_kohya_flux_lora_to_diffusers(dict(tensors))
    layers, found = Layers(module), {}
    for name, rows in ROWS.items():
        start = 0
        for path in layers.find(name):
            found[path] = torch.arange(start, start := start + sizes[path]).float()
        assert start == rows
        assert layers.find(f"{name.replace('_blocks_0_', '_blocks.0.')}") == layers.find(name)
    wanted = {
        name.removeprefix("transformer.").removesuffix(".lora_B.weight"): up.flatten()
        for name, up in theirs.items()
        if name.endswith(".lora_B.weight")
    }
    assert found.keys() == wanted.keys()
    for name, rows in wanted.items():
        assert torch.equal(found[name], rows), name
    assert layers.find("final_layer_adaLN_modulation_1") == ()
    assert layers.find("double_blocks_7_img_attn_qkv") == ()


@pytest.fixture
def tiny() -> Any:
    return flux(
        attention_head_dim=8, num_attention_heads=2, in_channels=4, joint_attention_dim=12,
        pooled_projection_dim=12, axes_dims_rope=(2, 2, 4),
    )  # fmt: skip


def fuse(module: Any, tensors: dict[str, torch.Tensor], folder: Path) -> None:
    save_file(tensors, folder / "x.safetensors")
    fuser(module, [parse_lora(f"{folder / 'x.safetensors'}:0.5")], "transformer")()


@pytest.mark.parametrize("kind", ["lora", "loha", "diff"])
def test_each_layer_gets_its_rows(tiny: Any, tmp_path: Path, kind: str) -> None:
    name = "single_blocks_0_linear1"
    block = tiny.single_transformer_blocks[0]
    parts = [block.attn.to_q, block.attn.to_k, block.attn.to_v, block.proj_mlp]
    before = [part.weight.clone() for part in parts]
    out, width = sum(part.weight.shape[0] for part in parts), 16
    a, b, c, d = (torch.randn(out, 2), torch.randn(2, width), torch.randn(out, 2),
                  torch.randn(2, width))  # fmt: skip
    made: dict[str, tuple[dict[str, torch.Tensor], torch.Tensor]] = {
        "lora": ({"lora_up.weight": a, "lora_down.weight": b}, 3 / 2 * a @ b),
        "loha": ({"hada_w1_a": a, "hada_w1_b": b, "hada_w2_a": c, "hada_w2_b": d},
                 3 / 2 * (a @ b) * (c @ d)),
        "diff": ({"diff": a @ b}, a @ b),
    }  # fmt: skip
    tensors, change = made[kind]
    alpha = {} if kind == "diff" else {"alpha": torch.tensor(3.0)}
    fuse(tiny, {f"lora_unet_{name}.{n}": t for n, t in {**tensors, **alpha}.items()}, tmp_path)
    start = 0
    for part, old in zip(parts, before, strict=True):
        rows = change[start : (start := start + len(old))]
        torch.testing.assert_close(part.weight, old + 0.5 * rows)


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ({"dora_scale": (48, 1)}, "magnitudes .DoRA. of several layers in one"),
        ({"lora_up.weight": (47, 2)}, r"does not fit a weight of \(48, 16\)"),
    ],
)
def test_refused(tiny: Any, tmp_path: Path, more: dict[str, Any], says: str) -> None:
    before = {name: tensor.clone() for name, tensor in tiny.state_dict().items()}
    shapes = {"lora_up.weight": (48, 2), "lora_down.weight": (2, 16), **more}
    root = "diffusion_model.double_blocks.0.img_attn.qkv"
    with pytest.raises(ModelError, match=says):
        fuse(tiny, {f"{root}.{n}": torch.ones(s) for n, s in shapes.items()}, tmp_path)
    assert all(torch.equal(tiny.state_dict()[name], old) for name, old in before.items())
