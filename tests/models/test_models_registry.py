"""The registry's architectures are the real ones, and their grids follow from them."""

from __future__ import annotations

import inspect
import subprocess
import sys
from pathlib import Path

import diffusers
import pytest
import torch

import todo_compile
from todo_compile.errors import ModelError
from todo_compile.models import REGISTRY, load, native, resolve
from todo_compile.models.architecture import architecture_hash
from todo_compile.models.parts import read_known
from todo_compile.models.registry import known_parts
from todo_compile.models.trust import check_index


@pytest.mark.parametrize(
    ("name", "parameters", "side", "kv_tokens", "stride"),
    [
        ("sd15", 859_520_964, 64, 4096, 1),
        ("sd21", 865_910_724, 96, 9216, 1),
        ("sdxl", 2_567_463_684, 128, 4096, 2),
        ("pixart", 610_856_096, 128, 4096, 2),
        ("sd3", 2_028_328_000, 128, 4096, 2),
        ("flux", 11_901_408_320, 128, 4096, 2),
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


@pytest.mark.parametrize("name", [n for n, entry in REGISTRY.items() if entry.pipeline])
def test_known_parts_are_a_whole_pipeline(name: str) -> None:
    """The file names classes that there are, and every part that the pipeline is made of."""
    entry = REGISTRY[name]
    check_index(known_parts(name)["index"], Path("model_index.json"))
    found = read_known(name)
    assert found.pipeline == entry.pipeline
    needed = inspect.signature(getattr(diffusers, entry.pipeline)).parameters
    assert set(found.parts) >= {n for n, p in needed.items() if p.default is p.empty}
    assert entry.config == found.parts[entry.component].config


@pytest.mark.slow
@pytest.mark.parametrize(("name", "sites"), [("pixart", 28), ("sd3", 24), ("flux", 57)])
def test_full_size_plan(name: str, sites: int) -> None:
    """Every self or joint attention of these is rewritten above the size of their training."""
    report = todo_compile.plan(name, res=2048)
    assert report.rewritten == sites
    assert report.counts["refused"] == 0
