"""Single files in the original layout: recognised by their tensors, read as diffusers' would be."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import original_names
import pytest
import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from safetensors.torch import save_file
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from todo_compile import models
from todo_compile._torch import fake_mode
from todo_compile.errors import ModelError
from todo_compile.models import single_file
from todo_compile.models.build import build
from todo_compile.models.checkpoint import fill_from, open_checkpoint
from todo_compile.models.single_file import FAMILIES, Family, recognise

Tensors = dict[str, torch.Tensor]
STORED = {
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
}
SD1, SD2, SDXL, REFINER = FAMILIES
TEXT = {
    SD1.name: {"text_encoder": ("clip", "cond_stage_model.transformer.")},
    SD2.name: {"text_encoder": ("open_clip", "cond_stage_model.model.")},
    SDXL.name: {
        "text_encoder": ("clip", "conditioner.embedders.0.transformer."),
        "text_encoder_2": ("open_clip", "conditioner.embedders.1.model."),
    },
    REFINER.name: {"text_encoder_2": ("open_clip", "conditioner.embedders.0.model.")},
}


def in_one(modules: Mapping[str, nn.Module | Tensors], text: Mapping[str, Any]) -> Tensors:
    """The tensors of a pipeline as one file had them."""
    tensors: Tensors = {"model_ema.decay": torch.tensor(0.9999)}
    for name, module in modules.items():
        state = dict(module.state_dict()) if isinstance(module, nn.Module) else module
        if name == "unet":
            tensors |= original_names.unet(state)
        elif name == "vae_decoder":
            tensors |= original_names.vae(state)
        else:
            kind, prefix = text[name]
            tensors |= getattr(original_names, kind)(state, prefix)
    return tensors


def hollow(path: Path, tensors: Mapping[str, torch.Tensor], **header: str) -> Path:
    """A file of full size that takes no room on the disk: a header, then a hole."""
    table: dict[str, Any] = {"__metadata__": header}
    end = 0
    for name, tensor in tensors.items():
        size = math.prod(tensor.shape) * tensor.element_size()
        entry = {"dtype": STORED[tensor.dtype], "shape": list(tensor.shape)}
        table[name] = {**entry, "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(table).encode()
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + end)
    return path


@pytest.mark.parametrize("family", FAMILIES, ids=lambda f: f.name.replace(" ", "-"))
def test_full_size_in_every_layout(family: Family, tmp_path: Path) -> None:
    """Names and shapes of every component are found, by the header alone."""
    text = TEXT[family.name]
    configs = {"unet": family.unet, **family.others}
    with fake_mode():
        states = {name: dict(build(c, torch.float16).state_dict()) for name, c in configs.items()}
        tensors = in_one(states, text)
        if family is SD2:  # a last layer and a projection that Stable Diffusion never used
            last = "cond_stage_model.model.transformer.resblocks."
            tensors |= {
                n.replace(f"{last}22.", f"{last}23."): t
                for n, t in tensors.items()
                if n.startswith(f"{last}22.")
            }
            tensors["cond_stage_model.model.text_projection"] = torch.empty(1024, 1024)
    path = hollow(tmp_path / "model.safetensors", tensors)
    source = models.resolve_component(str(path))
    assert source.file is not None and source.file.family is family
    assert dict(source.config) == {**family.unet, "in_channels": 4}
    assert source.pipeline == family.pipelines[4]
    for name, config in configs.items():
        part = models.resolve_component(str(path), name)
        weights = models.find_weights(part, models.WeightsChoice.parse("auto"))
        assert weights.files == (path,)
        entries = open_checkpoint(states[name], weights.files, name, part.config)
        assert entries.keys() == states[name].keys()
        assert part.config == config or name == "unet"


def test_more_input_channels(tmp_path: Path) -> None:
    """Pictures to be edited (8 channels), and with a mask (9)."""
    first = "model.diffusion_model.input_blocks.0.0.weight"
    for family in (SD1, SD2, SDXL):
        with fake_mode():
            tensors = original_names.unet(dict(build(family.unet, torch.float16).state_dict()))
        for channels in (8, 9):
            with fake_mode():
                tensors[first] = torch.empty(320, channels, 3, 3, dtype=torch.float16)
            source = models.resolve(str(hollow(tmp_path / "x.safetensors", tensors)))
            assert source.config["in_channels"] == channels
            assert source.pipeline == family.pipelines[channels]
            assert source.config["sample_size"] == family.inpainting_side
            assert source.file is not None
            assert source.file.scheduler.get("prediction_type", "epsilon") == "epsilon"


@pytest.fixture(scope="module")
def second() -> Tensors:
    with fake_mode():
        return original_names.unet(dict(build(SD2.unet, torch.float16).state_dict()))


@pytest.mark.parametrize(
    ("header", "prediction", "side"),
    [
        ({}, "v_prediction", 96),
        ({"modelspec.prediction_type": "v"}, "v_prediction", 96),
        ({"modelspec.prediction_type": "epsilon"}, "epsilon", 64),
    ],
)
def test_what_the_second_version_predicts(
    second: Tensors, tmp_path: Path, header: dict[str, str], prediction: str, side: int
) -> None:
    found = recognise(hollow(tmp_path / "x.safetensors", second, **header))
    assert found.scheduler["prediction_type"] == prediction
    assert found.configs["unet"]["sample_size"] == side
    assert ("as diffusers takes it" in found.remark) == (not header)


# Tiny models of the same layouts: what is read is what was written.

TINY_UNET = {
    "sample_size": 8,
    "block_out_channels": [8, 16],
    "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"],
    "cross_attention_dim": 16,
    "attention_head_dim": 2,
    "norm_num_groups": 4,
}
TINY_VAE = {
    "block_out_channels": [8, 16],
    "down_block_types": ["DownEncoderBlock2D"] * 2,
    "up_block_types": ["UpDecoderBlock2D"] * 2,
    "norm_num_groups": 4,
    "sample_size": 16,
}
TINY_CLIP = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "vocab_size": 50,
}


@pytest.fixture(scope="module")
def tiny_family() -> Family:
    return replace(
        SDXL,
        name="tiny",
        unet={**TINY_UNET, "_class_name": "UNet2DConditionModel"},
        others={
            "vae_decoder": {**TINY_VAE, "_class_name": "AutoencoderKL"},
            "text_encoder": {**TINY_CLIP, "architectures": ["CLIPTextModel"]},
            "text_encoder_2": {
                **TINY_CLIP,
                "architectures": ["CLIPTextModelWithProjection"],
                "projection_dim": 16,
            },
        },
        pipelines={4: "StableDiffusionPipeline"},
    )


@pytest.fixture(scope="module")
def tiny() -> dict[str, nn.Module]:
    torch.manual_seed(1)
    sizes: Any = TINY_CLIP
    vae: Any = TINY_VAE
    unet: Any = TINY_UNET
    return {
        "unet": UNet2DConditionModel(**unet),
        "vae_decoder": AutoencoderKL(**vae),
        "text_encoder": CLIPTextModel(CLIPTextConfig(**sizes)),
        "text_encoder_2": CLIPTextModelWithProjection(CLIPTextConfig(**sizes, projection_dim=16)),
    }


@pytest.fixture
def known(tiny_family: Family, monkeypatch: pytest.MonkeyPatch) -> Family:
    monkeypatch.setattr(single_file, "FAMILIES", (*FAMILIES, tiny_family))
    return tiny_family


@pytest.mark.parametrize(
    "stored", [torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn]
)
def test_loaded_is_what_was_stored(
    known: Family, tiny: dict[str, nn.Module], tmp_path: Path, stored: torch.dtype
) -> None:
    path = tmp_path / "model.safetensors"
    tensors = in_one(tiny, TEXT[SDXL.name])
    save_file({n: t.to(stored) if t.is_floating_point() else t for n, t in tensors.items()}, path)
    for name, module in tiny.items():
        source = models.resolve_component(str(path), name)
        weights = models.find_weights(source, models.WeightsChoice.parse("auto"))
        loaded = models.load(source, weights, dtype=torch.float32)
        expected = {n: t.to(stored).to(torch.float32) for n, t in module.state_dict().items()}
        found = loaded.module.state_dict()
        assert found.keys() == expected.keys()
        assert all(found[n].equal(expected[n]) for n in expected)
        assert loaded.weights_hash == models.weights_hash(weights)
    assert known.name == "tiny"


def test_files_of_one_part(known: Family, tiny: dict[str, nn.Module], tmp_path: Path) -> None:
    """A UNet alone, its names with the prefix or without; an autoencoder given as --weights."""
    state = dict(tiny["unet"].state_dict())
    path = tmp_path / "unet.safetensors"
    for prefix in ("model.diffusion_model.", ""):
        save_file(original_names.unet(state, prefix), path)
        source = models.resolve(str(path))
        assert source.class_name == "UNet2DConditionModel"
        weights = models.find_weights(source, models.WeightsChoice.parse("auto"))
        loaded = models.load(source, weights, dtype=torch.float32).module.state_dict()
        assert all(loaded[n].equal(state[n]) for n in state)
        with pytest.raises(ModelError, match=f"{path} has no vae_decoder"):
            models.resolve_component(str(path), "vae_decoder")
    vae = dict(tiny["vae_decoder"].state_dict())
    for prefix in ("first_stage_model.", "vae.", ""):
        save_file(original_names.vae(vae, prefix), path)
        target = {n: torch.empty_like(t) for n, t in vae.items()}
        config = known.others["vae_decoder"]
        fill_from(target, open_checkpoint(target, [path], "vae_decoder", config))
        assert all(target[n].equal(vae[n]) for n in vae)
    with pytest.raises(ModelError, match="it holds an autoencoder only"):
        models.resolve(str(path))


def test_a_part_that_is_not_whole(
    known: Family, tiny: dict[str, nn.Module], tmp_path: Path
) -> None:
    path = tmp_path / "model.safetensors"
    del known
    whole = in_one(tiny, TEXT[SDXL.name])
    lacking = {
        "unet": "model.diffusion_model.out.0.bias",
        "vae_decoder": "first_stage_model.decoder.mid.attn_1.q.weight",
        "text_encoder_2": "conditioner.embedders.1.model.transformer.resblocks.1.attn.in_proj_bias",
    }
    for component, name in lacking.items():
        save_file({n: t for n, t in whole.items() if n != name}, path)
        source = models.resolve_component(str(path), component)
        weights = models.find_weights(source, models.WeightsChoice.parse("auto"))
        with pytest.raises(ModelError, match="keys missing"):
            models.load(source, weights, dtype=torch.float32)
    more = {"model.diffusion_model.input_blocks.1.0.in_layers.2.scale_weight": torch.ones(1)}
    save_file({**whole, **more}, path)
    source = models.resolve(str(path))
    with pytest.raises(ModelError, match="quantised with scales of their own"):
        models.load(
            source,
            models.find_weights(source, models.WeightsChoice.parse("auto")),
            dtype=torch.float32,
        )


@pytest.mark.parametrize("suffix", ["ckpt", "pt", "pth", "bin", "pkl"])
def test_pickles(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"model.{suffix}"
    path.write_bytes(b"\x80\x02.")
    with pytest.raises(ModelError, match=r"is a pickle[\s\S]*Convert it once"):
        models.resolve(str(path))


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("model.gguf", b"GGUF\3\0\0\0", r"GGUF file[\s\S]*safetensors file in fp16"),
        ("model.safetensors", b"GGUF\3\0\0\0", "GGUF file"),
        ("model.zip", b"PK\3\4", "not a safetensors file"),
        ("model.safetensors", b"", "truncated or damaged"),
    ],
)
def test_other_files(tmp_path: Path, name: str, content: bytes, says: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ModelError, match=says):
        models.resolve(str(tmp_path / name))


@pytest.mark.parametrize(
    ("names", "says"),
    [
        (["down_blocks.0.resnets.0.conv1.weight"], "diffusers' names"),
        (["model.diffusion_model.double_blocks.0.img_attn.qkv.weight"], "looks like FLUX"),
        (["lora_unet_x.lora_down.weight"], "looks like a LoRA"),
        (["a"], "its first tensor is a"),
        (["model.diffusion_model.input_blocks.0.0.weight"], "of a model that is not known"),
    ],
)
def test_files_of_other_models(tmp_path: Path, names: list[str], says: str) -> None:
    path = tmp_path / "x.safetensors"
    save_file({name: torch.ones(2, 2) for name in names}, path)
    with pytest.raises(ModelError, match=says) as caught:
        models.resolve(str(path))
    assert caught.value.remedy
