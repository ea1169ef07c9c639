"""Autoencoders and text encoders: found, loaded under old and new names, and traced right."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.autoencoders.autoencoder_tiny import AutoencoderTiny
from safetensors.torch import load_file, save_file
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

import todo_compile
from todo_compile import PlanOptions, models
from todo_compile.capture.inputs import ExampleInputs, example_inputs
from todo_compile.errors import ConfigError, ModelError
from todo_compile.models.components import overflows_in_half, parse_component
from todo_compile.models.light_files import light_files

VAE = {
    "block_out_channels": (8, 16, 16),
    "down_block_types": ("DownEncoderBlock2D",) * 3,
    "up_block_types": ("UpDecoderBlock2D",) * 3,
    "norm_num_groups": 4,
    "sample_size": 32,
}


def text_config(**changes: Any) -> CLIPTextConfig:
    values = {
        "vocab_size": 99,
        "hidden_size": 24,
        "intermediate_size": 32,
        "projection_dim": 20,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "bos_token_id": 97,
        "eos_token_id": 98,
        "pad_token_id": 98,
    }
    return CLIPTextConfig(**{**values, **changes})


@pytest.fixture
def vae(pipeline: Path) -> AutoencoderKL:
    torch.manual_seed(2)
    module = AutoencoderKL(**VAE).eval()
    module.save_pretrained(pipeline / "vae")
    return module


def loaded(model: Path, component: str) -> tuple[models.LoadedModel, ExampleInputs]:
    source = models.resolve_component(str(model), component)
    weights = models.find_weights(source, models.WeightsChoice.parse("auto"), dtype=torch.float32)
    found = models.load(source, weights, dtype=torch.float32)
    return found, example_inputs(found, models.Resolution.parse(64), batch=1)


def call(example: ExampleInputs, *args: torch.Tensor) -> Any:
    with torch.no_grad():
        return example.wrapper(*(args or example.args))


def test_decoder(pipeline: Path, vae: AutoencoderKL) -> None:
    found, example = loaded(pipeline, "vae_decoder")
    assert found.source.subfolder == "vae"
    assert found.source.native.latent == (8, 8)
    assert found.source.native.kv_tokens == 64
    assert [s.shape for s in example.specs] == [(1, 4, 16, 16)]
    with torch.no_grad():
        expected = vae.decode(example.args[0], return_dict=False)[0]
    torch.testing.assert_close(call(example), expected)
    assert not [n for n, _ in example.wrapper.named_parameters() if n.startswith("encoder")]


def test_decoder_by_its_own_folder(pipeline: Path, vae: AutoencoderKL) -> None:
    found, example = loaded(pipeline / "vae", "vae_decoder")
    with torch.no_grad():
        expected = vae.decode(example.args[0], return_dict=False)[0]
    torch.testing.assert_close(call(example), expected)
    assert found.source.pipeline == ""
    with pytest.raises(ModelError, match="AutoencoderKL, not a denoising model"):
        models.resolve_component(str(pipeline / "vae"))


def test_old_attention_names(pipeline: Path, vae: AutoencoderKL) -> None:
    """SD1.5's published file: query, key, value, proj_attn."""
    path = pipeline / "vae" / "diffusion_pytorch_model.safetensors"
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}

    def renamed(name: str) -> str:
        for new, before in old.items():
            name = name.replace(f".attentions.0.{new}.", f".attentions.0.{before}.")
        return name

    tensors = {renamed(n): t for n, t in load_file(path).items()}
    assert "decoder.mid_block.attentions.0.proj_attn.weight" in tensors
    save_file(tensors, path)
    _, example = loaded(pipeline, "vae_decoder")
    with torch.no_grad():
        expected = vae.decode(example.args[0], return_dict=False)[0]
    torch.testing.assert_close(call(example), expected)


def test_missing_weight_is_still_missed(pipeline: Path, vae: AutoencoderKL) -> None:
    del vae
    path = pipeline / "vae" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(path)
    tensors["decoder.mid_block.attentions.0.query.bias"] = torch.zeros(16)  # beside to_q.bias
    save_file(tensors, path)
    with pytest.raises(ModelError, match="1 unexpected"):
        loaded(pipeline, "vae_decoder")


def test_tiny_autoencoder(pipeline: Path) -> None:
    torch.manual_seed(3)
    vae = AutoencoderTiny(
        encoder_block_out_channels=(8, 8, 8), decoder_block_out_channels=(8, 8, 8),
        num_encoder_blocks=(1, 1, 1), num_decoder_blocks=(1, 1, 1),
    ).eval()  # fmt: skip
    vae.save_pretrained(pipeline / "vae")
    found, example = loaded(pipeline, "vae_decoder")
    assert found.source.vae_scale == 4
    with torch.no_grad():
        expected = vae.decode(example.args[0], return_dict=False)[0]
    torch.testing.assert_close(call(example), expected)


@pytest.mark.parametrize("prefix", ["as saved", "text_model.", ""])
def test_text_encoder(pipeline: Path, prefix: str) -> None:
    torch.manual_seed(4)
    text = CLIPTextModel(text_config()).eval()
    text.save_pretrained(pipeline / "text_encoder")
    path = pipeline / "text_encoder" / "model.safetensors"
    if prefix != "as saved":
        tensors = {prefix + n.removeprefix("text_model."): t for n, t in load_file(path).items()}
        tensors[f"{prefix}embeddings.position_ids"] = torch.arange(77)[None]
        save_file(tensors, path)
    _, example = loaded(pipeline, "text_encoder")
    assert example.output_names == (
        "last_hidden_state", "pooler_output", "hidden_states", "normed_states",
    )  # fmt: skip
    with torch.no_grad():
        expected = text(example.args[0])
    hidden, pooled, states, normed = call(example)
    assert states.shape == normed.shape
    torch.testing.assert_close(normed[:, -1], hidden)
    torch.testing.assert_close(hidden, expected.last_hidden_state)
    torch.testing.assert_close(pooled, expected.pooler_output)


@pytest.mark.parametrize("second", [False, True])
def test_text_encoders_of_sdxl(pipeline: Path, second: bool) -> None:
    (pipeline / "model_index.json").write_text('{"_class_name": "StableDiffusionXLPipeline"}')
    cls = CLIPTextModelWithProjection if second else CLIPTextModel
    name = "text_encoder_2" if second else "text_encoder"
    torch.manual_seed(5)
    text = cls(text_config()).eval()
    text.save_pretrained(pipeline / name)
    _, example = loaded(pipeline, name)
    with torch.no_grad():
        expected = text(example.args[0], output_hidden_states=True)
    found = dict(zip(example.output_names, call(example), strict=True))
    torch.testing.assert_close(found["hidden_states"], torch.stack(expected.hidden_states, 1))
    torch.testing.assert_close(found["last_hidden_state"], expected.last_hidden_state)
    if second:
        torch.testing.assert_close(found["text_embeds"], expected.text_embeds)
    else:
        torch.testing.assert_close(found["pooler_output"], expected.pooler_output)


@pytest.mark.parametrize(
    ("component", "parameters"),
    [("vae_decoder", 83_653_863), ("text_encoder", 123_060_480), ("text_encoder_2", 694_659_840)],
)
def test_registry_has_the_published_sizes(component: str, parameters: int) -> None:
    source = models.resolve_component("sdxl", component)
    assert models.load(source, dtype=torch.float16, fake=True).parameters == parameters


@pytest.mark.parametrize(("name", "tokens"), [("sd15", 4096), ("sd21", 9216), ("sdxl", 16384)])
def test_decoder_is_bounded_by_its_own_training(name: str, tokens: int) -> None:
    assert models.resolve_component(name, "vae_decoder").native.kv_tokens == tokens


def test_plan_of_a_decoder() -> None:
    report = todo_compile.plan("sd15", res=2048, component="vae_decoder")
    (site,) = report.sites
    assert (site.action, site.key_tokens, site.key_tokens_after) == ("rewritten", 65536, 4096)
    assert (site.heads, site.head_dim) == (1, 512)


def test_only_sdxls_own_autoencoder_overflows(pipeline: Path, vae: AutoencoderKL) -> None:
    del vae
    assert overflows_in_half(models.resolve_component("sdxl", "vae_decoder"))
    assert not overflows_in_half(models.resolve_component("sd15", "vae_decoder"))
    assert not overflows_in_half(models.resolve_component(str(pipeline), "vae_decoder"))
    (pipeline / "model_index.json").write_text('{"_class_name": "StableDiffusionXLPipeline"}')
    source = models.resolve_component(str(pipeline), "vae_decoder")
    assert source.config["force_upcast"] is True  # diffusers' default, saved
    assert not overflows_in_half(source)


@pytest.mark.parametrize("index", [None, "StableDiffusionXLPipeline", "PixArtSigmaPipeline"])
def test_sdxls_autoencoder_is_known_by_what_it_is(
    pipeline: Path, vae: AutoencoderKL, index: str | None
) -> None:
    del vae
    path = pipeline / "vae" / "config.json"
    config = {**json.loads(path.read_text()), "scaling_factor": 0.13025}
    path.write_text(json.dumps(config))
    if index is not None:
        (pipeline / "model_index.json").write_text(json.dumps({"_class_name": index}))
    assert overflows_in_half(models.resolve_component(str(pipeline), "vae_decoder"))
    path.write_text(json.dumps({**config, "force_upcast": False}))  # a repaired one
    assert not overflows_in_half(models.resolve_component(str(pipeline), "vae_decoder"))


def test_unsupported_and_absent(pipeline: Path) -> None:
    with pytest.raises(ModelError, match=r"has no text_encoder/config.json"):
        models.resolve_component(str(pipeline), "text_encoder")
    (pipeline / "text_encoder").mkdir()
    (pipeline / "text_encoder" / "config.json").write_text('{"architectures": ["T5EncoderModel"]}')
    with pytest.raises(ModelError, match="T5EncoderModel, which is not supported"):
        models.resolve_component(str(pipeline), "text_encoder")


def test_nothing_to_downsample_in_text() -> None:
    with pytest.raises(ConfigError, match="no image tokens"):
        todo_compile.plan(
            "sd15", res=512, component="text_encoder", options=PlanOptions(factors=((2, 2),))
        )


def test_choices() -> None:
    assert parse_component("VAE-decoder") == parse_component("vae_decoder") == "vae_decoder"
    with pytest.raises(ConfigError, match="Unknown component"):
        parse_component("vae")


def test_light_files_hold_data_only(pipeline: Path, vae: AutoencoderKL) -> None:
    del vae
    (pipeline / "tokenizer").mkdir()
    for name in ("vocab.json", "merges.txt", "code.py", "weights.bin", "x.safetensors"):
        (pipeline / "tokenizer" / name).write_text("{}")
    sources = {
        name: models.resolve_component(str(pipeline), name) for name in ("unet", "vae_decoder")
    }
    files = light_files(sources, fetch=False)
    assert list(files) == [
        "tokenizer/merges.txt", "tokenizer/vocab.json", "unet/config.json", "vae/config.json",
    ]  # fmt: skip


def test_light_file_that_is_none(pipeline: Path) -> None:
    (pipeline / "tokenizer").mkdir()
    with (pipeline / "tokenizer" / "vocab.json").open("wb") as file:
        file.truncate(2**30)  # a hole: takes no space
    with pytest.raises(ModelError, match="too large"):
        light_files({"unet": models.resolve_component(str(pipeline))}, fetch=False)
