"""The registry's architectures are the real ones, and their grids follow from them."""

from __future__ import annotations

import inspect
import resource
import subprocess
import sys
from pathlib import Path

import diffusers
import pytest
import torch

import todo_compile
from todo_compile.errors import ModelError
from todo_compile.models import REGISTRY, load, native, resolve, resolve_component
from todo_compile.models.architecture import TEXT_CLASSES, VAE_CLASSES, architecture_hash
from todo_compile.models.parts import read_known
from todo_compile.models.registry import known_parts
from todo_compile.models.trust import check_index


@pytest.mark.parametrize(
    ("name", "parameters", "side", "kv_tokens", "stride", "cell"),
    [
        ("sd15", 859_520_964, 64, 4096, 1, 8),
        ("sd21", 865_910_724, 96, 9216, 1, 8),
        ("sdxl", 2_567_463_684, 128, 4096, 2, 8),
        ("sdxl-refiner", 2_259_526_660, 128, 4096, 2, 8),
        ("pixart", 610_856_096, 128, 4096, 2, 8),
        ("sd3", 2_028_328_000, 128, 4096, 2, 8),
        ("flux", 11_901_408_320, 128, 4096, 2, 8),
        ("qwen-image", 20_430_401_088, 128, 4096, 2, 8),
        ("if", 4_304_695_110, 64, 1024, 2, 1),  # made of pixels, as the next but one
        ("kandinsky22", 1_253_057_288, 64, 1024, 2, 8),
        ("karlo", 885_439_686, 64, 1024, 2, 1),
    ],
)
def test_full_size_architecture_under_fake_tensors(
    name: str, parameters: int, side: int, kv_tokens: int, stride: int, cell: int
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
    assert entry.native_pixels == (cell * side, cell * side)


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


@pytest.mark.parametrize("name", [n for n, entry in REGISTRY.items() if entry.pipeline])
def test_other_components_are_the_known_parts(name: str) -> None:
    """What can be compiled resolves without files; what cannot, or is not there, is said."""
    for component in ("vae_decoder", "text_encoder", "text_encoder_2"):
        part = read_known(name).parts.get("vae" if component == "vae_decoder" else component)
        if part is None:
            with pytest.raises(ModelError, match=f"{name} has no "):
                resolve_component(name, component)
        elif part.name in (*VAE_CLASSES, *TEXT_CLASSES):
            assert resolve_component(name, component).class_name == part.name
        else:
            with pytest.raises(ModelError, match=f"{part.name}, which is not supported"):
                resolve_component(name, component)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "res", "sites", "refused"),
    [
        ("pixart", 2048, 28, 0),
        ("sd3", 2048, 24, 0),
        ("flux", 2048, 57, 0),
        ("qwen-image", 2048, 60, 0),
        ("sdxl-refiner", 2048, 20, 0),
        ("kandinsky22", 1024, 7, 0),
        ("if", 128, 7, 0),
        ("karlo", 128, 0, 7),  # its mask is data
    ],
)
def test_full_size_plan(name: str, res: int, sites: int, refused: int) -> None:
    """Self and joint attention is rewritten above the size of training; without weights."""
    report = todo_compile.plan(name, res=res)
    assert (report.rewritten, report.counts["refused"]) == (sites, refused)
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    assert most < 8e9  # of 1.2 GB (PixArt) to 41 GB (Qwen-Image) in fp16
