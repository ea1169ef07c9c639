"""The registry's architectures are the real ones, and their grids follow from them."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from todo_compile.errors import ModelError
from todo_compile.models import REGISTRY, load, native, resolve
from todo_compile.models.architecture import architecture_hash


@pytest.mark.parametrize(
    ("name", "parameters", "side", "kv_tokens", "stride"),
    [
        ("sd15", 859_520_964, 64, 4096, 1),
        ("sd21", 865_910_724, 96, 9216, 1),
        ("sdxl", 2_567_463_684, 128, 4096, 2),
    ],
)
def test_full_size_architecture_under_fake_tensors(
    name: str, parameters: int, side: int, kv_tokens: int, stride: int
) -> None:
    entry = REGISTRY[name]
    model = load(resolve(name), dtype=torch.float16, fake=True)

    assert model.parameters == parameters == entry.parameters
    assert {p.dtype for p in model.module.parameters()} == {torch.float16}
    assert not any(p.requires_grad for p in model.module.parameters())
    assert not model.module.training
    assert entry.native.latent == (side, side)
    assert entry.native.attention_stride == stride
    assert entry.native_kv_tokens == kv_tokens
    assert entry.native_pixels == (8 * side, 8 * side)


def test_loading_restores_the_default_dtype() -> None:
    load(resolve("sd15"), dtype=torch.float16, fake=True)
    assert torch.get_default_dtype() == torch.float32


def test_import_is_light() -> None:
    code = (
        "import sys, todo_compile.models as m\n"
        "m.REGISTRY, m.resolve, m.WeightsChoice, m.Resolution\n"
        "print([n for n in ('torch', 'diffusers', 'huggingface_hub') if n in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_grid_of_uneven_sides() -> None:
    config = {
        "_class_name": "UNet2DConditionModel",
        "sample_size": [15, 32],
        "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D"],
    }
    assert native(config).kv_tokens == 8 * 16


def test_grid_of_a_transformer() -> None:
    config = {"_class_name": "PixArtTransformer2DModel", "sample_size": 128, "patch_size": 2}
    assert native(config).kv_tokens == 4096


def test_unusable_sample_size() -> None:
    with pytest.raises(ModelError, match=r"no usable sample_size \(None\)") as caught:
        native({"_class_name": "UNet2DConditionModel"})
    assert "config.json" in (caught.value.remedy or "")


def test_architecture_hash_sees_architecture_only() -> None:
    config = dict(REGISTRY["sd15"].config)
    assert architecture_hash(config) == architecture_hash({**config, "_diffusers_version": "0.6"})
    assert architecture_hash(config) != architecture_hash({**config, "in_channels": 9})
