"""LoRAs fused into weights: against peft's own, in every naming, and nothing left out silently."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline
from peft import LoraConfig
from peft.utils.save_and_load import get_peft_model_state_dict
from safetensors.torch import save_file
from torch import nn

from todo_compile import models
from todo_compile.errors import ConfigError, ModelError
from todo_compile.models.lora import fuser, parse_lora
from todo_compile.models.lora_names import Layers

TARGETS = ["to_q", "to_k", "to_v", "to_out.0", "proj_in", "conv1"]


@pytest.fixture
def adapted(unet: UNet2DConditionModel) -> UNet2DConditionModel:
    """A copy of the UNet with peft's adapters: rank 3, alpha 6, linear and convolutional."""
    module = copy.deepcopy(unet)
    torch.manual_seed(7)
    module.add_adapter(
        LoraConfig(r=3, lora_alpha=6, target_modules=TARGETS, init_lora_weights=False)
    )
    return module.eval()


def state(adapted: UNet2DConditionModel) -> dict[str, torch.Tensor]:
    return {n: t.contiguous() for n, t in get_peft_model_state_dict(adapted).items()}


def kohya(tensors: dict[str, torch.Tensor], alpha: float) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = {}
    for name, tensor in tensors.items():
        layer, _, side = name.removesuffix(".weight").rpartition(".")
        key = "lora_unet_" + layer.replace(".", "_")
        found[f"{key}.{'lora_down' if side == 'lora_A' else 'lora_up'}.weight"] = tensor
        found[f"{key}.alpha"] = torch.tensor(alpha)
    return found


def call(unet: nn.Module) -> torch.Tensor:
    torch.manual_seed(8)
    inputs = torch.randn(1, 4, 8, 8), torch.tensor([500.0]), torch.randn(1, 77, 24)
    with torch.no_grad():
        return unet(*inputs, return_dict=False)[0]


@pytest.mark.parametrize("layout", ["diffusers", "kohya"])
@pytest.mark.parametrize("scale", [1.0, 0.5])
def test_equals_peft(
    unet: UNet2DConditionModel,
    adapted: UNet2DConditionModel,
    tmp_path: Path,
    layout: str,
    scale: float,
) -> None:
    path = tmp_path / "x.safetensors"
    if layout == "kohya":
        save_file(kohya(state(adapted), 6.0), path)
    else:
        StableDiffusionPipeline.save_lora_weights(
            tmp_path,
            unet_lora_layers=state(adapted),
            weight_name=path.name,
            unet_lora_adapter_metadata={"r": 3, "lora_alpha": 6, "alpha_pattern": {}},
        )
    adapted.set_adapters("default", scale)
    expected, before = call(adapted), call(unet)
    lora = parse_lora(f"{path}:{scale}")
    assert fuser(unet, [lora], "unet")() == len(state(adapted)) // 2
    torch.testing.assert_close(call(unet), expected, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(before, expected, rtol=1e-2, atol=1e-3)


def test_without_alpha_it_is_the_rank(unet: UNet2DConditionModel, tmp_path: Path) -> None:
    layer = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
    weight = unet.get_submodule(layer).weight
    before, down, up = weight.clone(), torch.randn(2, 16), torch.randn(16, 2)
    tensors = {f"unet.{layer}.lora.down.weight": down, f"unet.{layer}.lora.up.weight": up}
    save_file(tensors, tmp_path / "x.safetensors")
    assert fuser(unet, [parse_lora(str(tmp_path / "x.safetensors"))], "unet")() == 1
    torch.testing.assert_close(weight, before + up @ down)


def test_several_add_up_and_load_fuses(
    pipeline: Path, unet: UNet2DConditionModel, adapted: UNet2DConditionModel, tmp_path: Path
) -> None:
    path = tmp_path / "x.safetensors"
    save_file(kohya(state(adapted), 3.0), path)
    source = models.resolve_component(str(pipeline))
    weights = models.find_weights(source, models.WeightsChoice.parse("auto"), dtype=torch.float32)
    loras = [parse_lora(f"{path}:0.25"), parse_lora(f"{path}:-0.75")]
    models.check_loras(source, loras)  # as every build does first, without weights: reads alpha
    loaded = models.load(source, weights, dtype=torch.float32, loras=loras)
    fuser(unet, [parse_lora(f"{path}:-0.5")], "unet")()
    torch.testing.assert_close(call(loaded.module), call(unet), rtol=1e-4, atol=1e-5)
    assert loras[0].describe() != loras[1].describe()
    assert loras[0].sha256 == loras[1].sha256


def edited(path: Path, change: Any, adapted: UNet2DConditionModel) -> str:
    tensors = kohya(state(adapted), 3.0)
    change(tensors)
    save_file(tensors, path)
    return str(path)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda t: t.update({"lora_unet_x.scalar": torch.ones(1)}), "not part of an adapter"),
        (lambda t: t.pop(next(n for n in t if "lora_up" in n)), "only part of"),
        (
            lambda t: t.update({n.replace("mid_block", "middle"): t.pop(n) for n in list(t)}),
            "layers that this unet lacks",
        ),
        (
            lambda t: t.update({n: torch.ones(3, 5) for n in t if "attn1_to_q.lora_down" in n}),
            "does not fit",
        ),
        (lambda t: t.clear(), "no layers"),
    ],
)
def test_refused(
    unet: UNet2DConditionModel,
    adapted: UNet2DConditionModel,
    tmp_path: Path,
    change: Any,
    says: str,
) -> None:
    with pytest.raises(ModelError, match=says):
        fuser(unet, [parse_lora(edited(tmp_path / "x.safetensors", change, adapted))], "unet")


@pytest.mark.parametrize(
    ("text", "says"),
    [("none.safetensors", "none.safetensors does not exist"), ("x:y:z", "x:y:z does not exist"),
     ("none.safetensors:0.5", "none.safetensors does not exist"), ("x.pt", "x.pt does not exist"),
     ("there.pt", "there.pt is not a safetensors file"), ("there:2", "there is a folder"),
     ("there.safetensors", "there.safetensors is a folder")],
)  # fmt: skip
def test_no_file(text: str, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there.pt").write_bytes(b"PK")
    (tmp_path / "there").mkdir()
    (tmp_path / "there.safetensors").mkdir()
    with pytest.raises(ModelError, match=f"^The LoRA {says}"):
        parse_lora(text)


def test_scale(adapted: UNet2DConditionModel, tmp_path: Path) -> None:
    path = edited(tmp_path / "x.safetensors", lambda _: None, adapted)
    assert parse_lora(path).scale == 1.0
    assert parse_lora(f"{path}:-2e-1").scale == -0.2
    with pytest.raises(ConfigError, match="not a scale"):
        parse_lora(f"{path}:nan")


def test_text_layers_are_found_in_both_versions() -> None:
    """kohya writes text_model_…; transformers 5 dropped that level from CLIPTextModel."""
    new = nn.ModuleDict({"encoder": nn.ModuleDict({"q_proj": nn.Linear(2, 2)})})
    old = nn.ModuleDict({"text_model": new})
    for name in ("text_model_encoder_q_proj", "text_model.encoder.q_proj", "encoder.q_proj"):
        assert Layers(new).find(name) == ("encoder.q_proj",)
        assert Layers(old).find(name) == ("text_model.encoder.q_proj",)
    assert Layers(new).find("encoder_k_proj") == ()
