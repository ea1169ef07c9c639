"""Weights: the right bits from every layout, and a helpful refusal of everything else."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from safetensors.torch import load_file, save_file
from tiny_models import cache_snapshot, make_unet

from todo_compile.errors import ConfigError, ModelError
from todo_compile.models import (
    LoadedModel,
    WeightsChoice,
    find_weights,
    load,
    resolve,
    weights_hash,
)

NAME = "diffusion_pytorch_model.safetensors"


def open_model(
    model: Path | str, weights: str = "auto", dtype: torch.dtype = torch.float32
) -> LoadedModel:
    source = resolve(str(model))
    return load(
        source, find_weights(source, WeightsChoice.parse(weights), dtype=dtype), dtype=dtype
    )


def assert_same(ours: torch.nn.Module, theirs: torch.nn.Module) -> None:
    expected = theirs.state_dict()
    actual = ours.state_dict()
    assert actual.keys() == expected.keys()
    for name, value in expected.items():
        assert actual[name].dtype == value.dtype
        assert torch.equal(actual[name], value), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_equals_diffusers_bit_for_bit(pipeline: Path, dtype: torch.dtype) -> None:
    theirs = UNet2DConditionModel.from_pretrained(pipeline / "unet", torch_dtype=dtype)
    ours = open_model(pipeline, dtype=dtype)
    assert_same(ours.module, theirs)
    assert ours.weights_hash is not None
    assert ours.weights_hash.startswith("sha256:")


def test_conversion_in_pieces(pipeline: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("todo_compile.models.stfile._CHUNK", 7)
    theirs = UNet2DConditionModel.from_pretrained(pipeline / "unet", torch_dtype=torch.float16)
    assert_same(open_model(pipeline, dtype=torch.float16).module, theirs)


def test_shards(tmp_path: Path, unet: UNet2DConditionModel) -> None:
    unet.save_pretrained(tmp_path, max_shard_size="100KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    model = open_model(tmp_path)
    assert_same(model.module, unet)
    assert model.weights is not None
    assert len(model.weights.files) > 2


def test_fp16_variant_is_for_fp16(tmp_path: Path, unet: UNet2DConditionModel) -> None:
    unet.save_pretrained(tmp_path)
    make_unet().half().save_pretrained(tmp_path, variant="fp16")
    source = resolve(str(tmp_path))
    names = {
        dtype: find_weights(source, WeightsChoice("auto"), dtype=dtype).files[0].name
        for dtype in (torch.float16, torch.float32, torch.bfloat16)
    }
    assert names == {
        torch.float16: "diffusion_pytorch_model.fp16.safetensors",
        torch.float32: NAME,
        torch.bfloat16: NAME,
    }


def test_fp16_variant_in_shards_and_alone(tmp_path: Path, unet: UNet2DConditionModel) -> None:
    unet.half().save_pretrained(tmp_path, variant="fp16", max_shard_size="50KB")
    assert_same(open_model(tmp_path).module, unet.float())


def test_path_to_file_folder_and_pipeline(pipeline: Path, unet: UNet2DConditionModel) -> None:
    architecture = pipeline / "unet"
    for path in (pipeline, pipeline / "unet", pipeline / "unet" / NAME):
        assert_same(open_model(architecture, str(path)).module, unet)


def test_local_hub_cache(empty_hub: Path, unet: UNet2DConditionModel) -> None:
    cache_snapshot(empty_hub, "someone/model", unet)
    model = open_model("someone/model")
    assert_same(model.module, unet)
    assert model.weights is not None
    assert model.weights.origin == "hub cache"


def test_former_hub_id_counts_in_the_cache(empty_hub: Path, unet: UNet2DConditionModel) -> None:
    cache_snapshot(empty_hub, "runwayml/stable-diffusion-v1-5", unet)
    assert find_weights(resolve("sd15"), WeightsChoice("auto")).origin == "hub cache"


def test_no_network_names_three_remedies() -> None:
    with pytest.raises(ModelError, match="HF_HUB_OFFLINE is set") as caught:
        find_weights(resolve("sdxl"), WeightsChoice("auto"))
    remedy = caught.value.remedy or ""
    assert "--model DIR" in remedy
    assert "HF_HOME" in remedy
    assert "--weights random" in remedy


def test_unreachable_hub_does_not_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    def refuse(*args: object, **kwargs: object) -> object:
        del args, kwargs
        raise ConnectionError("Name or service not known")

    def sleep(seconds: float) -> None:
        raise AssertionError(f"waits {seconds} s for a hub that is not there")

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", refuse)
    monkeypatch.setattr(time, "sleep", sleep)
    with pytest.raises(ModelError, match="Name or service not known") as caught:
        find_weights(resolve("sd15"), WeightsChoice("auto"))
    assert "--weights random" in (caught.value.remedy or "")


# --- random ----------------------------------------------------------------------------------


def test_random_is_the_same_for_a_seed(pipeline: Path) -> None:
    first, again = open_model(pipeline, "random:7"), open_model(pipeline, "random:7")
    other = open_model(pipeline, "random:8")
    assert_same(first.module, again.module)
    assert not torch.equal(
        first.module.get_parameter("conv_in.weight"), other.module.get_parameter("conv_in.weight")
    )
    assert first.weights_hash == again.weights_hash != other.weights_hash
    assert str(first.weights_hash).startswith("random:7:")
    assert first.weights is not None
    assert "NOT a trained model" in first.weights.description


def test_random_values_are_pinned(pipeline: Path) -> None:
    # The hash names seed and scheme only: if this fails, raise RANDOM_SCHEME.
    weight = open_model(pipeline, "random:0").module.get_parameter("conv_in.weight").flatten()
    assert [round(float(v), 6) for v in weight[:4]] == [-0.207776, -0.145976, -0.183162, -0.135853]


def test_random_does_not_depend_on_dtype_order_or_pieces(
    pipeline: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    full = open_model(pipeline, "random").module.state_dict()
    monkeypatch.setattr("todo_compile.models.randomise._CHUNK", 8)
    half = open_model(pipeline, "random", torch.float16).module.state_dict()
    for name, value in full.items():
        torch.testing.assert_close(half[name].float(), value, rtol=1e-3, atol=1e-6)


def test_random_statistics(pipeline: Path) -> None:
    module = open_model(pipeline, "random").module
    for name, parameter in module.named_parameters():
        if parameter.dim() >= 2 and parameter.numel() > 4000:
            fan_in = parameter[0].numel()
            assert abs(float(parameter.std()) * fan_in**0.5 - 1) < 0.05, name
            assert abs(float(parameter.mean())) * fan_in**0.5 < 0.1, name
        elif "norm" in name:
            assert torch.equal(parameter, torch.full_like(parameter, name.endswith("weight")))
        elif parameter.dim() == 1:
            assert float(parameter.abs().max()) > 0, f"{name} is zero: its loss would not show"


@pytest.mark.parametrize(
    "text", ["random:", "random:x", "random:-1", "random:1.5", f"random:{2**63}"]
)
def test_bad_seed(text: str) -> None:
    with pytest.raises(ConfigError, match="is not a seed") as caught:
        WeightsChoice.parse(text)
    assert "random:SEED" in (caught.value.remedy or "")


def test_choice_round_trips() -> None:
    for text in ("auto", "random:5", "some/folder"):
        assert str(WeightsChoice.parse(text)) == text


# --- refusals --------------------------------------------------------------------------------


def test_missing_path(pipeline: Path) -> None:
    with pytest.raises(ModelError, match="There are no weights at") as caught:
        open_model(pipeline, str(pipeline / "nowhere"))
    assert "--weights random" in (caught.value.remedy or "")


@pytest.mark.parametrize("suffix", ["bin", "pt", "pth", "ckpt"])
def test_pickle_is_refused_unread(pipeline: Path, suffix: str) -> None:
    folder = pipeline / "unet"
    shutil.move(folder / NAME, pipeline / "elsewhere")
    pickle = folder / f"diffusion_pytorch_model.{suffix}"
    pickle.write_bytes(b"cos\nsystem\n(S'touch owned'\ntR.")
    for weights in ("auto", str(pickle)):
        with pytest.raises(ModelError, match="is a pickle") as caught:
            open_model(pipeline, weights)
        assert "safetensors.torch.save_file" in (caught.value.remedy or "")


def test_other_suffix(pipeline: Path) -> None:
    with pytest.raises(ModelError, match="is not a safetensors file"):
        open_model(pipeline, str(pipeline / "vae" / "config.json"))


def test_folder_without_weights(pipeline: Path) -> None:
    (pipeline / "unet" / NAME).unlink()
    with pytest.raises(ModelError, match="has no diffusion_pytorch_model") as caught:
        open_model(pipeline)
    assert "--weights random" in (caught.value.remedy or "")


@pytest.mark.parametrize("keep", [0, 4, 8, 100, -1])
def test_truncated(pipeline: Path, keep: int) -> None:
    file = pipeline / "unet" / NAME
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(ModelError, match="truncated or damaged") as caught:
        open_model(pipeline)
    assert "again" in (caught.value.remedy or "")


@pytest.mark.parametrize(
    "header",
    [
        "not json at all",
        "[1]",
        '{"a": 1}',
        '{"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 400]}}',
        '{"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}}',
        '{"a": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}}',
        '{"a": {"dtype": "F32", "shape": [1], "data_offsets": [4, 0]}}',
        '{"a": {"dtype": "F32", "shape": "x", "data_offsets": [0]}}',
    ],
)
def test_damaged_header(pipeline: Path, header: str) -> None:
    data = header.encode()
    file = pipeline / "unet" / NAME
    file.write_bytes(len(data).to_bytes(8, "little") + data + bytes(4))
    with pytest.raises(ModelError, match="truncated or damaged"):
        open_model(pipeline)


def edit(pipeline: Path, **changes: torch.Tensor | None) -> None:
    file = pipeline / "unet" / NAME
    tensors: dict[str, Any] = {**load_file(file), **changes}
    save_file({name: value for name, value in tensors.items() if value is not None}, file)


def test_wrong_keys_are_counted_and_shown(pipeline: Path) -> None:
    edit(pipeline, **{"conv_in.weight": None, "conv_in.bias": None, "surprise": torch.ones(1)})
    with pytest.raises(ModelError) as caught:
        open_model(pipeline)
    assert "2 of" in caught.value.message
    assert "conv_in.weight" in caught.value.message
    assert "1 unexpected (surprise)" in caught.value.message
    assert "24 wide" in (caught.value.remedy or "")


def test_wrong_shapes_are_counted_and_shown(pipeline: Path) -> None:
    edit(pipeline, **{"conv_in.bias": torch.zeros(5)})
    with pytest.raises(ModelError, match=r"1 tensors .*conv_in.bias is 5, not 16"):
        open_model(pipeline)


def test_another_architecture_is_recognised(pipeline: Path, tmp_path: Path) -> None:
    make_unet(cross_attention_dim=768).save_pretrained(tmp_path / "other")
    with pytest.raises(ModelError, match="another shape") as caught:
        open_model(pipeline, str(tmp_path / "other"))
    assert "768 wide, the text width of sd15" in (caught.value.remedy or "")


def test_a_single_file_of_another_model(pipeline: Path, tmp_path: Path) -> None:
    file = tmp_path / "v1-5-pruned.safetensors"
    first = "model.diffusion_model.input_blocks.0.0.weight"
    save_file({first: torch.ones(1), "model.diffusion_model.extra": torch.ones(1)}, file)
    with pytest.raises(
        ModelError, match=r"keys missing .*; 1 unexpected \(model.diffusion_model.ex"
    ):
        open_model(pipeline, str(file))


def test_lora_is_recognised(pipeline: Path, tmp_path: Path) -> None:
    save_file({"unet.x.lora_A.weight": torch.ones(1)}, tmp_path / "l.safetensors")
    with pytest.raises(ModelError) as caught:
        open_model(pipeline, str(tmp_path / "l.safetensors"))
    assert "looks like a LoRA: give it as --lora" in (caught.value.remedy or "")


def test_integer_tensors_are_refused(pipeline: Path) -> None:
    edit(pipeline, **{"conv_in.bias": torch.zeros(16, dtype=torch.int8)})
    with pytest.raises(ModelError, match="I8 tensors; quantised"):
        open_model(pipeline)


def test_nothing_is_copied_from_a_checkpoint_that_does_not_fit(
    pipeline: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    edit(pipeline, **{"time_embedding.linear_1.bias": torch.zeros(5)})

    def touched(*args: object) -> None:
        raise AssertionError(f"copied {args} before everything was checked")

    monkeypatch.setattr("todo_compile.models.checkpoint.read_into", touched)
    with pytest.raises(ModelError, match="another shape"):
        open_model(pipeline)


@pytest.mark.parametrize(
    "target", ["../{name}", "/etc/passwd", "..\\{name}", "sub/{name}", "x.bin"]
)
def test_index_that_leads_elsewhere(pipeline: Path, target: str) -> None:
    folder = pipeline / "unet"
    shutil.copy(folder / NAME, pipeline / NAME)
    index = {"weight_map": {"conv_in.weight": target.format(name=NAME)}}
    (folder / f"{NAME}.index.json").write_text(json.dumps(index))
    with pytest.raises(ModelError, match="which is not a safetensors file beside it"):
        open_model(pipeline)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"weight_map": 3}'])
def test_damaged_index(pipeline: Path, text: str) -> None:
    (pipeline / "unet" / f"{NAME}.index.json").write_text(text)
    with pytest.raises(ModelError, match="is not a shard index"):
        open_model(pipeline)


def test_missing_shard(tmp_path: Path, unet: UNet2DConditionModel) -> None:
    unet.save_pretrained(tmp_path, max_shard_size="100KB")
    gone = sorted(tmp_path.glob("*.safetensors"))[1]
    gone.unlink()
    with pytest.raises(ModelError, match="1 are missing") as caught:
        open_model(tmp_path)
    assert gone.name in str(caught.value)


def test_configuration_that_diffusers_refuses(pipeline: Path) -> None:
    file = pipeline / "unet" / "config.json"
    config = json.loads(file.read_text())
    file.write_text(json.dumps({**config, "block_out_channels": [16, 32, 64]}))
    with pytest.raises(ModelError, match="diffusers cannot make a UNet2DConditionModel"):
        open_model(pipeline)


def test_hash_follows_the_content(pipeline: Path) -> None:
    source = resolve(str(pipeline))
    weights = find_weights(source, WeightsChoice("auto"))
    before = weights_hash(weights)
    assert before == weights_hash(weights)
    edit(pipeline, **{"conv_in.bias": torch.full((16,), 0.5)})
    assert weights_hash(weights) != before
