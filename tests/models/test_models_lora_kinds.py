"""Adapters of every kind that can be fused: against peft's merging, or by running their layers."""

from __future__ import annotations

import copy
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoHaConfig, LoKrConfig, LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional

from todo_compile._torch import fake_mode
from todo_compile.errors import ModelError
from todo_compile.models.lora import fuser, parse_lora

Tensors = dict[str, torch.Tensor]
RANK = {"r": 3, "target_modules": ["a", "b", "c"]}


class Net(nn.Module):
    """A linear layer, a 3×3 and a 1×1 convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(12, 10)
        self.b = nn.Conv2d(8, 12, 3, padding=1)
        self.c = nn.Conv2d(12, 6, 1)


@pytest.fixture
def net() -> Net:
    torch.manual_seed(1)
    return Net().requires_grad_(False)


def fused(net: Net, path: Path, scale: str = "") -> Tensors:
    module, loras = copy.deepcopy(net), [parse_lora(f"{path}{scale}")]
    with fake_mode():
        shapes = Net()
    fuser(shapes, loras, "unet")  # as builds check them, before weights are loaded
    fuser(module, loras, "unet")()
    return dict(module.state_dict())


CONFIGS = {
    "lora": LoraConfig(**RANK, lora_alpha=5, init_lora_weights=False),
    "alphas": LoraConfig(**RANK, lora_alpha=5, alpha_pattern={"b": 2}, init_lora_weights=False),
    "rslora": LoraConfig(**RANK, lora_alpha=5, use_rslora=True, init_lora_weights=False),
    "dora": LoraConfig(**RANK, lora_alpha=5, use_dora=True, init_lora_weights=False),
    "loha": LoHaConfig(**RANK, alpha=5, init_weights=False),
    "loha, Tucker": LoHaConfig(**RANK, alpha=5, init_weights=False, use_effective_conv2d=True),
    "lokr": LoKrConfig(**RANK, alpha=5, init_weights=False),
    "lokr, Tucker": LoKrConfig(**RANK, alpha=5, init_weights=False, use_effective_conv2d=True),
    "lokr, small": LoKrConfig(**RANK, alpha=5, init_weights=False, decompose_both=True),
    "lokr, full": LoKrConfig(r=30, target_modules=["a", "b"], alpha=5, init_weights=False),
}


@pytest.mark.parametrize("name", list(CONFIGS))
def test_equals_peft(net: Net, tmp_path: Path, name: str) -> None:
    """As peft saves it, with its configuration beside it."""
    config = copy.deepcopy(CONFIGS[name])
    torch.manual_seed(2)
    model: Any = get_peft_model(copy.deepcopy(net), config)
    for part, parameter in model.named_parameters():
        if "magnitude" in part:
            parameter.data *= torch.rand_like(parameter) + 0.5
    model.save_pretrained(tmp_path)
    merged = dict(model.merge_and_unload().state_dict())
    path = tmp_path / "adapter_model.safetensors"
    ours = fused(net, path)
    for key, tensor in merged.items():
        torch.testing.assert_close(ours[key], tensor, rtol=1e-4, atol=1e-5)
    layers = config.target_modules or ()
    assert all(not ours[f"{n}.weight"].equal(net.state_dict()[f"{n}.weight"]) for n in layers)
    beside = tmp_path / "adapter_config.json"
    settings = json.loads(beside.read_text())
    alpha = "lora_alpha" if "lora_alpha" in settings else "alpha"
    before = parse_lora(str(path)).describe()
    beside.write_text(json.dumps({**settings, alpha: 7}))
    assert parse_lora(str(path)).describe() != before
    beside.unlink()
    with pytest.raises(ModelError, match=r"adapter_config.json that says how it is scaled"):
        parse_lora(str(path))


def test_patterns_that_are_more_than_names(net: Net, tmp_path: Path) -> None:
    config = copy.deepcopy(CONFIGS["lora"])
    model: Any = get_peft_model(copy.deepcopy(net), config)
    model.save_pretrained(tmp_path)
    beside = tmp_path / "adapter_config.json"
    settings = json.loads(beside.read_text())
    beside.write_text(json.dumps({**settings, "alpha_pattern": {"(a|b)+$": 2}}))
    with pytest.raises(ModelError, match="not a layer's name"):
        fused(net, tmp_path / "adapter_model.safetensors")


def test_lokr_without_a_configuration(net: Net, tmp_path: Path) -> None:
    """LyCORIS: full factors count as they are, whatever alpha says; others by alpha and rank."""
    torch.manual_seed(3)
    w1, w2 = torch.randn(2, 3), torch.randn(5, 4)
    path = tmp_path / "x.safetensors"
    save_file(
        {"lycoris_a.lokr_w1": w1, "lycoris_a.lokr_w2": w2, "lycoris_a.alpha": torch.tensor(9.0)},
        path,
    )
    ours = fused(net, path)
    torch.testing.assert_close(ours["a.weight"], net.a.weight + torch.kron(w1, w2))
    a, b = torch.randn(5, 3), torch.randn(3, 4)
    parts = {"lokr_w1": w1, "lokr_w2_a": a, "lokr_w2_b": b, "alpha": torch.tensor(9.0)}
    save_file({f"lycoris_a.{k}": v for k, v in parts.items()}, path)
    ours = fused(net, path)
    torch.testing.assert_close(ours["a.weight"], net.a.weight + 9 / 3 * torch.kron(w1, a @ b))


def test_tucker_lora_runs_as_its_three_convolutions(net: Net, tmp_path: Path) -> None:
    torch.manual_seed(4)
    down, mid, up = torch.randn(3, 8, 1, 1), torch.randn(2, 3, 3, 3), torch.randn(12, 2, 1, 1)
    parts = {"lora_down": down, "lora_mid": mid, "lora_up": up}
    path = tmp_path / "x.safetensors"
    save_file({f"lora_unet_b.{k}.weight": v for k, v in parts.items()}, path)
    ours = fused(net, path)
    x = torch.randn(1, 8, 6, 6)
    added = functional.conv2d(functional.conv2d(functional.conv2d(x, down), mid, padding=1), up)
    expected = functional.conv2d(x, net.b.weight, padding=1) + added
    found = functional.conv2d(x, ours["b.weight"], padding=1)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("layer", ["a", "b"])
@pytest.mark.parametrize("side", ["input", "output"])
def test_dora_of_lycoris_by_either_side(net: Net, tmp_path: Path, layer: str, side: str) -> None:
    """Every channel of the result has the norm that was trained, and V's direction."""
    torch.manual_seed(5)
    weight: torch.Tensor = net.get_submodule(layer).weight  # pyright: ignore[reportAssignmentType]
    channel = 0 if side == "output" else 1
    shape = [1] * weight.ndim
    shape[channel] = weight.shape[channel]
    magnitude = torch.rand(shape) + 0.5
    down = torch.randn(2, *weight.shape[1:])
    up = torch.randn(weight.shape[0], 2, *[1] * (weight.ndim - 2))
    name = f"lora_unet_{layer}"
    path = tmp_path / "x.safetensors"
    tensors = {f"{name}.lora_down.weight": down, f"{name}.lora_up.weight": up}
    save_file({**tensors, f"{name}.dora_scale": magnitude}, path)
    ours = fused(net, path, ":0.5")[f"{layer}.weight"]
    save_file(tensors, path)
    plain = fused(net, path, ":0.5")[f"{layer}.weight"]
    for index in range(weight.shape[channel]):
        found, direction = (t.select(channel, index).flatten() for t in (ours, plain))
        assert math.isclose(found.norm(), magnitude.flatten()[index], rel_tol=1e-4)
        torch.testing.assert_close(found / found.norm(), direction / direction.norm())


def test_full_differences(net: Net, tmp_path: Path) -> None:
    torch.manual_seed(6)
    weight, bias = torch.randn(12, 8, 3, 3), torch.randn(12)
    path = tmp_path / "x.safetensors"
    save_file({"lora_unet_b.diff": weight, "lora_unet_b.diff_b": bias}, path)
    ours = fused(net, path, ":0.25")
    torch.testing.assert_close(ours["b.weight"], net.b.weight + 0.25 * weight)
    torch.testing.assert_close(ours["b.bias"], net.state_dict()["b.bias"] + 0.25 * bias)


@pytest.mark.parametrize(
    ("parts", "says"),
    [
        ({"lora_down.weight": (2, 12)}, "only part of a"),
        ({"hada_w1_a": (10, 2), "hada_w1_b": (2, 12)}, "only part of a"),
        ({"lokr_w1": (2, 3)}, "only part of a"),
        ({"lokr_w1": (2, 3), "lokr_w1_b": (2, 3), "lokr_w2": (5, 4)}, "do not belong together"),
        ({"diff": (10, 12), "dora_scale": (10, 1)}, "do not belong together"),
        ({"lokr_w1": (3, 2), "lokr_w2": (5, 4)}, "does not fit"),
        ({"diff": (12, 10)}, "does not fit"),
        ({"diff": (10, 12), "diff_b": (12,)}, "does not fit"),
        ({"lora_down.weight": (2, 10), "lora_up.weight": (12, 2)}, "does not fit"),
        (
            {"lora_down.weight": (2, 12), "lora_up.weight": (10, 2), "dora_scale": (1, 10)},
            "does not fit",
        ),
        ({"oft_blocks": (2, 5, 5)}, "not part of an adapter that can be fused"),
        ({"on_input": (1,), "weight": (10,)}, "not part of an adapter that can be fused"),
        ({"lora_down.weight": (0, 12), "lora_up.weight": (10, 0)}, "does not fit"),
    ],
)
def test_refused(net: Net, tmp_path: Path, parts: dict[str, tuple[int, ...]], says: str) -> None:
    path = tmp_path / "x.safetensors"
    save_file({f"lora_unet_a.{k}": torch.ones(v) for k, v in parts.items()}, path)
    with pytest.raises(ModelError, match=says):
        fused(net, path)
    assert load_file(path)  # only looked at
